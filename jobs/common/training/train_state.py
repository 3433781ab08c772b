"""What every training loop keeps account of, and what a checkpoint keeps of it; no framework, no loop."""

import math
from dataclasses import dataclass, field
from typing import Literal

from cluster.core.documents import JsonObject, check_fields
from jobs.common.checkpoint.manifest import BEGIN_ANOTHER_RUN

StepOutcome = Literal["taken", "skipped", "scaled down", "corrupted"]
"""Of a step: taken; not taken because loss or gradient was not finite, and nothing has changed; not taken because it
was too much for half precision, which is not held against the run; or weights or sums are no longer to be used."""


class NonFiniteError(Exception):
    """Too many steps in a row had a non-finite loss or gradient: back to a checkpoint, and leave `steps` out."""

    def __init__(self, steps: tuple[int, ...]) -> None:
        super().__init__(f"non-finite loss or gradient at steps {', '.join(map(str, steps))}")
        self.steps = steps


@dataclass
class TrainState:
    """Where training stands; what a checkpoint keeps beside the tensors."""

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    best_metric: float | None = None
    epochs_since_best: int = 0
    skipped_steps: int = 0
    """Steps not taken because loss or gradient was not finite."""
    skipped_in_a_row: list[int] = field(default_factory=list[int])
    """Those among them that led up to now."""
    optimizer_steps: int = 0
    """Steps that were taken."""
    evaluated_at: int = -1
    """The step after which it was last evaluated; -1: never, or before a checkpoint of an earlier version."""

    @staticmethod
    def saved(state: JsonObject) -> "TrainState":
        """Returns what a checkpoint kept. Earlier versions kept the number of steps taken beside it, or not at all.

        Raises: NewerVersionError if it kept a field that is not known here.
        """
        own = state.get("progress", state)
        check_fields("the checkpoint to resume from", own, TrainState, BEGIN_ANOTHER_RUN)
        taken = state.get("optimizer_steps", own["step"] - own["skipped_steps"])
        return TrainState(**{**own, "optimizer_steps": taken})

    def record(self, outcome: StepOutcome, max_skipped_steps: int) -> None:
        """Counts a step. Raises: NonFiniteError, after too many skips in a row, or at once if it was corrupted."""
        if outcome in ("skipped", "corrupted"):
            self.skip(max_skipped_steps if outcome == "skipped" else 1)
        else:
            self.skipped_in_a_row = []
            self.optimizer_steps += outcome == "taken"
        self.advance()

    def leave_out(self) -> None:
        """Counts a step whose rows are left out of training."""
        self.skipped_in_a_row = []
        self.advance()

    def advance(self) -> None:
        self.step += 1
        self.step_in_epoch += 1

    def next_epoch(self) -> None:
        self.epoch += 1
        self.step_in_epoch = 0

    def reopen_epoch(self, steps_per_epoch: int) -> None:
        """Goes back into the epoch that a limit on the steps had cut off."""
        if self.step_in_epoch == 0 and (done := self.step % steps_per_epoch):
            self.epoch, self.step_in_epoch = self.epoch - 1, done

    def skip(self, most_in_a_row: int) -> None:
        """Counts a step whose loss or gradient was not finite. Raises: NonFiniteError after so many in a row."""
        self.skipped_steps += 1
        self.skipped_in_a_row.append(self.step)
        if len(self.skipped_in_a_row) >= most_in_a_row:
            raise NonFiniteError(tuple(self.skipped_in_a_row))

    def evaluated(self, metric: float) -> None:
        """Remembers whether an evaluation was the best so far; more is better."""
        self.evaluated_at = self.step
        better = math.isfinite(metric) and (self.best_metric is None or metric > self.best_metric)
        self.best_metric = metric if better else self.best_metric
        self.epochs_since_best = 0 if better else self.epochs_since_best + 1

    def out_of_patience(self, limit: int | None) -> bool:
        """Whether there was no better evaluation for `limit` epochs."""
        return limit is not None and self.epochs_since_best >= limit
