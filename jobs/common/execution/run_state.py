"""The driver's account of a run: what was lost, restarted, left out, and how well the time was used.

It outlives workers and drivers: `progress.json` in the run's folder is written every second or so, and read by the
next. What decides the result, the steps that are left out, is in a file of its own,
written at once and checked when it is read.
"""

import bisect
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields

from cluster.core.documents import DocumentError, JsonObject, load_json
from cluster.core.errors import CheckpointError
from cluster.core.storage import Store
from jobs.common.checkpoint.manifest import read_json, write_json
from jobs.common.execution.time_account import TimeAccount
from jobs.common.training.rendezvous import Heartbeat

RUN_FILE = "run.json"
"""The record of a run in its folder: see runs/run_folder.py."""
PROGRESS_FILE = "progress.json"
_EXCLUDED_FILE = "excluded_steps.json"


@dataclass(frozen=True, kw_only=True)
class _Saved:
    """The fields of progress.json: those of a `RunState`, and whether its driver has ended it."""

    restarts: int
    lost_steps: int
    recovery_s: list[float]
    events: list[str]
    history: list[JsonObject]
    rollbacks: int
    skipped_steps: int
    highest_step: int
    wall_s: float
    median_step_s: float
    samples_per_s: float
    ended: bool
    memory_resumes: int = 0
    spent: dict[str, list[float]] = field(default_factory=dict[str, list[float]])


_SAVED = tuple(each.name for each in fields(_Saved) if each.name not in ("ended", "spent"))


@dataclass(kw_only=True)
class RunState:
    """Counters of a whole run, over all its drivers. Times in seconds."""

    store: Store
    failures: int = 0
    """Of this driver only: what --run.max-failures limits."""
    restarts: int = 0
    lost_steps: int = 0
    """Steps executed twice."""
    recovery_s: list[float] = field(default_factory=list[float])
    """From the last step before each failure to the next useful one: the first that had not been done before it."""
    events: list[str] = field(default_factory=list[str])
    history: list[JsonObject] = field(default_factory=list[JsonObject])
    excluded_steps: tuple[int, ...] = ()
    rollbacks: int = 0
    memory_resumes: int = 0
    """How often a generation began with what a worker held, not with a checkpoint of storage."""
    skipped_steps: int = 0
    highest_step: int = 0
    wall_s: float = 0.0
    median_step_s: float = 0.0
    samples_per_s: float = 0.0
    account: TimeAccount = field(default_factory=TimeAccount)
    """Where the time went."""
    price: float | None = None
    """Of a worker for an hour, in whatever the user counts."""
    require: Callable[[], None] = lambda: None
    """Called before anything is written; raises if the run's folder is gone."""
    _began: float = field(default_factory=time.monotonic)
    _earlier_s: float = 0.0
    _failed_at: float | None = None
    _done_before: int = 0
    _step_at: float = field(default_factory=time.monotonic)
    _saved_at: float = 0.0

    @staticmethod
    def open(store: Store, require: Callable[[], None] = lambda: None) -> "RunState":
        """The account so far. A driver that ended without a word counts as a restart.

        Raises: CheckpointError if the list of the steps to leave out is damaged.
        """
        run_state = RunState(store=store, excluded_steps=_excluded(store), require=require)
        try:
            saved = load_json(store, PROGRESS_FILE, _Saved)
        except FileNotFoundError:
            return run_state
        except DocumentError as error:
            run_state.event(f"{PROGRESS_FILE} was damaged ({error}): restarts, lost steps and history before are not "
                            "known")
            return run_state
        for key in _SAVED:
            setattr(run_state, key, getattr(saved, key))
        run_state._earlier_s, run_state.account = run_state.wall_s, TimeAccount(saved.spent)
        if not saved.ended:
            run_state.restarts += 1
            run_state.event("the driver was lost, and the run was submitted again")
        return run_state

    def observe(self, beat: Heartbeat | None, highest: int, reports: list[JsonObject], workers: int = 0) -> None:
        """At each look: rank 0's latest heartbeat, the highest step of any rank, what was reported since, and how many
        workers are held."""
        self.account.look(beat, workers)
        if highest > self.highest_step:
            self.reached(highest)
            self.account.step(again=highest <= self._done_before)
            self._step_at = time.monotonic()
            if self._failed_at is not None and highest > self._done_before:
                self.recovery_s.append(round(self._step_at - self._failed_at, 2))
                self._failed_at = None
        if beat is not None:
            self.median_step_s = beat.median_step_s or self.median_step_s
            self.samples_per_s = beat.samples_per_s or self.samples_per_s
            self.skipped_steps = self.skipped_steps if beat.skipped_steps is None else beat.skipped_steps
        self._remember(reports)
        # a checkpoint follows: it is not repeated
        evaluated = any(report["kind"] == "evaluation" for report in reports)
        if evaluated or time.monotonic() - self._saved_at > (0.5 if self.store.is_local else 10.0):
            self.save(durable=evaluated)

    def _remember(self, reports: list[JsonObject]) -> None:
        """In the order of steps; what is reported again, since its step was repeated, takes the place of what was."""
        for report in reports:
            same = (report["kind"], report["step"])
            self.history = [row for row in self.history if (row["kind"], row["step"]) != same]
            bisect.insort(self.history, report, key=lambda row: row["step"])

    def reached(self, step: int) -> None:
        self.highest_step = max(self.highest_step, step)

    def resume_from(self, step: int, *, from_memory: bool = False) -> None:
        """A generation begins after this step: those beyond it that had been executed are lost."""
        self.memory_resumes += from_memory
        self.lost_steps += max(0, self.highest_step - step)
        self._done_before = max(self._done_before, self.highest_step)
        self.highest_step = step
        self.account.restarted()

    def failure(self, what: str) -> None:
        self.failures += 1
        self.restarts += 1
        self._failed_at = self._step_at
        self.account.broke()
        self.event(what)

    def exclude(self, steps: list[int]) -> None:
        self.rollbacks += 1
        self.account.broke()
        self.excluded_steps = tuple(sorted({*self.excluded_steps, *steps}))
        write_json(self.store, _EXCLUDED_FILE, {"steps": list(self.excluded_steps)})
        self.event(f"loss or gradient not finite: the rows of steps {steps} are left out")

    def event(self, text: str) -> None:
        """Something that a reader of the report should know."""
        self.events.append(f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime())} {text}")

    @property
    def elapsed_s(self) -> float:
        """Wall time of training, over all drivers."""
        return self._earlier_s + time.monotonic() - self._began

    @property
    def goodput(self) -> float:
        """Unique committed steps × the uninterrupted median step, over the wall time of training."""
        wall = self.elapsed_s
        return self.highest_step * self.median_step_s / wall if wall else 0.0

    def totals(self) -> dict[str, float]:
        """For monitoring: counters and gauges by metric name."""
        return {"trainyard_train_restarts_total": self.restarts, "trainyard_train_lost_steps_total": self.lost_steps,
                "trainyard_train_skipped_steps_total": self.skipped_steps,
                "trainyard_train_rollbacks_total": self.rollbacks,
                "trainyard_train_goodput_ratio": self.goodput}

    def result(self, status: str, exit_code: int, attempt: int) -> JsonObject:
        """What result.json says of how the run went."""
        return {
            "status": status, "exit_code": exit_code, "attempt": attempt, "metrics": {}, "artifact": None,
            "samples_per_s": self.samples_per_s, "restarts": self.restarts, "lost_steps": self.lost_steps,
            "memory_resumes": self.memory_resumes, "recovery_s": self.recovery_s, "goodput": self.goodput,
            "steps": self.highest_step, "skipped_steps": self.skipped_steps,
            "excluded_steps": list(self.excluded_steps),
            "median_step_s": self.median_step_s, "wall_s": self.wall_s, "events": self.events,
            "time_s": self.account.seconds(),
        } | ({} if self.price is None else {"cost": self.account.cost(self.price)})

    def save(self, *, ended: bool = False, durable: bool = False) -> None:
        """Writes progress.json. One that a power cut damages costs a part of the history, and no step.

        Raises: StorageFullError; what `require` raises.
        """
        self.require()
        self._saved_at = time.monotonic()
        self.wall_s = self.elapsed_s
        saved = {key: getattr(self, key) for key in _SAVED} | {"ended": ended, "spent": self.account.spent}
        self.store.write_text(PROGRESS_FILE, json.dumps(saved), durable=durable or ended)


@dataclass(frozen=True)
class _Excluded:
    steps: tuple[int, ...]


def _excluded(store: Store) -> tuple[int, ...]:
    try:
        return read_json(store, _EXCLUDED_FILE, _Excluded).steps
    except FileNotFoundError:
        return ()
    except CheckpointError as error:
        raise CheckpointError(f"{error}: {store.location(_EXCLUDED_FILE)} says which steps' rows are left out, and "
                              "going on with another list would give another result: restore it, or begin another run "
                              "with --run.name") from error
