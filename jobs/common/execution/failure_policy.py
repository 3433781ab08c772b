"""What follows a failure: the run recovers, or it ends. The run state and logs/errors keep the account of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cluster.core import errors
from cluster.core.errors import (
    ClusterError,
    OutOfMemoryError,
    StoppedError,
    StorageError,
    TrainingFailedError,
    TrainyardError,
)
from cluster.core.storage import Store
from jobs.common.checkpoint.optimal_interval import mean_time_between_failures_s
from jobs.common.config import RunConfig
from jobs.common.execution.executors import Executor
from jobs.common.execution.generation_state import GenerationState
from jobs.common.execution.run_state import RunState
from jobs.common.training.rendezvous import WorkerExit, WorkerInfo

MAX_ROLLBACKS = 3
_FAILURES_THAT_TELL = 3


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is to be done: a line to say, and the error that ends the run; None: it recovers."""

    says: str = ""
    error: TrainyardError | None = None


class FailurePolicy:
    """Keeps the account of failures and judges them."""

    def __init__(self, run: RunConfig, *, run_state: RunState, store: Store, executor: Executor,
                 remedy: Callable[[str | None], str]) -> None:
        """remedy: what needs less memory in a phase of a worker's, see memory.py."""
        self._run, self._run_state, self._store = run, run_state, store
        self._executor, self._remedy = executor, remedy

    def failed(self, what: str) -> Verdict:
        """One failure, of which `run.max_failures` allows some."""
        self._run_state.failure(what)
        limit, failures = self._run.max_failures, self._run_state.failures
        if 0 <= limit < failures:
            return Verdict(error=TrainingFailedError(
                f"{what}, and --run.max-failures {limit} is spent; the workers' errors are in "
                f"{self._store.location('logs/errors')}: mend the cause and run the same command again to continue"
            ))
        return Verdict(says=f"{what}: recovering (failure {failures} of {limit if limit >= 0 else 'any number'})")

    def worker_failed(self, left: WorkerExit, generation: str) -> Verdict:
        """A worker met an error: one that its user can fix ends the run. generation: "" before the first one."""
        known: type[object] | None = getattr(errors, left.kind, None)
        if known is not None and issubclass(known, TrainyardError):
            return Verdict(error=known(left.message))
        path = f"logs/errors/{generation}-rank-{left.slot}.txt"
        self._store.write_text(path, left.traceback)
        self._run_state.event(f"worker {left.slot}: {left.kind}: {left.message} ({path})")
        says = f"worker {left.slot} failed: {left.kind}: {left.message}"
        if self._executor.can_replace and generation:
            return Verdict(says=says)
        return Verdict(says=says, error=TrainingFailedError(  # another one would fail alike
            f"{left.kind}: {left.message} (traceback in {self._store.location(path)})"
        ))

    def generation_broke(self, workers: Mapping[int, WorkerInfo], former: GenerationState) -> Verdict:
        """The workers of the next generation, by rank, tell why they have left the former one."""
        generation = former.generation
        bad = sorted({step for member in workers.values() for step in member.bad_steps})
        if bad:
            return self._rolled_back(bad)
        for rank, member in workers.items():
            if member.why:
                self._store.write_text(f"logs/errors/{generation}-rank-{rank}-peer.txt", member.why)
        gone = [rank for rank, member in workers.items() if member.last_step < 0]
        lost = ", ".join(map(str, gone))
        if gone and (who := self._executor.starved([former.workers[rank] for rank in gone if rank in former.workers])):
            how = self._remedy(former.heartbeat.phase if former.heartbeat else None)
            return Verdict(error=OutOfMemoryError(f"worker {lost} was ended by {who}, for want of memory: {how}"))
        return self.failed(f"worker {lost} was lost" if lost else "the workers lost each other")

    def _rolled_back(self, bad: list[int]) -> Verdict:
        self._run_state.exclude(bad)
        says = f"loss or gradient not finite at steps {bad}: back to the last checkpoint, their rows left out"
        if self._run_state.rollbacks <= MAX_ROLLBACKS:
            return Verdict(says=says)
        return Verdict(says=says, error=TrainingFailedError(
            f"the loss or gradient was still not finite after {MAX_ROLLBACKS} returns to a checkpoint, "
            f"{len(self._run_state.excluded_steps)} steps left out: lower --optim.lr, or look at the data"
        ))

    def mean_time_between_s(self, num_nodes: int) -> float | None:
        """The run's mean time between failures that need storage: by what is known of a node, else by what it has seen
        itself. Of n failures that it has seen k were not made good out of a worker's memory: (k + 1)/(n + 1) are taken
        to need storage, all of them before there was any."""
        seen = self._run_state
        need_storage = (seen.restarts - seen.memory_resumes + 1) / (seen.restarts + 1)
        if self._run.mtbf_h is not None:
            return mean_time_between_failures_s(self._run.mtbf_h, num_nodes) / need_storage
        return seen.elapsed_s / seen.restarts / need_storage if seen.restarts >= _FAILURES_THAT_TELL else None


def resumable(error: Exception) -> Exception:
    """Storage or a cluster that is lost while training goes on: the checkpoints are there, and so is the way on."""
    if isinstance(error, StorageError | ClusterError | ConnectionError):
        return StoppedError(f"{error}; the run goes on from its last checkpoint: run the same command again when that "
                            "is mended")
    return error
