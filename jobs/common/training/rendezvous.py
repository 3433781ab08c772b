"""Where the driver and the workers of one run meet. It holds state and decides nothing: the supervisor decides.

A worker *joins*, waits for its *assignment* to a generation, *beats* while it trains, and *leaves* with an outcome. When a
peer dies, the others join again; when all slots have joined, the supervisor begins the next generation. The same plain
class serves inside one process, behind a socket for local processes, and as a Ray actor.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from cluster.core.loop_clock import LoopClock

Outcome = Literal["finished", "stopped", "error"]


@dataclass(frozen=True, kw_only=True)
class Member:
    """One worker process in one slot of the group. `worker` is unique for each life of a process in a generation."""

    slot: int
    worker: str
    pid: int
    started: float
    node_id: str | None
    host: str
    group: str = ""
    """Of workers that were started together."""
    last_step: int = -1
    bad_steps: tuple[int, ...] = ()
    why: str = ""
    """Why it left the generation before, as its framework says it; empty for a new process."""


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What a worker is to do in one generation. `checkpoint` is the one to resume from; None: from the beginning."""

    generation: str
    rank: int
    world_size: int
    num_shards: int
    checkpoint: Any
    excluded_steps: tuple[int, ...] = ()
    mtbf_s: float | None = None
    """The run's mean time between failures, if it is known."""
    abort: bool = False


@dataclass(frozen=True, kw_only=True)
class Orders:
    """The answer to a beat: whether to stop at the next step boundary, or to give this generation up at once."""

    stop: bool = False
    leave: bool = False


@dataclass(frozen=True, kw_only=True)
class Departure:
    """How a worker left: an outcome, and for an error its kind (the class's name), message and traceback."""

    slot: int
    worker: str
    outcome: Outcome
    kind: str = ""
    message: str = ""
    traceback: str = ""


@dataclass(kw_only=True)
class View:
    """All that the supervisor sees at one look."""

    joined: dict[int, Member]
    beats: dict[int, dict[str, Any]]
    silence_s: dict[int, float]
    reports: list[dict[str, Any]]
    departures: list[Departure]


class Coordinator:
    """See the module. Thread-safe; every call returns at once."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        """now: what time it is, in seconds. A worker's silence counts while the supervisor looks: where nobody looks, for instance
        because this machine is paused, beats may wait to be taken in."""
        self._now, self._clock = now, LoopClock(now)
        self._lock = threading.RLock()
        self._joined: dict[int, Member] = {}
        self._assignments: dict[str, Assignment] = {}
        self._beats: dict[int, dict[str, Any]] = {}
        self._heard: dict[int, float] = {}
        self._members: dict[int, str] = {}
        self._reports: list[dict[str, Any]] = []
        self._departures: list[Departure] = []
        self._values: dict[tuple[str, str], Any] = {}
        self._generation = ""
        self._stop = False
        self._abort = False
        self._group = ""
        self._strangers: set[str] = set()
        self._info: dict[str, Any] = {}

    # ── a worker's side ──
    def join(self, member: Member) -> None:
        with self._lock:
            if member.group == self._group:
                self._joined[member.slot] = member
            else:
                self._strangers.add(member.worker)

    def assignment(self, worker: str) -> Assignment | None:
        """None: not yet."""
        with self._lock:
            if self._abort or worker in self._strangers:
                return Assignment(generation="", rank=0, world_size=0, num_shards=0, checkpoint=None, abort=True)
            return self._assignments.get(worker)

    def beat(self, slot: int, worker: str, state: dict[str, Any], reports: list[dict[str, Any]]) -> Orders:
        """A sign of life, the latest state, and what has been reported since."""
        with self._lock:
            self._heard[slot] = self._clock.now
            self._reports += reports  # also of one that is told to leave: its last checkpoint may still be committed
            if self._members.get(slot) != worker:
                return Orders(leave=True)
            self._beats[slot] = state
            return Orders(stop=self._stop, leave=self._abort)

    def leave(self, departure: Departure) -> None:
        with self._lock:
            self._departures.append(departure)

    def put(self, generation: str, key: str, value: Any) -> None:
        """Shares a small value with the other workers of a generation."""
        with self._lock:
            self._values[generation, key] = value

    def get(self, generation: str, key: str) -> Any:
        """None: not put yet."""
        with self._lock:
            return self._values.get((generation, key))

    # ── the supervisor's side ──
    def look(self) -> View:
        """Reports and departures are handed over once."""
        with self._lock:
            now = self._clock.look()
            view = View(
                joined=dict(self._joined),
                beats=dict(self._beats),
                silence_s={slot: now - heard for slot, heard in self._heard.items()},
                reports=self._reports,
                departures=self._departures,
            )
            self._reports, self._departures = [], []
            return view

    def expect(self, group: str) -> None:
        """Only workers of this group take part from now on. One of an earlier group, whose host was given up and is back, is told
        to go."""
        with self._lock:
            self._group = group

    def begin(self, assignments: dict[str, Assignment], members: dict[int, str]) -> None:
        """Starts a generation: these workers, in these slots. Those of an older one are told to leave at their next beat."""
        with self._lock:
            self._generation = next(iter(assignments.values())).generation
            self._assignments, self._members = assignments, members
            self._joined = {slot: m for slot, m in self._joined.items() if m.worker not in assignments}
            self._beats, self._stop, self._values = {}, False, {}
            self._heard = dict.fromkeys(members, self._clock.look())

    def break_up(self) -> None:
        """Somebody of this generation is gone: its other members leave it, also those that sit in a collective."""
        with self._lock:
            self._members = {}

    def request_stop(self) -> None:
        """Every worker stops at one and the same step boundary, soon."""
        with self._lock:
            self._stop = True

    def abort(self) -> None:
        """Every worker, also one that joins later, leaves at once, without a checkpoint."""
        with self._lock:
            self._abort = True

    def reset(self) -> None:
        """Ready for a new group of workers."""
        with self._lock:
            info = self._info
            self.__init__(self._now)
            self._info = info

    def describe(self, info: dict[str, Any]) -> None:
        """Keeps facts on the run for whoever asks (`python -m cluster status`)."""
        with self._lock:
            self._info |= info

    def description(self) -> dict[str, Any]:
        with self._lock:
            return dict(self._info)
