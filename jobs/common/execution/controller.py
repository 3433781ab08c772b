"""The driver's part of a run while it trains: begin generations, watch over them, decide what follows a death.

    start a group ─► gather: all register ─► begin a generation from the newest intact checkpoint ─► watch
          ▲            ▲                                                                                 │
          │            └── a worker died, or hung and was killed: survivors, successor register ◄──────┤
          └── the cluster grew, shrank, or is to lose a node: checkpoint, other workers ◄────────────────┤
                                                           finished, stopped, failed: the end ◄──────────┘
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from cluster.core import errors
from cluster.core.errors import ClusterError, StoppedError, TrainingFailedError, TrainyardError
from cluster.core.loop_clock import LoopClock
from cluster.core.storage import Store
from cluster.monitoring.run_status import RankTime
from jobs.common.checkpoint.optimal_interval import mean_time_between_failures_s
from jobs.common.checkpoint.store import Checkpoint, Checkpoints
from jobs.common.config import RunConfig
from jobs.common.execution.executors import Executor, GroupLostError, HungError
from jobs.common.execution.run_state import RunState
from jobs.common.execution.straggler import StragglerWatch
from jobs.common.execution.worker import WorkerSpec
from jobs.common.provenance import differences, environment
from jobs.common.training.rendezvous import Assignment, View, WorkerExit, WorkerInfo
from jobs.common.training.step_file import take_marks

LOOK_S = 0.05
_SILENT_S = 5.0
_TOLD_AFTER_S = 10.0
_ROOM_EVERY_S = 5.0
_LEAVING_EVERY_S = 1.0
_PACING_EVERY_S = 1.0
_RELEASE_S = 5.0
_PLACED_S = 15.0
_GATHER_S = 180.0
_FIRST_STEP_S = 300.0
_MAX_ROLLBACKS = 3
_FAILURES_THAT_TELL = 3

End = Literal["finished", "stopped"]


@dataclass(kw_only=True)
class GenerationState:
    """What is known of the present generation. `workers` by rank, empty until the first one begins; `state` is rank 0's."""

    num_workers: int = 0
    generation: str = ""
    workers: dict[int, WorkerInfo] = field(default_factory=dict[int, WorkerInfo])
    state: dict[str, Any] = field(default_factory=dict[str, Any])
    times: dict[int, RankTime] = field(default_factory=dict[int, RankTime])
    """What each rank's steps take it, without waiting for others."""
    pacing: StragglerWatch = field(default_factory=StragglerWatch)
    reports: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    alive: int = 0
    exits: dict[int, WorkerExit] = field(default_factory=dict[int, WorkerExit])
    stopping: Literal["", "stop", "resize", "move"] = ""
    stuck: str = ""
    """What has kept all from making a step for a while, and what will be done about it: a sentence."""


@dataclass(frozen=True, kw_only=True)
class ControllerCallbacks:
    """Who is told, and who asks. `stop_requested`: a signal came, or the job is being stopped."""

    on_update: Callable[[GenerationState], None]
    log: Callable[[str], None]
    stop_requested: Callable[[], bool]


class Controller:
    """Carries a group of workers through deaths to the end of training. Not to be used twice."""

    def __init__(self, *, run: RunConfig, executor: Executor, spec: WorkerSpec, run_store: Store, num_shards: int,
                 run_state: RunState, callbacks: ControllerCallbacks, now: Callable[[], float] = time.monotonic) -> None:
        """now: what time it is, in seconds. While this process is paused, no worker is taken for one that hangs."""
        self._clock = LoopClock(now)
        self._run, self._executor, self._spec, self._store = run, executor, spec, run_store
        self._num_shards, self._run_state, self._callbacks = num_shards, run_state, callbacks
        self._spares = self._started_spares = run.spares if executor.can_replace else 0
        self._checkpoints = Checkpoints(run_store.child("checkpoints"))
        self._current = GenerationState()
        self._gathering_since: float | None = None
        self._progress: tuple[Any, float] = (None, 0.0)
        self._room_at = self._leaving_at = self._pacing_at = 0.0
        self._resize_to = 0
        self._killed: set[str] = set()
        self._told: set[str] = set()
        self._former: set[str] = set()

    def start(self, num_workers: int, spares: int | None = None) -> None:
        """Starts a group; `supervise` carries it on. spares: how many spare workers; as many as the run asks for, if None."""
        self._started_spares = self._spares if spares is None else spares
        self._renew(GenerationState(num_workers=num_workers))
        self._gathering_since = self._clock.look()
        self._room_at = self._gathering_since + _PLACED_S
        self._executor.start(self._spec, num_workers + self._started_spares)

    def supervise(self) -> End:
        """Until training has ended.

        Raises: TrainingFailedError, StoppedError, or what a worker met that its user can fix (UserError). Then, and after any
        other error, no worker is left.
        """
        try:
            return self._supervise()
        except BaseException:
            self._abandon()
            raise

    def _supervise(self) -> End:
        while True:
            time.sleep(LOOK_S)
            self._clock.look()
            ended = self._executor.ended()  # asked first, so that the view holds all that those who ended had to say
            view = self._executor.rendezvous.poll()
            self._take_in(view)
            try:
                self._executor.maintain()
            except GroupLostError as error:
                path = f"logs/errors/{self._current.generation or 'start'}-group.txt"
                self._store.write_text(path, str(error.__cause__ or error))
                self._failed(str(error))
                self._start_where_there_is_room()  # not where the hosts were that went with it
                continue
            if (end := self._end_of_group(view, ended)) is not None:
                return end
            self._look_for_silence(view)
            if self._gathering_since is not None or any(m.slot in view.registered for m in self._current.workers.values()):
                self._gather(view)
            else:
                self._look_for_hang(view)
                self._pass_on_stop()
                self._look_for_preemption()
                self._look_for_room()

    def _renew(self, current: GenerationState) -> None:
        self._former |= {member.worker for member in self._current.workers.values()}
        self._current = current

    # ── what has been heard ──
    def _take_in(self, view: View) -> None:
        current = self._current
        if 0 in current.workers:
            current.state = view.heartbeats.get(current.workers[0].slot, current.state)
        # A resumed worker reports some rows once more.
        current.reports = [row for row in view.reports if row not in self._run_state.history]
        current.alive = sum(silence < _SILENT_S for silence in view.silence_s.values())
        mark = [(beat["step"], beat["ticks"]) for beat in view.heartbeats.values()]
        if mark != self._progress[0]:
            self._progress = (mark, self._clock.now)
        self._run_state.observe(current.state, max((beat["step"] for beat in view.heartbeats.values()), default=0), current.reports)
        for left in view.exits:
            self._left(left)
        self._look_for_straggler(view)
        stuck = self._stuck(view)
        if stuck and not current.stuck:
            self._callbacks.log(stuck)
        current.stuck = stuck
        self._callbacks.on_update(current)

    def _look_for_straggler(self, view: View) -> None:
        current, now = self._current, self._clock.now
        if now < self._pacing_at:
            return
        self._pacing_at = now + _PACING_EVERY_S
        current.times = {
            rank: RankTime(rank=rank, host=m.host, node_id=m.node_id, busy_s=beat["busy_s"], passes=beat["passes"])
            for rank, m in current.workers.items() if (beat := view.heartbeats.get(m.slot)) and beat.get("busy_s")
        }
        if not current.times or len(current.times) < len(current.workers):
            return
        if what := current.pacing.hear(current.times, current.state["median_step_s"], now):
            self._run_state.event(what)
            self._callbacks.log(what)

    def _left(self, left: WorkerExit) -> None:
        if left.worker in self._former:
            return  # of an earlier generation: what it met is its own affair
        if left.outcome == "error":
            self._failed_worker(left)
        for rank, member in self._current.workers.items():
            if member.worker == left.worker:
                self._current.exits[rank] = left

    def _failed_worker(self, left: WorkerExit) -> None:
        known: type[Any] | None = getattr(errors, left.kind, None)
        if known is not None and issubclass(known, TrainyardError):
            self._abandon()
            raise known(left.message)
        path = f"logs/errors/{self._current.generation}-rank-{left.slot}.txt"
        self._store.write_text(path, left.traceback)
        self._run_state.event(f"worker {left.slot}: {left.kind}: {left.message} ({path})")
        self._callbacks.log(f"worker {left.slot} failed: {left.kind}: {left.message}")
        if not self._executor.can_replace or not self._current.generation:  # another one would fail alike
            self._abandon()
            raise TrainingFailedError(f"{left.kind}: {left.message} (traceback in {self._store.location(path)})")

    def _end_of_group(self, view: View, ended: bool) -> End | None:
        current = self._current
        if current.workers and len(current.exits) == current.num_workers:
            self._executor.rendezvous.abort()  # spare workers still wait
            self._executor.end()
            if all(left.outcome == "finished" for left in current.exits.values()):
                return "finished"
            if failed := [left for left in current.exits.values() if left.outcome == "error"]:
                self._failed("; ".join(f"worker {each.slot} failed ({each.kind}: {each.message})" for each in failed))
                self._restart(current.num_workers)
                return None
            if current.stopping not in ("resize", "move") or self._callbacks.stop_requested():
                return "stopped"
            if current.stopping == "move":
                self._start_where_there_is_room()
            else:
                self._restart(self._resize_to)
        elif ended and not view.registered and len(current.exits) < current.num_workers:
            self._failed("the workers ended")
            if not self._executor.can_replace:
                raise TrainingFailedError("the worker ended without a word: see the message before this one")
            self._restart(current.num_workers)
        return None

    # ── from one generation to the next ──
    def _begin(self, joined: dict[int, WorkerInfo]) -> None:
        workers = self._choose(joined)
        if self._current.generation:
            self._account_for_the_last(workers)
        self._run_state.reached(take_marks(self._store))
        generation = self._checkpoints.begin_generation()
        checkpoint = self._checkpoints.newest_intact(self._damaged)
        self._run_state.resume_from(checkpoint.step if checkpoint else 0)
        if checkpoint is not None:
            self._compare(checkpoint, len(workers))
        mtbf_s = self._mtbf_s(len({member.node_id or member.host for member in workers.values()}))
        assignments = {
            member.worker: Assignment(
                generation=generation, rank=rank, world_size=len(workers), num_shards=self._num_shards,
                checkpoint=checkpoint, excluded_steps=self._run_state.excluded_steps, mtbf_s=mtbf_s,
            ) for rank, member in workers.items()
        }
        self._executor.rendezvous.begin(assignments, {member.slot: member.worker for member in workers.values()})
        places = {rank: {"pid": m.pid, "node": m.node_id, "host": m.host} for rank, m in workers.items()}
        self._store.write_text(f"logs/workers/{generation}.json", json.dumps(places))
        self._renew(GenerationState(num_workers=len(workers), generation=generation, workers=workers))
        self._gathering_since, self._progress = None, (None, self._clock.look())
        self._room_at = self._clock.now + _ROOM_EVERY_S
        where = f"continuing at step {checkpoint.step}" if checkpoint else "from the beginning"
        self._callbacks.log(f"training on {len(workers)} worker{'s' * (len(workers) > 1)}, {where}")

    def _mtbf_s(self, num_nodes: int) -> float | None:
        """The run's mean time between failures: by what is known of a node, else by what it has seen itself."""
        if self._run.mtbf_h is not None:
            return mean_time_between_failures_s(self._run.mtbf_h, num_nodes)
        return self._run_state.elapsed_s / self._run_state.restarts if self._run_state.restarts >= _FAILURES_THAT_TELL else None

    def _compare(self, checkpoint: Checkpoint, num_workers: int) -> None:
        """Says what no longer promises the same bits: another processor, version, or number of workers or threads."""
        now = environment() | {"world_size": num_workers, "threads": self._run.cpus_per_worker}
        if changed := differences(checkpoint.environment, now):
            text = f"equal within rounding from here on, not bit for bit: {'; '.join(changed)}"
            self._run_state.event(text)
            self._callbacks.log(text)

    def _choose(self, joined: dict[int, WorkerInfo]) -> dict[int, WorkerInfo]:
        """Who has which rank: survivors and successors keep their slot's rank, spare workers take the ranks of the dead."""
        ranks = {member.slot: rank for rank, member in self._current.workers.items()}
        chosen = {ranks[slot]: member for slot, member in joined.items() if slot in ranks}
        others = [joined[slot] for slot in sorted(joined) if slot not in ranks]
        free = [rank for rank in range(self._current.num_workers) if rank not in chosen]
        return dict(sorted((chosen | dict(zip(free, others, strict=False))).items()))

    def _damaged(self, what: str) -> None:
        self._run_state.event(what)
        self._callbacks.log(f"damaged: {what}; looking for an older one")

    def _account_for_the_last(self, workers: dict[int, WorkerInfo]) -> None:
        self._run_state.reached(max(member.last_step for member in workers.values()))
        bad = sorted({step for member in workers.values() for step in member.bad_steps})
        if not bad:
            lost = ", ".join(str(rank) for rank, member in workers.items() if member.last_step < 0)
            for rank, member in workers.items():
                if member.why:
                    self._store.write_text(f"logs/errors/{self._current.generation}-rank-{rank}-peer.txt", member.why)
            self._failed(f"worker {lost} was lost" if lost else "the workers lost each other")
            return
        self._run_state.exclude(bad)
        self._callbacks.log(f"loss or gradient not finite at steps {bad}: back to the last checkpoint, their rows left out")
        if self._run_state.rollbacks > _MAX_ROLLBACKS:
            self._abandon()
            raise TrainingFailedError(
                f"the loss or gradient was still not finite after {_MAX_ROLLBACKS} returns to a checkpoint, "
                f"{len(self._run_state.excluded_steps)} steps left out: lower --optim.lr, or look at the data"
            )

    def _failed(self, what: str) -> None:
        self._run_state.failure(what)
        limit = self._run.max_failures
        if 0 <= limit < self._run_state.failures:
            self._abandon()
            raise TrainingFailedError(
                f"{what}, and --run.max-failures {limit} is spent; the workers' errors are in "
                f"{self._store.location('logs/errors')}: mend the cause and run the same command again to continue"
            )
        self._callbacks.log(f"{what}: recovering (failure {self._run_state.failures} of {limit if limit >= 0 else 'any number'})")

    def _restart(self, num_workers: int, spares: int | None = None) -> None:
        self._executor.rendezvous.abort()
        self._executor.end()
        self._executor.rendezvous.reset()
        self.start(num_workers, spares)

    def _abandon(self) -> None:
        self._executor.rendezvous.abort()
        self._executor.kill([m for rank, m in self._current.workers.items() if rank not in self._current.exits])
        self._executor.end()

    # ── gathering: some workers are here, others are starting, or will never come ──
    def _gather(self, view: View) -> None:
        now = self._clock.now
        if self._gathering_since is None:
            self._gathering_since, self._room_at = now, now + 2 * _ROOM_EVERY_S
            self._executor.rendezvous.break_up()
        if self._callbacks.stop_requested():
            self._abandon()
            raise StoppedError("stopped while workers were starting: run the same command again to continue")
        if self._current.exits:  # some had finished when another died: they do not come back
            self._failed("a worker was lost at the very end")
            self._restart(self._current.num_workers)
        elif len(view.registered) >= self._current.num_workers:
            self._begin(view.registered)
        else:
            self._wait_for_more(view, now)

    def _wait_for_more(self, view: View, now: float) -> None:
        absent = {rank: m for rank, m in self._current.workers.items() if m.slot not in view.registered}
        self._end_hung({rank: m for rank, m in absent.items() if view.silence_s.get(m.slot, 0.0) > self._hang_limit_s()}, view)
        elastic = self._run.min_workers < self._run.max_workers
        if (self._current.generation or elastic) and now > self._room_at:
            self._room_at = now + _ROOM_EVERY_S
            possible = self._possible(self._room(), self._started_spares)
            if possible is not None and possible < self._current.num_workers:
                self._regroup()
        elif self._gathering_since is not None and now - self._gathering_since > _GATHER_S + self._run.wait:
            self._regroup()

    def _room(self) -> int | None:
        """For how many workers, spare ones among them; None: the cluster does not answer this time."""
        try:
            return self._executor.possible_workers()
        except ClusterError:
            return None

    def _possible(self, room: int | None, spares: int) -> int | None:
        """How many of them would train."""
        return None if room is None else min(self._run.max_workers, self._num_shards, room - spares)

    def _regroup(self) -> None:
        self._failed("there is no room for all workers any more")
        self._start_where_there_is_room()

    def _start_where_there_is_room(self) -> None:
        """Another group, as large as it may be now; spare workers take what is left.

        Raises: StoppedError if there is no room within `run.wait`.
        """
        least = self._run.min_workers
        expected = max(self._room() or 0, least)  # with what this group holds: free a moment after its end
        self._executor.rendezvous.abort()
        self._executor.end()
        if (self._room() or 0) < least:
            self._await_room(least)
        began = self._clock.look()
        while ((room := self._room()) or 0) < expected and self._clock.look() - began < _RELEASE_S:
            time.sleep(LOOK_S)
        num_workers = max(self._possible(room, 0) or 0, least)
        self._restart(num_workers, self._spares if room is None else max(0, min(self._spares, room - num_workers)))

    def _await_room(self, least: int) -> None:
        """Until so many workers have room. The cluster is asked for it, so that it adds nodes if it can. Raises: StoppedError."""
        wait_s = self._run.wait
        self._callbacks.log(f"waiting up to {wait_s:g} s for room for {least} worker{'s' * (least > 1)}")
        deadline = self._clock.look() + wait_s
        with self._executor.queued(least) as granted:
            while not granted() and ((room := self._room()) or 0) < least:
                if self._callbacks.stop_requested():
                    raise StoppedError("stopped while it waited for room: run the same command again to continue")
                if self._clock.look() > deadline:
                    has = "does not say for how many it has room" if room is None else f"has room for {room}"
                    raise StoppedError(f"{least} worker{'s are' if least > 1 else ' is'} needed and the cluster {has} "
                                       f"(waited {wait_s:g} s, --run.wait): run the same command again when it has more")
                self._callbacks.on_update(GenerationState(state=self._current.state))  # no worker is left: it is seen that it waits
                time.sleep(LOOK_S)

    # ── watching ──
    def _hang_limit_s(self) -> float:
        return max(self._run.hang_timeout_s, 10 * float(self._current.state.get("median_step_s", 0.0)))

    def _look_for_silence(self, view: View) -> None:
        """Says whose signs of life have stopped; whether a host is lost, the cluster decides some seconds later."""
        silent = {rank: m for rank, m in self._current.workers.items()
                  if view.silence_s.get(m.slot, 0.0) > _TOLD_AFTER_S and rank not in self._current.exits
                  and m.slot not in view.registered and m.worker not in self._told}
        if silent:
            self._told |= {member.worker for member in silent.values()}
            who = ", ".join(f"{rank} on {member.host}" for rank, member in silent.items())
            text = f"nothing has been heard of worker {who} for {_TOLD_AFTER_S:g} s: it, its host or the way there may be lost"
            self._run_state.event(text)
            self._callbacks.log(text)

    def _progress_limit_s(self) -> float:
        """How long no worker may show a sign of progress. Before the first step a framework compiles and sets itself up."""
        limit = self._hang_limit_s()
        return limit if "first_step" in self._current.state.get("marks", {}) else max(limit, _FIRST_STEP_S)

    def _stuck(self, view: View) -> str:
        """From half of the bound on."""
        if not self._current.workers or self._gathering_since is not None:
            return ""
        waiting = {rank: beat for rank, m in self._current.workers.items() if (beat := view.heartbeats.get(m.slot))}
        rank = max(waiting, key=lambda rank: waiting[rank].get("storage_wait_s", 0.0), default=0)
        wait_s, still_s = (waiting.get(rank, {}).get(name, 0.0) for name in ("storage_wait_s", "storage_still_s"))
        if wait_s > self._hang_limit_s() / 2:
            return (f"rank {rank} on {self._current.workers[rank].host} has waited {wait_s:.0f} s for storage "
                    f"{self._store.location()}, which has stood still for {still_s:.0f} s: look at its server and the way "
                    f"there; after {self._run.storage_timeout_s:g} s it is taken to hang (--run.storage-timeout-s)")
        idle_s, limit_s = self._clock.now - self._progress[1], self._progress_limit_s()
        if idle_s > limit_s / 2:
            what = "and are started again from the last checkpoint" if self._executor.can_replace else "and a stop ends the run"
            return (f"no worker has got on for {idle_s:.0f} s: after {limit_s:.0f} s they are taken to hang "
                    f"(--run.hang-timeout-s), {what}")
        return ""

    def _look_for_hang(self, view: View) -> None:
        limit = self._hang_limit_s()
        here = {rank: m for rank, m in self._current.workers.items() if rank not in self._current.exits}
        silence = {rank: view.silence_s.get(m.slot, 0.0) for rank, m in here.items()}
        hung = {rank: m for rank, m in here.items() if silence[rank] > limit}
        if self._clock.now - self._progress[1] > self._progress_limit_s():
            hung = {rank: m for rank, m in here.items() if silence[rank] > _SILENT_S} or here
        self._end_hung(hung, view)

    def _end_hung(self, hung: dict[int, WorkerInfo], view: View) -> None:
        hung = {rank: m for rank, m in hung.items() if m.worker not in self._killed}
        if not hung:
            return
        if not self._executor.can_replace:
            self._end_own_process()
            return
        self._killed |= {member.worker for member in hung.values()}
        folder = f"logs/stacks/{self._current.generation}"
        here = {m.slot: rank for rank, m in self._current.workers.items() if m.slot not in view.registered}
        for slot, stack in self._executor.stacks([m for m in self._current.workers.values() if m.slot in here]).items():
            self._store.write_text(f"{folder}/rank-{here[slot]}.txt", stack)
        ranks = ", ".join(map(str, hung))
        self._run_state.event(f"worker {ranks} hung; the stacks of all ranks are in {folder}")
        self._callbacks.log(f"worker {ranks} hangs and is ended; the stacks of all ranks are in {self._store.location(folder)}")
        self._executor.kill(list(hung.values()))
        self._progress = (None, self._clock.look())

    def _end_own_process(self) -> None:
        """The worker is in the driver's process: perhaps somebody is looking at it in a debugger, so it is ended only where
        a stop is asked for."""
        if self._current.stopping == "stop":
            raise HungError("stopped without a last checkpoint: the worker has made no progress for "
                            f"{self._hang_limit_s():.0f} s: run the same command again to continue from the one before")

    def _pass_on_stop(self) -> None:
        if self._callbacks.stop_requested() and self._current.stopping != "stop":
            self._current.stopping = "stop"
            self._executor.rendezvous.request_stop()

    def _look_for_preemption(self) -> None:
        """Nodes that are about to be taken away are left after a checkpoint, so that no step is lost."""
        current, now = self._current, self._clock.now
        if current.stopping or now < self._leaving_at:
            return
        self._leaving_at = now + _LEAVING_EVERY_S
        try:
            who = self._executor.leaving(list(current.workers.values()))
        except ClusterError:  # it did not answer in time: it is asked again
            return
        if not who:
            return
        what = "this driver's node" if who == "driver" else "a node with workers"
        self._callbacks.log(f"{what} is about to be taken away: checkpoint, then {'stop' if who == 'driver' else 'on without it'}")
        self._run_state.event(f"{what} was about to be taken away (preemption or scale-down): left after a checkpoint")
        current.stopping = "stop" if who == "driver" else "move"
        self._executor.rendezvous.request_stop()

    def _look_for_room(self) -> None:
        """An elastic run takes more workers when there is room for them, after a checkpoint."""
        run, current = self._run, self._current
        if run.min_workers == run.max_workers or current.stopping or self._clock.now < self._room_at:
            return
        self._room_at = self._clock.now + _ROOM_EVERY_S
        possible = self._possible(self._room(), self._spares)
        if possible is not None and possible > current.num_workers:
            self._callbacks.log(f"there is room for {possible} workers: checkpoint, then on with them")
            self._run_state.event(f"resized from {current.num_workers} to {possible} workers")
            self._resize_to, current.stopping = possible, "resize"
            self._executor.rendezvous.request_stop()
