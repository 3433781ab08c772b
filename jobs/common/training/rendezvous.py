"""Where the driver and the workers of one run meet. It holds state and decides nothing: the controller decides.

A worker *registers*, waits for its *assignment* to a generation, sends *heartbeats* while it trains, and *deregisters*
with an outcome. When a peer dies, the others register again; when all slots have registered, the controller begins the
next generation. `Rendezvous` serves inside one process, behind a socket for local processes, and as a Ray actor;
whoever calls it holds a `RendezvousClient`, whatever lies between.
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from cluster.core.documents import JsonObject
from cluster.core.loop_clock import LoopClock
from jobs.common.checkpoint.manifest import Checkpoint
from jobs.common.checkpoint.peer_memory import Offer
from jobs.common.checkpoint.writer import Timings

Outcome = Literal["finished", "stopped", "error"]


@dataclass(frozen=True, kw_only=True)
class WorkerInfo:
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
    offer: Offer | None = None
    """What it holds of the generation before, for all that did not come so far."""
    refused_offer: bool = False
    """Whether it left the generation before since it could not read what another worker had offered."""


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What a worker is to do in one generation. `checkpoint` is the one of storage to resume from, `offer` the one in a
    worker's memory, which is newer; neither: from the beginning."""

    generation: str
    rank: int
    world_size: int
    num_shards: int
    checkpoint: Checkpoint | None
    excluded_steps: tuple[int, ...] = ()
    offer: Offer | None = None
    mtbf_s: float | None = None
    """The run's mean time between failures that need storage, if it is known."""
    abort: bool = False


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """How far a worker is, and how it goes. Times in seconds; what is None is not known yet."""

    step: int = 0
    ticks: int = 0
    """Signs of progress in what has no steps."""
    passes: int = 1
    """Micro-batches of a step."""
    epoch: int = 0
    epochs: int = 0
    total_steps: int | None = None
    skipped_steps: int | None = None
    parameters: int | None = None
    """How many weights the model has."""
    loss: float | None = None
    """The mean of some recent steps."""
    samples_per_s: float = 0.0
    median_step_s: float = 0.0
    busy_s: float = 0.0
    """Of a step, without what it waits for others, median; 0 before it is known."""
    data_wait_s: float = 0.0
    storage_wait_s: float = 0.0
    """How long it has waited for storage so far; 0 if it does not wait."""
    storage_still_s: float = 0.0
    """How long the storage that it waits for has stood still."""
    committed_step: int | None = None
    """Of the last checkpoint that was committed."""
    checkpoint: Timings | None = None
    """What the last checkpoint cost; None before the first."""
    marks: Mapping[str, float] = field(default_factory=dict[str, float])
    """When parts of its start were done: unix seconds by name."""
    phase: str | None = None
    """What it does between steps, such as an evaluation, and how far it is."""
    scores: Mapping[str, float] = field(default_factory=dict[str, float])
    """Of the last evaluation on validation rows, by name: what chooses the best checkpoint, then the loss."""
    shown: Mapping[str, str] = field(default_factory=dict[str, str])
    """What else its job shows on the console: values by name."""


@dataclass(frozen=True, kw_only=True)
class HeartbeatReply:
    """The answer to a heartbeat: whether to stop at the next step boundary, or to give this generation up at once."""

    stop: bool = False
    leave: bool = False


@dataclass(frozen=True, kw_only=True)
class WorkerExit:
    """How a worker left: an outcome, and for an error its kind (the class's name), message and traceback."""

    slot: int
    worker: str
    outcome: Outcome
    kind: str = ""
    message: str = ""
    traceback: str = ""


@dataclass(kw_only=True)
class View:
    """All that the controller sees at one poll."""

    registered: dict[int, WorkerInfo]
    heartbeats: dict[int, Heartbeat]
    """By slot, the latest."""
    silence_s: dict[int, float]
    reports: list[JsonObject]
    exits: list[WorkerExit]


class RendezvousClient(Protocol):
    """Calls a run's `Rendezvous`, whose methods say what each does.

    Every method raises EOFError, OSError or ConnectionError where the driver that held it is gone.
    """

    # ── a worker's side ──
    def register(self, worker: WorkerInfo) -> None: ...
    def assignment(self, worker: str) -> Assignment | None: ...
    def heartbeat(self, slot: int, worker: str, beat: Heartbeat, reports: list[JsonObject]) -> HeartbeatReply: ...
    def deregister(self, left: WorkerExit) -> None: ...
    def put(self, generation: str, key: str, value: object) -> None: ...
    def get(self, generation: str, key: str) -> object: ...

    # ── the controller's side ──
    def poll(self) -> View: ...
    def expect(self, group: str) -> None: ...
    def begin(self, assignments: dict[str, Assignment], workers: dict[int, str]) -> None: ...
    def break_up(self) -> None: ...
    def request_stop(self) -> None: ...
    def abort(self) -> None: ...
    def reset(self) -> None: ...
    def describe(self, info: JsonObject) -> None: ...
    def description(self) -> JsonObject: ...


class Rendezvous:
    """See the module. Thread-safe; every call returns at once."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        """now: what time it is, in seconds. A worker's silence counts while the controller polls: where nobody does,
        for instance because this machine is paused, heartbeats may wait to be taken in."""
        self._now, self._clock = now, LoopClock(now)
        self._lock = threading.RLock()
        self._registered: dict[int, WorkerInfo] = {}
        self._assignments: dict[str, Assignment] = {}
        self._heartbeats: dict[int, Heartbeat] = {}
        self._heard: dict[int, float] = {}
        self._workers: dict[int, str] = {}
        self._reports: list[JsonObject] = []
        self._exits: list[WorkerExit] = []
        self._values: dict[tuple[str, str], object] = {}
        self._generation = ""
        self._stop = False
        self._abort = False
        self._group = ""
        self._strangers: set[str] = set()
        self._info: JsonObject = {}

    # ── a worker's side ──
    def register(self, worker: WorkerInfo) -> None:
        with self._lock:
            if worker.group == self._group:
                self._registered[worker.slot] = worker
            else:
                self._strangers.add(worker.worker)

    def assignment(self, worker: str) -> Assignment | None:
        """None: not yet."""
        with self._lock:
            if self._abort or worker in self._strangers:
                return Assignment(generation="", rank=0, world_size=0, num_shards=0, checkpoint=None, abort=True)
            return self._assignments.get(worker)

    def heartbeat(self, slot: int, worker: str, beat: Heartbeat, reports: list[JsonObject]) -> HeartbeatReply:
        """A sign of life, how far the worker is, and what has been reported since."""
        with self._lock:
            self._heard[slot] = self._clock.now
            self._reports += reports  # also of one that is told to leave: its last checkpoint may still be committed
            if self._workers.get(slot) != worker:
                return HeartbeatReply(leave=True)
            self._heartbeats[slot] = beat
            return HeartbeatReply(stop=self._stop, leave=self._abort)

    def deregister(self, left: WorkerExit) -> None:
        with self._lock:
            self._exits.append(left)

    def put(self, generation: str, key: str, value: object) -> None:
        """Shares a small value with the other workers of a generation; None takes it back."""
        with self._lock:
            if value is None:
                self._values.pop((generation, key), None)
            else:
                self._values[generation, key] = value

    def get(self, generation: str, key: str) -> object:
        """None: not put yet."""
        with self._lock:
            return self._values.get((generation, key))

    # ── the controller's side ──
    def poll(self) -> View:
        """Hands over reports and exits once."""
        with self._lock:
            now = self._clock.look()
            view = View(
                registered=dict(self._registered),
                heartbeats=dict(self._heartbeats),
                silence_s={slot: now - heard for slot, heard in self._heard.items()},
                reports=self._reports,
                exits=self._exits,
            )
            self._reports, self._exits = [], []
            return view

    def expect(self, group: str) -> None:
        """Only workers of this group take part from now on.
        One of an earlier group, whose host was given up and is back, is told to go."""
        with self._lock:
            self._group = group

    def begin(self, assignments: dict[str, Assignment], workers: dict[int, str]) -> None:
        """Starts a generation: these workers, in these slots.
        Those of an older one are told to leave at their next heartbeat."""
        with self._lock:
            self._generation = next(iter(assignments.values())).generation
            self._assignments, self._workers = assignments, workers
            self._registered = {slot: w for slot, w in self._registered.items() if w.worker not in assignments}
            self._heartbeats, self._stop, self._values = {}, False, {}
            self._heard = dict.fromkeys(workers, self._clock.look())

    def break_up(self) -> None:
        """Somebody of this generation is gone: its other workers leave it, also those that sit in a collective."""
        with self._lock:
            self._workers = {}

    def request_stop(self) -> None:
        """Every worker stops at one and the same step boundary, soon."""
        with self._lock:
            self._stop = True

    def abort(self) -> None:
        """Every worker, also one that registers later, leaves at once, without a checkpoint."""
        with self._lock:
            self._abort = True

    def reset(self) -> None:
        """Ready for a new group of workers."""
        with self._lock:
            info = self._info
            self.__init__(self._now)
            self._info = info

    def describe(self, info: JsonObject) -> None:
        """Keeps facts on the run for whoever asks (`python -m cluster status`)."""
        with self._lock:
            self._info |= info

    def description(self) -> JsonObject:
        with self._lock:
            return dict(self._info)
