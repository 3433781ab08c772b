"""What every training loop keeps account of, and how its learning rate goes; no framework, no loop."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.core.documents import check_fields
from jobs.common.checkpoint.manifest import BEGIN_ANOTHER_RUN
from jobs.common.training.session import NonFiniteError


@dataclass
class Progress:
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

    @staticmethod
    def restored(values: Mapping[str, Any]) -> "Progress":
        """Returns what a checkpoint kept. Raises: NewerVersionError if it kept a field that is not known here."""
        check_fields("the checkpoint to resume from", values, Progress, BEGIN_ANOTHER_RUN)
        return Progress(**values)

    def advance(self) -> None:
        self.step += 1
        self.step_in_epoch += 1

    def next_epoch(self) -> None:
        self.epoch += 1
        self.step_in_epoch = 0

    def skip(self, most_in_a_row: int) -> None:
        """Counts a step whose loss or gradient was not finite. Raises: NonFiniteError after so many in a row."""
        self.skipped_steps += 1
        self.skipped_in_a_row.append(self.step)
        if len(self.skipped_in_a_row) >= most_in_a_row:
            raise NonFiniteError(tuple(self.skipped_in_a_row))

    def evaluated(self, metric: float) -> None:
        """Remembers whether an evaluation was the best so far; more is better."""
        better = math.isfinite(metric) and (self.best_metric is None or metric > self.best_metric)
        self.best_metric = metric if better else self.best_metric
        self.epochs_since_best = 0 if better else self.epochs_since_best + 1

    def out_of_patience(self, limit: int | None) -> bool:
        """Whether there was no better evaluation for `limit` epochs."""
        return limit is not None and self.epochs_since_best >= limit


def learning_rate(highest: float, schedule: str, warmup_steps: int, step: int, total_steps: int, lowest: float = 0.0) -> float:
    """Linear warm-up, then `constant`, or down to `lowest` at the last step: `linear`, or half a `cosine` (Loshchilov & Hutter
    2017, eq. 5)."""
    if step < warmup_steps:
        return highest * (step + 1) / warmup_steps
    if schedule == "constant":
        return highest
    done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    left = 1 - done if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return lowest + (highest - lowest) * left
