"""Which workers hang: one that is not heard of, or all where none makes progress. A warning is given before."""

from jobs.common.config import RunConfig
from jobs.common.execution.generation_state import GenerationState
from jobs.common.training.rendezvous import View, WorkerInfo

SILENT_S = 5.0
TOLD_AFTER_S = 10.0
_FIRST_STEP_S = 300.0


class HangPolicy:
    """Looks at signs of life and of progress. Times are in seconds, by the controller's clock."""

    def __init__(self, run: RunConfig, *, can_replace: bool, storage: str) -> None:
        """storage: where the run is stored, for messages."""
        self._run, self._can_replace, self._storage = run, can_replace, storage
        self._progress: list[tuple[int, int]] | None = None
        self._progress_at = 0.0
        self._ended: set[str] = set()
        self._told: set[str] = set()

    def observe(self, view: View, now: float) -> None:
        """Takes in how far each worker is; at each look."""
        progress = [(beat.step, beat.ticks) for beat in view.heartbeats.values()]
        if progress != self._progress:
            self._progress, self._progress_at = progress, now

    def begin(self, now: float) -> None:
        """The time without progress counts from now on: a generation has begun, or workers that hung were ended."""
        self._progress, self._progress_at = None, now

    def limit_s(self, current: GenerationState) -> float:
        """How long a worker may be silent."""
        step_s = current.heartbeat.median_step_s if current.heartbeat else 0.0
        return max(self._run.hang_timeout_s, 10 * step_s)

    def silent(self, current: GenerationState, view: View) -> str:
        """Names those whose signs of life have stopped, once; "" if there is none.

        Whether a host is lost, the cluster decides some seconds later.
        """
        silent = {rank: m for rank, m in current.left.items() if view.silence_s.get(m.slot, 0.0) > TOLD_AFTER_S
                  and m.slot not in view.registered and m.worker not in self._told}
        if not silent:
            return ""
        self._told |= {member.worker for member in silent.values()}
        who = ", ".join(f"{rank} on {member.host}" for rank, member in silent.items())
        return (f"nothing has been heard of worker {who} for {TOLD_AFTER_S:g} s: it, its host or the way there may be "
                "lost")

    def stuck(self, current: GenerationState, view: View, now: float) -> str:
        """From half of the bound on: what keeps workers from making a step, and what will follow; else ""."""
        beats = {rank: beat for rank, m in current.workers.items() if (beat := view.heartbeats.get(m.slot))}
        rank = max(beats, key=lambda rank: beats[rank].storage_wait_s, default=None)
        if rank is not None and beats[rank].storage_wait_s > self.limit_s(current) / 2:
            wait_s, still_s = beats[rank].storage_wait_s, beats[rank].storage_still_s
            return (f"rank {rank} on {current.workers[rank].host} has waited {wait_s:.0f} s for storage "
                    f"{self._storage}, which has stood still for {still_s:.0f} s: look at its server and the way "
                    f"there; after {self._run.storage_timeout_s:g} s it is taken to hang (--run.storage-timeout-s)")
        idle_s, limit_s = now - self._progress_at, self._progress_limit_s(current)
        if idle_s > limit_s / 2:
            what = "and are started again from the last checkpoint" if self._can_replace else "and a stop ends the run"
            return (f"no worker has got on for {idle_s:.0f} s: after {limit_s:.0f} s they are taken to hang "
                    f"(--run.hang-timeout-s), {what}")
        return ""

    def hung(self, current: GenerationState, view: View, now: float) -> dict[int, WorkerInfo]:
        """Which workers that train hang, by rank: those that are silent, or without progress the silent ones or all."""
        hung = self._silent_for(self.limit_s(current), current.left, view)
        if now - self._progress_at > self._progress_limit_s(current):
            hung = self._silent_for(SILENT_S, current.left, view) or current.left
        return self._present(hung)

    def hung_before_return(self, current: GenerationState, view: View) -> dict[int, WorkerInfo]:
        """Which workers hang, by rank, of those that are to leave a generation and to register again."""
        absent = {rank: m for rank, m in current.workers.items() if m.slot not in view.registered}
        return self._present(self._silent_for(self.limit_s(current), absent, view))

    def ended(self, hung: dict[int, WorkerInfo], now: float) -> None:
        """These have been ended: they are not named again, and the others get time to notice."""
        self._ended |= {member.worker for member in hung.values()}
        self.begin(now)

    def _progress_limit_s(self, current: GenerationState) -> float:
        """How long all may be without progress. Before the first step a framework compiles and sets itself up."""
        limit = self.limit_s(current)
        begun = current.heartbeat is not None and "first_step" in current.heartbeat.marks
        return limit if begun else max(limit, _FIRST_STEP_S)

    def _silent_for(self, seconds: float, workers: dict[int, WorkerInfo], view: View) -> dict[int, WorkerInfo]:
        return {rank: m for rank, m in workers.items() if view.silence_s.get(m.slot, 0.0) > seconds}

    def _present(self, hung: dict[int, WorkerInfo]) -> dict[int, WorkerInfo]:
        return {rank: m for rank, m in hung.items() if m.worker not in self._ended}
