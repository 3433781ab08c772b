"""A worker's PyTorch: threads, device, determinism, a compiler, and a profiler."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateImportUsage=false

import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from cluster.core.errors import ConfigError
from jobs.common.step_profile import Operation
from jobs.common.training.context import TrainContext
from jobs.pytorch.internals import has_compiler

_STEP = "step "
_BETWEEN = "Python, and waiting, between operations"


def set_up_torch(context: TrainContext, threads: int) -> torch.device:
    """Threads as given to this worker: another number of them sums in another order."""
    torch.set_num_threads(threads)
    device = torch.device(context.device)
    # on a CPU all that is used here is deterministic, and this would import half of torch.compile
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError("--run.gpus-per-worker 1: this PyTorch sees no GPU: install its CUDA build and a driver, "
                              "or pass 0")
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else matrix products are not deterministic
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.cuda.set_device(device)
    return device


def compiled(model: nn.Module) -> Callable[..., Tensor]:
    """The model under torch.compile; its weights stay where they are.
    Raises: ConfigError where no compiler is installed."""
    if not has_compiler():
        raise ConfigError("--hardware.compile: torch.compile writes C++, and this worker's machine has no compiler: "
                          "install g++ there (apt-get install g++), or leave the option out")
    return torch.compile(model)


class TorchProfiler:
    """Watches the steps of `--run.profile`: a `Profiler` of jobs/common/step_profile.py."""

    title = "PyTorch's profiler"

    def __init__(self) -> None:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it says on the console that it starts and stops
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        self._profile = profile(activities=activities, acc_events=True)

    def start(self) -> None:
        self._profile.start()

    def marked(self, step: int, count: int) -> AbstractContextManager[object]:
        return record_function(f"{_STEP}{step}")

    def stop(self) -> None:
        self._profile.stop()

    def operations(self) -> Sequence[Operation]:
        """What a step itself takes, without any operation, counts as one, too."""
        found = [Operation(name=each.key, calls=each.count, self_ms=each.self_cpu_time_total / 1000,
                           device_ms=each.self_device_time_total / 1000)
                 for each in self._profile.key_averages()]
        steps = [each for each in found if each.name.startswith(_STEP)]
        between = Operation(name=_BETWEEN, calls=len(steps), self_ms=sum(each.self_ms for each in steps))
        return [between, *(each for each in found if not each.name.startswith(_STEP))]

    def trace(self) -> bytes:
        with tempfile.TemporaryDirectory(prefix="trainyard-") as folder:
            path = Path(folder) / "trace.json.gz"
            self._profile.export_chrome_trace(str(path))
            return path.read_bytes()
