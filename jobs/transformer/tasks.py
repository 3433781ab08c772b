"""What the loop needs to know of a task: the loss of a pass, what it is divided by, and what is predicted of a row."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateImportUsage=false

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from cluster.core.documents import JsonObject
from cluster.core.errors import ConfigError
from jobs.common.arrays import Array
from jobs.common.data.dataset import Columns, Dataset
from jobs.transformer.chat.packing import LEARNT
from jobs.transformer.config import TransformerConfig
from jobs.transformer.inputs import classification_loss, inputs_of, marked_inputs, packed_inputs, token_losses

Forward = Callable[..., Any]


@dataclass(frozen=True)
class Batch:
    """The rows of one forward pass. weight: 0 for a pass that is made only because other workers make one."""

    shard: int
    part: int
    rows: Columns
    weight: float = 1.0


class Predicts(Protocol):
    """What says something of each row."""

    def predict(self, forward: Forward, rows: Columns) -> tuple[Array, Array, Tensor]:
        """(labels or counts of targets (m,), what is predicted (m, …), `num_sums` sums for the metrics):
        see `metrics`."""
        ...


class Task(Predicts, Protocol):
    """One of the tasks, on one worker."""

    @property
    def num_sums(self) -> int:
        """How many sums over rows the metrics are made of."""
        ...

    def sizes(self, batches: Sequence[Batch]) -> Tensor:
        """(2,) float64: what the sum of losses is divided by (rows or target tokens), and real tokens,
        of this worker."""
        ...

    def loss(self, forward: Forward, rows: Columns) -> Tensor:
        """Summed over rows or target tokens, in nats."""
        ...

    def metrics(self, sums: Sequence[float]) -> dict[str, float]:
        """From the sums over all rows of all workers."""
        ...


@dataclass(frozen=True)
class Classify:
    """Sums: rows, rows that are right, loss, then of each class rows, rows predicted to be of it,
    and those that are both."""

    num_classes: int
    pad_id: int
    label_smoothing: float
    device: torch.device
    mask: "Mask | None" = None
    """Of training rows."""

    @property
    def num_sums(self) -> int:
        return 3 + 3 * self.num_classes

    def sizes(self, batches: Sequence[Batch]) -> Tensor:
        real = [batch.rows for batch in batches if batch.weight]
        return torch.tensor([sum(len(rows["label"]) for rows in real), sum(int(rows["length"].sum()) for rows in real)],
                            dtype=torch.float64)

    def inputs(self, rows: Columns) -> dict[str, Tensor]:
        return inputs_of(rows["tokens"], rows["length"], self.pad_id, self.device)

    def loss(self, forward: Forward, rows: Columns) -> Tensor:
        labels = torch.from_numpy(np.ascontiguousarray(rows["label"])).to(self.device)
        inputs = self.inputs(rows)
        if self.mask is not None:
            inputs["input_ids"] = self.mask.hide(inputs["input_ids"])
        return classification_loss(forward(**inputs).logits, labels, self.label_smoothing)

    def predict(self, forward: Forward, rows: Columns) -> tuple[Array, Array, Tensor]:
        logits = forward(**self.inputs(rows)).logits.float().cpu()
        labels = torch.from_numpy(np.ascontiguousarray(rows["label"]))
        predicted = logits.argmax(1)
        hits = labels[predicted == labels]
        totals = torch.tensor([len(labels), len(hits), classification_loss(logits, labels)], dtype=torch.float64)
        by_class = [torch.bincount(each, minlength=self.num_classes).double() for each in (labels, predicted, hits)]
        return rows["label"], torch.softmax(logits, 1).numpy(), torch.cat([totals, *by_class])

    def metrics(self, sums: Sequence[float]) -> dict[str, float]:
        rows, right, loss = sums[:3]
        true, predicted, hits = np.asarray(sums[3:]).reshape(3, self.num_classes)
        macro_f1 = float(np.mean(2 * hits / np.maximum(true + predicted, 1)))  # a class that never occurs counts 0
        return {"accuracy": right / rows, "macro_f1": macro_f1, "loss": loss / rows}


@dataclass(frozen=True)
class Mask:
    """Hides tokens from a model that is trained, so that it learns to do without any one of them."""

    mask_id: int
    special_ids: tuple[int, ...]
    share: float

    def hide(self, ids: Tensor) -> Tensor:
        """ids: (m, T). A row's share of hidden tokens is uniform from 0 to 2 `share`; special ones stay.
        Draws from torch."""
        chance = torch.rand(len(ids), 1) * 2 * self.share  # on the CPU: the same rows whatever the device
        hidden = (torch.rand(ids.shape) < chance).to(ids.device)
        return ids.masked_fill(hidden & ~torch.isin(ids, torch.tensor(self.special_ids, device=ids.device)),
                               self.mask_id)


@dataclass(frozen=True)
class Generate:
    """Sums: target tokens, loss. A row's prediction is its own loss."""

    start_id: int
    end_id: int | None
    device: torch.device
    num_sums: int = 2

    def sizes(self, batches: Sequence[Batch]) -> Tensor:
        real = [batch.rows["tokens"][:, 1:] for batch in batches if batch.weight]
        tokens = sum(int((rows >= 0).sum()) for rows in real)
        starts = sum(int((rows == self.start_id).sum()) for rows in real) if self.end_id is not None else 0
        return torch.tensor([tokens - starts, tokens], dtype=torch.float64)

    def inputs(self, rows: Columns) -> tuple[dict[str, Tensor], Tensor]:
        """What the model reads, and targets (m, T)."""
        return packed_inputs(rows["tokens"], self.start_id, self.end_id, self.device)

    def losses(self, forward: Forward, rows: Columns) -> tuple[Tensor, Tensor]:
        """Losses and targets, (m, T)."""
        batch, targets = self.inputs(rows)
        return token_losses(forward(**batch).logits, targets), targets

    def loss(self, forward: Forward, rows: Columns) -> Tensor:
        return self.losses(forward, rows)[0].sum()

    def predict(self, forward: Forward, rows: Columns) -> tuple[Array, Array, Tensor]:
        losses, targets = self.losses(forward, rows)
        counts = (targets >= 0).sum(1).cpu().numpy()
        of_rows = losses.double().sum(1, keepdim=True).cpu()
        return counts, of_rows.float().numpy(), torch.tensor([counts.sum(), of_rows.sum()], dtype=torch.float64)

    def metrics(self, sums: Sequence[float]) -> dict[str, float]:
        targets, loss = sums
        return {"loss": loss / targets}


@dataclass(frozen=True)
class Chat(Generate):
    """The same of conversations, whose marks say which tokens are targets."""

    def sizes(self, batches: Sequence[Batch]) -> Tensor:
        real = [batch.rows for batch in batches if batch.weight]
        return torch.tensor([sum(int((rows["marks"][:, 1:] & LEARNT > 0).sum()) for rows in real),
                             sum(int((rows["tokens"][:, 1:] >= 0).sum()) for rows in real)], dtype=torch.float64)

    def inputs(self, rows: Columns) -> tuple[dict[str, Tensor], Tensor]:
        return marked_inputs(rows["tokens"], rows["marks"], self.device)


def task_of(dataset: Dataset, config: TransformerConfig, device: torch.device) -> Task:
    about = dataset.details
    if config.task == "classify":
        return Classify(len(dataset.class_names), about["pad_id"], config.optim.label_smoothing, device,
                        _mask(about, config))
    return (Chat if config.task == "chat" else Generate)(about["start_id"], about["end_id"], device)


def _mask(about: JsonObject, config: TransformerConfig) -> Mask | None:
    if not config.train.mask_tokens:
        return None
    if about["mask_id"] is None:
        raise ConfigError(f"--train.mask-tokens {config.train.mask_tokens}: the tokenizer of {config.model.origin} has "
                          "no mask token: leave the option out")
    return Mask(about["mask_id"], tuple({*about["special_ids"], about["pad_id"]}), config.train.mask_tokens)
