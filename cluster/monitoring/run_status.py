"""What the training runs of a cluster say of themselves, for `python -m cluster status`: kept in Ray's control store.

A run's driver writes a status every two seconds, under its job's id, and removes it when it ends; of a driver that was
killed the status stays, and is not shown since its job no longer runs.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import json
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

from rich.markup import escape
from rich.table import Table

from cluster.core.background import in_background, logged
from cluster.core.control_store import Gcs, JobInfo, Node
from cluster.core.documents import DocumentError, parse_json
from cluster.core.errors import ClusterError

_NAMESPACE, _PREFIX = b"trainyard", "run/"
_EVERY_S = 2.0
_TIMEOUT_S = 2.0
_SILENT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class RankTime:
    """Of one worker. busy_s: seconds of a step that it does not wait for others, median.
    passes: micro-batches of a step."""

    rank: int
    host: str
    node_id: str | None
    busy_s: float
    passes: int = 1


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """How a run goes. Times in seconds; step_s: of a median step, of all workers alike."""

    name: str
    job: str
    storage: str
    phase: str
    step: int
    total_steps: int
    step_s: float
    goodput: float
    restarts: int
    ranks: tuple[RankTime, ...]
    scores: str = ""
    """Of the last evaluation: `accuracy 0.9812 loss 0.2211`."""
    straggler: int | None = None
    """The rank that the others wait for."""
    stuck: str = ""
    """Why the run does not get on, as its driver says: a sentence."""

    @staticmethod
    def parse(text: bytes) -> "RunStatus":
        """Raises: DocumentError if it is not a status, or one of another version of this project."""
        return parse_json(text, RunStatus)


class RunStatusPublisher:
    """Publishes the status of a driver's run.
    A thread of its own does: a control store that hangs keeps nobody waiting."""

    def __init__(self, address: str, job_id: str) -> None:
        self._gcs, self._key = Gcs(address, timeout_s=_TIMEOUT_S), f"{_PREFIX}{job_id}".encode()
        self._status: RunStatus | None = None
        self._published_at = 0.0
        self._closed = threading.Event()
        self._keeping = in_background("trainyard-run-status", self._keep)
        self._keeping.add_done_callback(logged("what `python -m cluster status` shows of this run"))

    def publish(self, make: Callable[[], RunStatus]) -> None:
        """Returns at once; `make` is called when a new status is wanted, every second."""
        if (now := time.monotonic()) - self._published_at >= _EVERY_S / 2:
            self._published_at, self._status = now, make()

    def close(self) -> None:
        self._closed.set()
        wait([self._keeping], _EVERY_S + 2 * _TIMEOUT_S)

    def _keep(self) -> None:
        written: RunStatus | None = None
        while not self._closed.wait(_EVERY_S if written else 0.1):
            if (status := self._present()) is not None and status != written:
                with suppress(ClusterError):  # it is written again
                    self._gcs.write(self._key, json.dumps(asdict(status)).encode(), _NAMESPACE)
                    written = status
        with suppress(ClusterError):
            self._gcs.delete(self._key, _NAMESPACE)

    def _present(self) -> RunStatus | None:
        """The status; where the driver itself has given none for a while, it says so."""
        status, silent_s = self._status, time.monotonic() - self._published_at
        if status is None or silent_s < _SILENT_S:
            return status
        return replace(status, stuck=f"its driver has not looked at its workers for {silent_s:.0f} s: it reads a "
                       "large checkpoint, or hangs on its storage")


def read_runs(gcs: Gcs, jobs: Sequence[JobInfo]) -> list[RunStatus]:
    """The statuses of the runs whose drivers are among these jobs, by name. Raises: ClusterError."""
    found = [gcs.read(f"{_PREFIX}{job.job_id}".encode(), _NAMESPACE) for job in jobs if job.running]
    runs: list[RunStatus] = []
    for text in found:
        with suppress(DocumentError):  # of another version of this project
            runs += [RunStatus.parse(text)] if text else []
    return sorted(runs, key=lambda run: run.name)


def run_table(runs: Sequence[RunStatus]) -> Table:
    table = Table("run", "job", "step", "left", "validation", "workers", "s a step", "computing, s", "goodput",
                  "restarts",
                  title="training runs",
                  title_justify="left")
    for run in runs:
        busy = [rank.busy_s for rank in run.ranks]
        span = f"{min(busy):.3g} to {max(busy):.3g}" if busy else "–"
        left = max(0, run.total_steps - run.step) * run.step_s
        table.add_row(escape(run.name), run.job, f"{run.step} of {run.total_steps}" if run.total_steps else run.phase,
                      f"{left / 60:.0f} min" if left >= 90 else f"{left:.0f} s" if left else run.phase or "–",
                      run.scores or "–", str(len(run.ranks)), f"{run.step_s:.3g}", span, f"{run.goodput:.0%}",
                      str(run.restarts))
    return table


def run_problems(runs: Sequence[RunStatus], nodes: Sequence[Node]) -> list[str]:
    """A run that does not get on, and a worker that keeps the others of its run waiting."""
    names = {node.node_id: node.name for node in nodes}
    slow = [_slow(run, rank, names) for run in runs for rank in run.ranks if rank.rank == run.straggler]
    return [*(f"run {run.name}: {run.stuck}" for run in runs if run.stuck), *slow]


def _slow(run: RunStatus, slow: RankTime, names: dict[str, str]) -> str:
    others = sorted(rank.busy_s for rank in run.ranks if rank is not slow)
    where = f"{names.get(slow.node_id or '') or (slow.node_id or 'this machine')[:12]} ({slow.host})"
    return (f"run {run.name}: rank {slow.rank} on node {where} computes {slow.busy_s:.3g} s a step, the others "
            f"{others[len(others) // 2]:.3g} s, and wait for it: look at what else runs on that node, or drain it")
