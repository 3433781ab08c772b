"""What is known of the present generation: policies look at it, and whoever shows the run is told of it."""

from collections.abc import Callable
from dataclasses import dataclass, field

from cluster.core.documents import JsonObject
from cluster.monitoring.run_status import RankTime
from jobs.common.execution.straggler import StragglerWatch
from jobs.common.training.rendezvous import Heartbeat, WorkerExit, WorkerInfo


@dataclass(kw_only=True)
class GenerationState:
    """`workers` by rank, empty until the first generation begins; `heartbeat` is rank 0's latest, if there was one."""

    num_workers: int = 0
    spares: int = 0
    """How many standby workers were started beside them."""
    generation: str = ""
    workers: dict[int, WorkerInfo] = field(default_factory=dict[int, WorkerInfo])
    heartbeat: Heartbeat | None = None
    times: dict[int, RankTime] = field(default_factory=dict[int, RankTime])
    """What each rank's steps take it, without waiting for others."""
    pacing: StragglerWatch = field(default_factory=StragglerWatch)
    reports: list[JsonObject] = field(default_factory=list[JsonObject])
    alive: int = 0
    exits: dict[int, WorkerExit] = field(default_factory=dict[int, WorkerExit])
    stuck: str = ""
    """What has kept all from making a step for a while, and what will be done about it: a sentence."""

    @property
    def left(self) -> dict[int, WorkerInfo]:
        """Its workers that have not exited, by rank."""
        return {rank: member for rank, member in self.workers.items() if rank not in self.exits}

    def ranks_for(self, joined: dict[int, WorkerInfo]) -> dict[int, WorkerInfo]:
        """Who has which rank in the next generation. joined: who has registered, by slot.

        Survivors and successors keep their slot's rank, standby workers take the ranks of the dead.
        """
        ranks = {member.slot: rank for rank, member in self.workers.items()}
        chosen = {ranks[slot]: member for slot, member in joined.items() if slot in ranks}
        others = [joined[slot] for slot in sorted(joined) if slot not in ranks]
        free = [rank for rank in range(self.num_workers) if rank not in chosen]
        return dict(sorted((chosen | dict(zip(free, others, strict=False))).items()))


@dataclass(frozen=True, kw_only=True)
class ControllerCallbacks:
    """Who is told, and who asks. `stop_requested`: a signal came, or the job is being stopped."""

    on_update: Callable[[GenerationState], None]
    log: Callable[[str], None]
    stop_requested: Callable[[], bool]
