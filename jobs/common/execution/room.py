"""Waits until a cluster has room for another group of workers, when the one before has ended."""

import time

from cluster.core.errors import StoppedError
from cluster.core.loop_clock import LoopClock
from jobs.common.config import RunConfig
from jobs.common.execution.executors import Executor
from jobs.common.execution.generation_state import ControllerCallbacks, GenerationState
from jobs.common.execution.scaling_policy import ScalingPolicy

LOOK_S = 0.05
"""Between two looks of the controller."""
_RELEASE_S = 5.0


class RoomSearch:
    """Asks the cluster for `run.min_workers` at least, and takes more where there is more."""

    def __init__(self, run: RunConfig, *, executor: Executor, scaling: ScalingPolicy, clock: LoopClock,
                 callbacks: ControllerCallbacks) -> None:
        self._run, self._executor, self._scaling = run, executor, scaling
        self._clock, self._callbacks = clock, callbacks

    def wait(self, expected: int, last: GenerationState) -> int | None:
        """Returns for how many workers there is room; None: unknown.

        expected: what the group before held is free a moment after its end, and waited for briefly. last: what was
        known of that group. Raises: StoppedError if there is no room within `run.wait`, or a stop is asked for.
        """
        least = self._run.min_workers
        if (self._scaling.room() or 0) < least:
            self._await(least, GenerationState(heartbeat=last.heartbeat))
        began = self._clock.look()
        while ((room := self._scaling.room()) or 0) < expected and self._clock.look() - began < _RELEASE_S:
            time.sleep(LOOK_S)
        return room

    def _await(self, least: int, without_workers: GenerationState) -> None:
        """Until so many workers have room. The cluster is asked for it, so that it adds nodes if it can."""
        wait_s = self._run.wait
        self._callbacks.log(f"waiting up to {wait_s:g} s for room for {least} worker{'s' * (least > 1)}")
        deadline = self._clock.look() + wait_s
        with self._executor.queued(least) as granted:
            while not granted() and ((room := self._scaling.room()) or 0) < least:
                if self._callbacks.stop_requested():
                    raise StoppedError("stopped while it waited for room: run the same command again to continue")
                if self._clock.look() > deadline:
                    has = "does not say for how many it has room" if room is None else f"has room for {room}"
                    raise StoppedError(f"{least} worker{'s are' if least > 1 else ' is'} needed and the cluster {has} "
                                       f"(waited {wait_s:g} s, --run.wait): run the same command again when it has "
                                       "more")
                self._callbacks.on_update(without_workers)  # it is seen that it waits
                time.sleep(LOOK_S)
