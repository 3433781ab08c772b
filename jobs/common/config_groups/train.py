"""The group `train` of every job's config."""

from dataclasses import dataclass
from typing import ClassVar

from jobs.common.config_groups.fields import OnResume, require


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, and in what batches."""

    epochs: int = 60
    """Passes over the training rows."""
    max_steps: int | None = None
    """Ends training after this many steps, if sooner."""
    global_batch_size: int = 60
    """Rows of one optimiser step over all workers; a multiple of the most workers."""
    max_rows_per_pass: int | None = None
    """Most rows in one forward pass: a larger micro-batch is cut, and its gradients accumulated."""
    early_stopping_epochs: int | None = None
    """Stops when the validation metric has not improved for this many epochs."""
    max_skipped_steps: int = 3
    """Steps in a row with a non-finite loss or gradient that are skipped before going back to a checkpoint."""
    on_resume: ClassVar[dict[str, OnResume]] = {
        "epochs": "extends", "max_steps": "extends", "early_stopping_epochs": "extends", "max_rows_per_pass": "cuts"}

    def __post_init__(self) -> None:
        for name in ("epochs", "max_steps", "global_batch_size", "max_rows_per_pass", "early_stopping_epochs",
                     "max_skipped_steps"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"train.{name}", value, "must be at least 1")

    def total_steps(self, steps_per_epoch: int) -> int:
        """The steps of a whole run."""
        return min(self.epochs * steps_per_epoch, self.max_steps or 2**62)
