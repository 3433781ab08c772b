"""How many workers a run has: as many as there is room for, between `run.min_workers` and `run.max_workers`."""

from collections.abc import Callable

from cluster.core.errors import ClusterError
from jobs.common.config import RunConfig
from jobs.common.execution.generation_state import GenerationState

ROOM_EVERY_S = 5.0
_GATHER_S = 180.0


class ScalingPolicy:
    """Asks for room now and then, and says with how many workers to go on."""

    def __init__(self, run: RunConfig, *, num_shards: int, spares: int, possible_workers: Callable[[], int]) -> None:
        """spares: how many standby workers the run is to have. possible_workers: asks the executor."""
        self.spares = spares
        self._run, self._num_shards, self._possible_workers = run, num_shards, possible_workers
        self._asks_at = 0.0

    def pause(self, until: float) -> None:
        """Room is not asked for before then: what is starting, or dying, still holds its own."""
        self._asks_at = until

    def room(self) -> int | None:
        """For how many workers, standby ones among them; None: the cluster does not answer this time."""
        try:
            return self._possible_workers()
        except ClusterError:
            return None

    def growth(self, current: GenerationState, now: float) -> int | None:
        """With how many workers an elastic run is to go on, if there is room for more than it has."""
        if not self._elastic or now < self._asks_at:
            return None
        self._asks_at = now + ROOM_EVERY_S
        possible = self._that_train(self.room(), self.spares)
        return possible if possible is not None and possible > current.num_workers else None

    def gives_up(self, current: GenerationState, since: float, now: float) -> bool:
        """Whether the workers that are missing since then will never come: a smaller group is to be started."""
        if (current.generation or self._elastic) and now > self._asks_at:
            self._asks_at = now + ROOM_EVERY_S
            possible = self._that_train(self.room(), current.spares)
            return possible is not None and possible < current.num_workers
        return now - since > _GATHER_S + self._run.wait

    def group(self, room: int | None) -> tuple[int, int]:
        """Workers, and standby workers that take what is left, of a group that is started in this room."""
        num_workers = max(self._that_train(room, 0) or 0, self._run.min_workers)
        return num_workers, self.spares if room is None else max(0, min(self.spares, room - num_workers))

    @property
    def _elastic(self) -> bool:
        return self._run.min_workers < self._run.max_workers

    def _that_train(self, room: int | None, spares: int) -> int | None:
        return None if room is None else min(self._run.max_workers, self._num_shards, room - spares)
