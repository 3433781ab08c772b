"""The driver's part of a run while it trains: begin generations, watch over them, decide what follows a death.

    start a group ─► gather: all register ─► begin a generation from the newest intact checkpoint ─► watch
          ▲            ▲                                                                                 │
          │            └── a worker died, or hung and was killed: survivors, successor register ◄──────┤
          └── the cluster grew, shrank, or is to lose a node: checkpoint, other workers ◄────────────────┤
                                                           finished, stopped, failed: the end ◄──────────┘

Its phases are in phase.py. What is to be done about failures, hangs, preemption and room, the policies beside it say.
"""

import time
from collections.abc import Callable
from typing import Literal

from cluster.core.errors import StoppedError, TrainingFailedError
from cluster.core.loop_clock import LoopClock
from cluster.core.storage import Store
from jobs.common.config import RunConfig
from jobs.common.execution.executors import Executor, GroupLostError, HungError
from jobs.common.execution.failure_policy import FailurePolicy, Verdict
from jobs.common.execution.generation_start import GenerationStart
from jobs.common.execution.generation_state import ControllerCallbacks, GenerationState
from jobs.common.execution.hang_policy import SILENT_S, HangPolicy
from jobs.common.execution.memory import remedy
from jobs.common.execution.phase import Phase, PhaseTracker
from jobs.common.execution.preemption_policy import PreemptionPolicy
from jobs.common.execution.room import LOOK_S, RoomSearch
from jobs.common.execution.run_state import RunState
from jobs.common.execution.scaling_policy import ROOM_EVERY_S, ScalingPolicy
from jobs.common.execution.straggler import rank_times
from jobs.common.execution.worker import WorkerSpec
from jobs.common.training.rendezvous import View, WorkerExit, WorkerInfo

_PACING_EVERY_S = 1.0
_PLACED_S = 15.0

End = Literal["finished", "stopped"]


class Controller:
    """Carries a group of workers through deaths to the end of training. Not to be used twice."""

    def __init__(self, *, run: RunConfig, executor: Executor, spec: WorkerSpec, run_store: Store, num_shards: int,
                 run_state: RunState, callbacks: ControllerCallbacks,
                 now: Callable[[], float] = time.monotonic) -> None:
        """now: what time it is, in seconds. While this process is paused, no worker is taken for one that hangs."""
        self._clock = LoopClock(now)
        self._run, self._executor, self._spec = run, executor, spec
        self._store, self._run_state, self._callbacks = run_store, run_state, callbacks
        self._failures = FailurePolicy(run, run_state=run_state, store=run_store, executor=executor,
                                       remedy=lambda phase: remedy(spec.parsed(), num_shards, phase=phase))
        self._hangs = HangPolicy(run, can_replace=executor.can_replace, storage=run_store.location())
        self._preemption = PreemptionPolicy()
        self._scaling = ScalingPolicy(run, num_shards=num_shards, spares=run.spares if executor.can_replace else 0,
                                      possible_workers=executor.possible_workers)
        self._room = RoomSearch(run, executor=executor, scaling=self._scaling, clock=self._clock, callbacks=callbacks)
        self._generations = GenerationStart(run, store=run_store, run_state=run_state, num_shards=num_shards,
                                            rendezvous=executor.rendezvous, tell=self._tell)
        self._phase, self._current, self._former = PhaseTracker(), GenerationState(), set[str]()
        self._resize_to, self._pacing_at = 0, 0.0

    def start(self, num_workers: int, spares: int | None = None) -> None:
        """Starts a group; `supervise` carries it on.
        spares: how many standby workers; by default as the run asks for."""
        spares = self._scaling.spares if spares is None else spares
        self._renew(GenerationState(num_workers=num_workers, spares=spares))
        self._phase.enter(Phase.GATHERING, self._clock.look())
        self._scaling.pause(self._clock.now + _PLACED_S)
        self._executor.start(self._spec, num_workers + spares)

    def supervise(self) -> End:
        """Until training has ended.

        Raises: TrainingFailedError, StoppedError, or what a worker met that its user can fix. Then no worker is left.
        """
        try:
            while (end := self._turn()) is None:
                time.sleep(LOOK_S)
            return end
        except BaseException:
            self._end_group(kill=True)
            raise
        finally:
            self._run_state.account.ended()
            self._phase.enter(Phase.ENDED, self._clock.now)

    def _turn(self) -> End | None:
        """Of the loop: looks once, and does what is to be done."""
        self._clock.look()
        ended = self._executor.ended()  # asked first, so that the view holds all that those who ended had to say
        view = self._executor.rendezvous.poll()
        self._take_in(view)
        try:
            self._executor.maintain()
        except GroupLostError as error:
            self._group_lost(error)
            return None
        if (end := self._end_of_group(view, ended)) is not None:
            return end
        if silent := self._hangs.silent(self._current, view):
            self._tell(silent, silent)
        registered_again = any(member.slot in view.registered for member in self._current.workers.values())
        if self._phase.gathering or registered_again:
            self._gather(view)
        else:
            self._watch(view)
        return None

    # ── what has been heard ──
    def _take_in(self, view: View) -> None:
        current = self._current
        if 0 in current.workers:
            current.heartbeat = view.heartbeats.get(current.workers[0].slot, current.heartbeat)
        # A resumed worker reports some rows once more.
        current.reports = [row for row in view.reports if row not in self._run_state.history]
        current.alive = sum(silence < SILENT_S for silence in view.silence_s.values())
        self._hangs.observe(view, self._clock.now)
        highest = max((beat.step for beat in view.heartbeats.values()), default=0)
        self._run_state.observe(current.heartbeat, highest, current.reports, current.num_workers + current.spares)
        for left in view.exits:
            self._left(left)
        self._look_for_straggler(view)
        told = current.stuck
        current.stuck = "" if self._phase.gathering else self._hangs.stuck(current, view, self._clock.now)
        if current.stuck and not told:
            self._callbacks.log(current.stuck)
        self._callbacks.on_update(current)

    def _left(self, left: WorkerExit) -> None:
        if left.worker in self._former:
            return  # of an earlier generation: what it met is its own affair
        if left.outcome == "error":
            self._obey(self._failures.worker_failed(left, self._current.generation))
        for rank, member in self._current.workers.items():
            if member.worker == left.worker:
                self._current.exits[rank] = left

    def _look_for_straggler(self, view: View) -> None:
        current, now = self._current, self._clock.now
        if now < self._pacing_at:
            return
        self._pacing_at = now + _PACING_EVERY_S
        current.times = rank_times(current.workers, view.heartbeats)
        if current.heartbeat is None or len(current.times) < len(current.workers):
            return
        if text := current.pacing.hear(current.times, current.heartbeat.median_step_s, now):
            self._tell(text, text)

    def _tell(self, says: str, event: str) -> None:
        """A line for who watches now, and a note for who reads the run's report."""
        self._run_state.event(event)
        self._callbacks.log(says)

    # ── the end of a group, or of the run ──
    def _end_of_group(self, view: View, ended: bool) -> End | None:
        current = self._current
        if current.workers and len(current.exits) == current.num_workers:
            return self._after_all_exits()
        if ended and not view.registered and len(current.exits) < current.num_workers:
            self._failed("the workers ended")
            if not self._executor.can_replace:
                raise TrainingFailedError("the worker ended without a word: see the message before this one")
            self._restart(current.num_workers)
        return None

    def _after_all_exits(self) -> End | None:
        self._end_group()  # standby workers still wait
        exits = self._current.exits.values()
        if all(left.outcome == "finished" for left in exits):
            return "finished"
        if failed := [left for left in exits if left.outcome == "error"]:
            self._failed("; ".join(f"worker {each.slot} failed ({each.kind}: {each.message})" for each in failed))
            self._restart(self._current.num_workers)
        elif self._phase.present not in (Phase.RESIZING, Phase.MOVING) or self._callbacks.stop_requested():
            return "stopped"
        elif self._phase.present is Phase.MOVING:
            self._start_where_there_is_room()
        else:
            self._restart(self._resize_to)
        return None

    def _group_lost(self, error: GroupLostError) -> None:
        path = f"logs/errors/{self._current.generation or 'start'}-group.txt"
        self._store.write_text(path, str(error.__cause__ or error))
        self._failed(str(error))
        self._start_where_there_is_room()  # not where the hosts were that went with it

    def _failed(self, what: str) -> None:
        self._obey(self._failures.failed(what))

    def _obey(self, verdict: Verdict) -> None:
        if verdict.says:
            self._callbacks.log(verdict.says)
        if verdict.error is not None:
            raise verdict.error

    def _end_group(self, *, kill: bool = False) -> None:
        self._executor.rendezvous.abort()
        if kill:
            self._executor.kill(list(self._current.left.values()))
        self._executor.end()

    # ── another group ──
    def _restart(self, num_workers: int, spares: int | None = None) -> None:
        self._end_group()
        self._executor.rendezvous.reset()
        self.start(num_workers, spares)

    def _start_where_there_is_room(self) -> None:
        """Another group, as large as it may be now. Raises: StoppedError if there is no room within `run.wait`."""
        expected = max(self._scaling.room() or 0, self._run.min_workers)  # with what this group holds
        self._end_group()
        self._phase.enter(Phase.WAITING_FOR_ROOM, self._clock.now)
        self._restart(*self._scaling.group(self._room.wait(expected, self._current)))

    # ── gathering: some workers are here, others are starting, or will never come ──
    def _gather(self, view: View) -> None:
        if not self._phase.gathering:
            self._phase.enter(Phase.GATHERING, self._clock.now)
            self._scaling.pause(self._clock.now + 2 * ROOM_EVERY_S)
            self._executor.rendezvous.break_up()
        if self._callbacks.stop_requested():
            raise StoppedError("stopped while workers were starting: run the same command again to continue")
        if self._current.exits:  # some had finished when another died: they do not come back
            self._failed("a worker was lost at the very end")
            self._restart(self._current.num_workers)
        elif len(view.registered) >= self._current.num_workers:
            self._begin(view.registered)
        else:
            self._end_hung(self._hangs.hung_before_return(self._current, view), view)
            if self._scaling.gives_up(self._current, self._phase.since, self._clock.now):
                self._failed("there is no room for all workers any more")
                self._start_where_there_is_room()

    def _begin(self, joined: dict[int, WorkerInfo]) -> None:
        workers = self._current.ranks_for(joined)
        if self._current.generation:
            self._run_state.reached(max(member.last_step for member in workers.values()))
            self._obey(self._failures.generation_broke(workers, self._current))
        num_nodes = len({member.node_id or member.host for member in workers.values()})
        generation, where = self._generations.begin(workers, self._failures.mean_time_between_s(num_nodes))
        self._renew(GenerationState(num_workers=len(workers), spares=self._current.spares, generation=generation,
                                    workers=workers))
        self._phase.enter(Phase.TRAINING, self._clock.look())
        self._hangs.begin(self._clock.now)
        self._scaling.pause(self._clock.now + ROOM_EVERY_S)
        self._callbacks.log(f"training on {len(workers)} worker{'s' * (len(workers) > 1)}, {where}")

    def _renew(self, current: GenerationState) -> None:
        self._former |= {member.worker for member in self._current.workers.values()}
        self._current = current

    # ── watching ──
    def _watch(self, view: View) -> None:
        self._end_hung(self._hangs.hung(self._current, view, self._clock.now), view)
        if self._callbacks.stop_requested() and self._phase.present is not Phase.STOPPING:
            self._stop_for(Phase.STOPPING)
        if self._phase.present is Phase.TRAINING:
            self._look_for_preemption()
        if self._phase.present is Phase.TRAINING:
            self._look_for_room()

    def _look_for_preemption(self) -> None:
        members = list(self._current.workers.values())
        if preemption := self._preemption.look(lambda: self._executor.leaving(members), self._clock.now):
            self._tell(preemption.says, preemption.event)
            self._stop_for(preemption.phase)

    def _look_for_room(self) -> None:
        """An elastic run takes more workers when there is room for them, after a checkpoint."""
        if possible := self._scaling.growth(self._current, self._clock.now):
            self._tell(f"there is room for {possible} workers: checkpoint, then on with them",
                       f"resized from {self._current.num_workers} to {possible} workers")
            self._resize_to = possible
            self._stop_for(Phase.RESIZING)

    def _stop_for(self, phase: Phase) -> None:
        self._phase.enter(phase, self._clock.now)
        self._executor.rendezvous.request_stop()

    def _end_hung(self, hung: dict[int, WorkerInfo], view: View) -> None:
        if not hung:
            return
        if not self._executor.can_replace:  # perhaps it is in a debugger: it is ended only where a stop is asked for
            if self._phase.present is Phase.STOPPING:
                raise HungError("stopped without a last checkpoint: the worker has made no progress for "
                                f"{self._hangs.limit_s(self._current):.0f} s: run the same command again to continue "
                                "from the one before")
            return
        folder = f"logs/stacks/{self._current.generation}"
        here = {m.slot: rank for rank, m in self._current.workers.items() if m.slot not in view.registered}
        for slot, stack in self._executor.stacks([m for m in self._current.workers.values() if m.slot in here]).items():
            self._store.write_text(f"{folder}/rank-{here[slot]}.txt", stack)
        ranks, where = ", ".join(map(str, hung)), self._store.location(folder)
        self._tell(f"worker {ranks} hangs and is ended; the stacks of all ranks are in {where}",
                   f"worker {ranks} hung; the stacks of all ranks are in {folder}")
        self._run_state.account.hung()
        self._executor.kill(list(hung.values()))
        self._hangs.ended(hung, self._clock.look())
