"""What to do about nodes that are about to be taken away: they are left after a checkpoint, so that no step is lost."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from cluster.core.errors import ClusterError
from jobs.common.execution.phase import Phase

EVERY_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Preemption:
    """What follows: the phase to enter, a line to say, and what the run's events keep of it."""

    phase: Phase
    says: str
    event: str


class PreemptionPolicy:
    """Asks every EVERY_S seconds who is on a node that is to go."""

    def __init__(self) -> None:
        self._asks_at = 0.0

    def look(self, leaving: Callable[[], Literal["", "workers", "driver"]], now: float) -> Preemption | None:
        """leaving: asks the executor. Returns what is to be done, or None if nothing is."""
        if now < self._asks_at:
            return None
        self._asks_at = now + EVERY_S
        try:
            who = leaving()
        except ClusterError:  # it did not answer in time: it is asked again
            return None
        if not who:
            return None
        driver = who == "driver"
        what = "this driver's node" if driver else "a node with workers"
        return Preemption(
            phase=Phase.STOPPING if driver else Phase.MOVING,
            says=f"{what} is about to be taken away: checkpoint, then {'stop' if driver else 'on without it'}",
            event=f"{what} was about to be taken away (preemption or scale-down): left after a checkpoint",
        )
