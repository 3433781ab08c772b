"""Chosen steps of a run under the profiler of its framework: `--run.profile 10-20`.

The loop (training/fit.py) tells a `StepProfile` of each call that makes steps, and a job hands over its framework's
`Profiler`. A trace is of successive steps of one range: it ends before an evaluation, and where a run stops. A worker
that leaves a generation drops the trace that is open. A step that is done again is profiled again.
"""

import json
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Protocol

from cluster.core.documents import load_json
from cluster.core.errors import ConfigError
from cluster.core.storage import Store
from jobs.common.config import RunConfig, require

MOST_OPERATIONS = 15
_FOLDER, _TRACE, _TABLE = "profile", ".trace.json.gz", ".json"


@dataclass(frozen=True, kw_only=True)
class Operation:
    """All calls of one kind of operation. Times in milliseconds, without what it calls."""

    name: str
    calls: int
    self_ms: float = 0.0
    """On the CPU, of all threads."""
    device_ms: float = 0.0
    """On the GPU."""


class Profiler(Protocol):
    """A framework's own: `start`, then steps, `stop`, and what it has seen."""

    title: str
    """What people call it."""

    def start(self) -> None: ...

    def marked(self, step: int, count: int) -> AbstractContextManager[object]:
        """Around a call that makes `count` steps, the first of them with this number: marks it in the trace."""
        ...

    def stop(self) -> None: ...

    def operations(self) -> Sequence[Operation]: ...

    def trace(self) -> bytes:
        """JSON as Chrome and Perfetto read it, packed by gzip."""
        ...


@dataclass(frozen=True, kw_only=True)
class ProfileTable:
    """What is kept of a trace beside it."""

    title: str
    rank: int
    first: int
    last: int
    """Steps, counted from 1."""
    trace: str
    """Its path in the run's folder."""
    self_ms: float
    device_ms: float
    """Of all operations."""
    operations: tuple[Operation, ...]
    """Those that took most, on the GPU where there is one."""


def tables(store: Store) -> list[ProfileTable]:
    """Of a run's traces, by rank and step. Raises: DocumentError."""
    paths = [file.path for file in store.files(_FOLDER) if not file.path.endswith(_TRACE)]
    return sorted((load_json(store, path, ProfileTable) for path in paths), key=lambda each: (each.rank, each.first))


def missing(run: RunConfig, found: Sequence[ProfileTable]) -> list[str]:
    """The steps of ranks that were to be profiled and have no trace, in words."""
    return [f"{steps_shown(left[0], left[-1])} of rank {rank}" for rank in run.profiled_ranks for each in run.profiled
            if (left := [step for step in each
                         if not any(of.rank == rank and of.first <= step <= of.last for of in found)])]


def steps_shown(first: int, last: int) -> str:
    return f"step {first}" if first == last else f"steps {first} to {last}"


def check_reached(run: RunConfig, steps: int) -> None:
    """steps: of the whole run. Raises: ConfigError for steps that it never makes."""
    last = max((each.stop - 1 for each in run.profiled), default=0)
    require(last <= steps, "run.profile", run.profile, f"the run has {steps:,} steps, and there is no step {last:,}")


class StepProfile:
    """What `--run.profile` asks of one worker, in one generation. Use it as a context."""

    def __init__(self, run: RunConfig, make: Callable[[], Profiler] | None, *, store: Store, rank: int,
                 waiting: Callable[[], AbstractContextManager[None]]) -> None:
        """waiting: around what takes long, and is no hang.
        Raises: ConfigError where a job hands over no profiler, and one is asked for."""
        if run.profiled and make is None:
            raise ConfigError("--run.profile: this job has no profiler: leave the option out, or hand one to `fit`, as "
                              "jobs/mlp/train.py does")
        self._ranges, self._make = run.profiled, make if rank in run.profiled_ranks else None
        self._store, self._rank, self._waiting = store, rank, waiting
        self._profiler: Profiler | None = None
        self._range, self._first, self._last = range(0), 0, 0

    def __enter__(self) -> "StepProfile":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if error is None:
            self.end()
        elif self._profiler is not None:
            self._profiler.stop()  # else it would go on in this process's next generation
            self._profiler = None

    def bound(self, step: int, last: int) -> int:
        """Up to which step a call goes at most that begins after `step` steps, on all ranks: `last`, or where a range
        begins or ends before."""
        edges = (edge for each in self._ranges for edge in (each.start - 1, each.stop - 1))
        return min((edge for edge in edges if step < edge < last), default=last)

    def around(self, step: int, count: int) -> AbstractContextManager[object]:
        """Around a call that makes `count` steps after `step` steps."""
        return self._around(step + 1, count) if self._ranges and self._make else nullcontext()

    @contextmanager
    def _around(self, step: int, count: int) -> Generator[None]:
        wanted = next((each for each in self._ranges if step in each), range(0))
        if wanted != self._range:
            self.end()
        if wanted and self._profiler is None and self._make:
            self._profiler, self._range, self._first = self._make(), wanted, step
            with self._waiting():
                self._profiler.start()
        with self._profiler.marked(step, count) if self._profiler else nullcontext():
            yield
        self._last = step + count - 1

    def ended(self, step: int) -> bool:
        """Whether a range ends after `step` steps: then its trace has been written."""
        if self._profiler is None or step < self._range.stop - 1:
            return False
        self.end()
        return True

    def end(self) -> None:
        """Writes the trace that is open, if one is. Raises: StorageError, StorageFullError."""
        profiler, self._profiler = self._profiler, None
        if profiler is None:
            return
        name = f"{_FOLDER}/rank-{self._rank}-steps-{self._first}-{self._last}"
        with self._waiting():
            profiler.stop()
            found = sorted(profiler.operations(), key=lambda each: (-each.device_ms, -each.self_ms))
            table = ProfileTable(
                title=profiler.title, rank=self._rank, first=self._first, last=self._last, trace=name + _TRACE,
                self_ms=sum(each.self_ms for each in found), device_ms=sum(each.device_ms for each in found),
                operations=tuple(found[:MOST_OPERATIONS]))
            self._store.write_bytes(name + _TRACE, profiler.trace())
            self._store.write_text(name + _TABLE, json.dumps(asdict(table), indent=1))
