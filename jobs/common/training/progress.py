"""How far a worker is: the loop only leaves notes here, and the thread of the session that beats sends them.

A note costs the step path next to nothing; what is sent, and when, does not depend on how fast the steps are.
"""

import math
import queue
import time
from collections import deque
from collections.abc import Callable, Sequence

from cluster.core.documents import JsonObject
from cluster.core.storage import Store
from jobs.common.training.rendezvous import Assignment, Heartbeat
from jobs.common.training.step_file import StepMark
from jobs.common.training.step_timer import StepTimer
from jobs.common.training.worker_data import WorkerData

_REPORTS_KEPT = 64


class Progress:
    """The notes of one worker in one generation."""

    def __init__(self, *, run_store: Store, assignment: Assignment, data: WorkerData, step: int,
                 reported: list[JsonObject], until_epoch: int | None, go_on: Callable[[], None],
                 on_first_step: Callable[[], None]) -> None:
        """step: where this generation begins. reported: rows of the history that may not have reached anybody; rank 0
        sends them again. go_on: raises where this worker is to go no further. on_first_step: called once, when all
        workers have begun."""
        self._rank, self._data, self._until_epoch, self._go_on = assignment.rank, data, until_epoch, go_on
        self._on_first_step = on_first_step
        self.step, self.pace, self.marks = step, StepTimer(), dict[str, float]()
        self.state: JsonObject = {"step": step, "ticks": 0, "passes": len(data.shards)}
        self.losses: deque[float] = deque(maxlen=100_000)
        self.reports: queue.SimpleQueue[JsonObject] = queue.SimpleQueue()
        self.last_reports: deque[JsonObject] = deque(maxlen=_REPORTS_KEPT)
        for row in reported:
            self._send(row)
        self._curve: list[float] = []
        self._next_point = 0
        self._learning_rate: float | None = None
        self._mark = StepMark.open(run_store, assignment.generation, self._rank)

    def on_step_end(self, *, step: int, epoch: int, rows: int, loss: float | Sequence[float], skipped: int,
                    learning_rate: float | None = None) -> None:
        """Call it after each step. step: steps done in the run; skipped: how many of them were; rows: of all workers;
        loss: their mean, or of several steps that were made in one go the loss of each.

        Raises: PeerLostError if this worker is to leave the generation.
        """
        losses = loss if isinstance(loss, Sequence) else [loss]
        self.pace.step(rows, len(losses))
        if "first_step" not in self.marks:
            self.marks["first_step"] = time.time()
            self._on_first_step()
        self.step, self._learning_rate = step, learning_rate
        self._mark.write(step)
        self.losses.extend(filter(math.isfinite, losses))
        self.state["step"], self.state["epoch"], self.state["skipped_steps"] = step, epoch, skipped
        self._go_on()

    def heartbeat(self) -> None:
        """A sign of progress in what has no steps, such as an evaluation: else it would be taken for a hang.

        Raises: PeerLostError if this worker is to leave the generation.
        """
        self.state["ticks"] += 1
        self._go_on()

    def update_status(self, **values: object) -> None:
        """Puts values into the next heartbeats: fields of `Heartbeat`, by name. Raises: TypeError for another name."""
        Heartbeat(**JsonObject(values))
        self.state |= values

    def report(self, kind: str, **values: object) -> None:
        """A row of the run's history, such as an evaluation's metrics. Rank 0 only has an audience; the others remember
        evaluations, for where it dies before it was heard."""
        if self._rank == 0 or kind == "evaluation":
            more = self._costs() if kind == "evaluation" and self._until_epoch is not None else {}
            self._send({"kind": kind, **values, **more})

    def _send(self, row: JsonObject) -> None:
        self.last_reports.append(row)
        if self._rank == 0:
            self.reports.put(row)

    def _costs(self) -> dict[str, float]:
        """What a search may weigh against a metric. The evaluation that is reported has run since the last step."""
        rows = len(self._data.local_range("validation"))
        per_row_ms = 1000 * self.pace.since_last_s / max(1, rows)
        return {"parameters": self.state["parameters"], "validation_ms_per_row": per_row_ms}

    def should_pause(self, epoch: int) -> bool:
        """Whether a trial goes no further for now, with so many epochs done: its search says how it goes on."""
        return self._until_epoch is not None and epoch >= self._until_epoch

    def keep_curve(self, losses: list[float]) -> None:
        """Reports a point of the training curve: ever more rarely, so that a long run's history stays short."""
        self._curve += losses
        if self.step >= self._next_point:
            mean = sum(self._curve) / max(1, len(self._curve))
            known = self.pace.seconds > 0  # it is not in the first steps
            more = {"samples_per_s": self.pace.samples_per_s} if known else {}
            more |= {} if self._learning_rate is None else {"learning_rate": self._learning_rate}
            self.report("progress", step=self.step, epoch=self.state.get("epoch", 0), train_loss=mean, **more)
            self._curve = []
            self._next_point = self.step + max(1, self.step // 50)

    def close(self) -> None:
        self._mark.close()
