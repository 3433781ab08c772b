"""The phases of a run while it trains, as its controller goes through them, and which may follow which."""

from collections.abc import Mapping
from enum import Enum


class Phase(Enum):
    """What the controller is at. Each value completes the sentence "the run is …"."""

    WAITING_FOR_ROOM = "without workers, until a group of them is started"
    GATHERING = "waiting until all workers of its group have registered"
    TRAINING = "training"
    STOPPING = "about to stop after a checkpoint, since a stop is asked for or the driver's node is to go"
    RESIZING = "about to go on with more workers, after a checkpoint"
    MOVING = "about to leave a node that is to go, after a checkpoint"
    ENDED = "at its end"


FOLLOWING: Mapping[Phase, frozenset[Phase]] = {
    Phase.WAITING_FOR_ROOM: frozenset({Phase.GATHERING, Phase.ENDED}),
    Phase.GATHERING: frozenset({Phase.GATHERING, Phase.TRAINING, Phase.WAITING_FOR_ROOM, Phase.ENDED}),
    Phase.TRAINING: frozenset({Phase.STOPPING, Phase.RESIZING, Phase.MOVING, Phase.GATHERING, Phase.WAITING_FOR_ROOM,
                               Phase.ENDED}),
    Phase.STOPPING: frozenset({Phase.GATHERING, Phase.WAITING_FOR_ROOM, Phase.ENDED}),
    Phase.RESIZING: frozenset({Phase.STOPPING, Phase.GATHERING, Phase.WAITING_FOR_ROOM, Phase.ENDED}),
    Phase.MOVING: frozenset({Phase.STOPPING, Phase.GATHERING, Phase.WAITING_FOR_ROOM, Phase.ENDED}),
    Phase.ENDED: frozenset(),
}
"""The transitions. GATHERING follows itself where another group of workers is started before the first one was whole;
workers may die, and a group may be lost with its hosts, in every phase in which there are any."""


class PhaseTracker:
    """The present phase, and since when it has been so."""

    def __init__(self) -> None:
        self.present = Phase.WAITING_FOR_ROOM
        self.since = 0.0

    @property
    def gathering(self) -> bool:
        return self.present is Phase.GATHERING

    def enter(self, phase: Phase, now: float) -> None:
        """now: in seconds. A transition that is not in FOLLOWING is a mistake of the controller: an AssertionError."""
        assert phase in FOLLOWING[self.present], f"a run that is {self.present.value} cannot be {phase.value}"
        self.present, self.since = phase, now
