"""A worker that has not enough memory: how that is known, and which setting needs less of it."""

from collections.abc import Sequence
from pathlib import Path

from jobs.common.config import Config

_KINDS = ("MemoryError", "OutOfMemoryError", "ResourceExhaustedError")
"""Of Python and NumPy, PyTorch, and TensorFlow."""
_SAID = ("can't allocate memory", "out of memory", "std::bad_alloc", "ALLOC_FAILED")
"""What a RuntimeError of PyTorch's says that is of no kind of its own."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this error, or what it came from, is that something could not be allocated."""
    if any(kind.__name__ in _KINDS for kind in type(error).__mro__):
        return True
    if isinstance(error, RuntimeError) and any(said in str(error) for said in _SAID):
        return True
    return error.__cause__ is not None and is_out_of_memory(error.__cause__)


def kills() -> int:
    """How many processes of this machine its kernel has ended for want of memory; 0 where it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def remedy(config: Config, num_shards: int, *, phase: str | None, fits: bool = True) -> str:
    """What to do. phase: of the worker's heartbeat; None: it trains. fits: whether the model itself was there."""
    micro_batch = config.train.global_batch_size // num_shards
    rows = min(micro_batch, config.train.max_rows_per_pass or micro_batch)
    knobs = [f"--eval.batch-size {config.eval.batch_size // 2} (it is {config.eval.batch_size})"] if phase and (
        config.eval.batch_size > 1) else []
    if phase is None and fits:
        knobs = [f"--train.max-rows-per-pass {rows // 2} (a pass has {rows} rows)"] if rows > 1 else []
        knobs += config.less_memory(anew=False)
    if knobs:
        return f"pass {_listed(knobs)}, and the same command goes on from the last checkpoint"
    return f"give the workers more memory, or begin another run with {_listed(config.less_memory(anew=True))}"


def _listed(options: Sequence[str]) -> str:
    return " or ".join(options)
