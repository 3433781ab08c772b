"""The task of preferences, on one worker: the loss of pairs, and what the model and its reference give them."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateImportUsage=false

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from jobs.common.arrays import Array
from jobs.common.data.dataset import Columns
from jobs.transformer.preference.config import PreferConfig
from jobs.transformer.preference.loss import answer_counts, log_probabilities, pair_losses
from jobs.transformer.preference.measures import SUMS, metrics_of, sums_of
from jobs.transformer.preference.reference import Reference
from jobs.transformer.tasks import Batch, Forward


@dataclass(frozen=True)
class Prefer:
    """Sums: those of measures.SUMS. A row's prediction is four log-probabilities (measures.py)."""

    rule: PreferConfig
    reference: Reference
    device: torch.device
    num_sums: int = len(SUMS)

    def sizes(self, batches: Sequence[Batch]) -> Tensor:
        real = [batch.rows["tokens"][:, :, 1:] for batch in batches if batch.weight]
        return torch.tensor([sum(map(len, real)), sum(int((rows >= 0).sum()) for rows in real)], dtype=torch.float64)

    def loss(self, forward: Forward, rows: Columns) -> Tensor:
        given, counts = (torch.from_numpy(each).to(self.device) for each in (
            self.reference.of(rows["row_id"]), answer_counts(rows)))
        return pair_losses(log_probabilities(forward, rows, self.device) - given, counts, self.rule).sum()

    def predict(self, forward: Forward, rows: Columns) -> tuple[Array, Array, Tensor]:
        own = log_probabilities(forward, rows, self.device).float().cpu().numpy()
        values, counts = np.concatenate([own, self.reference.of(rows["row_id"])], axis=1), answer_counts(rows)
        return counts, values, torch.from_numpy(sums_of(values, counts, self.rule))

    def metrics(self, sums: Sequence[float]) -> dict[str, float]:
        return metrics_of(sums)
