"""How a PyTorch module that predicts from a table's rows is trained and judged. The step is of
`jobs/pytorch/trainable.py`.

Shapes: m rows, N numbers, C categories, K outputs: a logit a class, or quantiles of T targets, normalised.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateImportUsage=false

import functools
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (the field's own name)
from torch import Tensor

from cluster.core.errors import ConfigError
from jobs.common.artifact.artifact import Artifact
from jobs.common.data.dataset import Columns, Dataset, SplitName
from jobs.common.evaluation.part_sums import PartSums
from jobs.common.own_code import OwnModel, function_of_yours
from jobs.common.start_config import StartConfig
from jobs.common.tables.config import TableConfig
from jobs.common.tables.info import TableInfo, check_columns
from jobs.common.tables.predictor import info_of
from jobs.common.training.context import TrainContext
from jobs.common.training.trainable import Answers, Tensors
from jobs.pytorch.own_module import Loss, Trial, build_to_train, check, other_module
from jobs.pytorch.process_group import Group
from jobs.pytorch.tables.model import in_order, raw_numbers
from jobs.pytorch.trainable import TorchTraining


class TableTraining(TorchTraining):
    """A module from numbers (m, N) and categories (m, C) to outputs (m, K), and its optimiser, on one worker."""

    def __init__(self, context: TrainContext, config: TableConfig, group: Group, device: torch.device, *, own: OwnModel,
                 loss: str, info: TableInfo) -> None:
        """loss: as the config names it. Raises: ConfigError for a module or loss that does not fit."""
        model = build_to_train(own, info, config.run.seed)
        rows = config.train.global_batch_size // context.num_shards
        check(own, loss, model, loss_of(loss, info), _trial(info), min(rows, config.train.max_rows_per_pass or rows))
        super().__init__(context, config, group, device, model.to(device), own)
        self.config, self.info, self.own = config, info, own
        self.mean, self.std = (np.array([getattr(each, name) for each in info.targets]) for name in ("mean", "std"))
        self.loss = loss_of(loss, info)
        self.training_loss = loss_of(loss, info, config.optim.label_smoothing)

    def check_origin(self, start: StartConfig, opened: Artifact, dataset: Dataset) -> None:
        super().check_origin(start, opened, dataset)
        check_columns(start, info_of(opened, None), TableInfo.of(dataset, None))

    def load_state_dict(self, parts: Iterator[Tensors], optimizer_steps: int) -> None:
        """Raises: ConfigError for another module than the one that the checkpoint is of."""
        try:
            super().load_state_dict(parts, optimizer_steps)
        except (RuntimeError, ValueError) as error:
            raise other_module(self.own.name, error) from error

    def inputs(self, rows: Columns) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(each).to(self.device) for each in self.info.inputs(rows))

    def targets(self, rows: Columns) -> Tensor:
        """Class codes (m,), or normalised numbers (m, T)."""
        if self.info.class_names:
            return torch.from_numpy(rows["label"]).to(self.device)
        return torch.from_numpy(((rows["target"] - self.mean) / self.std).astype(np.float32)).to(self.device)

    def backward(self, rows: Columns, epoch: int) -> float:
        """Adds these rows' share of the global batch's gradient to the parameters'. Returns their share of its loss."""
        if self.whole_loss:
            return self.lower(self.whole_loss(self.model, self.batch(rows)), len(rows["row_id"]))
        return self.lower(self.training_loss(self.model(*self.inputs(rows)), self.targets(rows)), len(rows["row_id"]))

    def batch(self, rows: Columns) -> dict[str, Tensor]:
        """What a loss of the whole model is given."""
        numbers, categories = self.inputs(rows)
        return {"numbers": numbers, "categories": categories, "target": self.targets(rows),
                "row_id": torch.from_numpy(rows["row_id"])}

    def mean_loss(self, rows: Columns, outputs: Tensor) -> float:
        """Of rows that the model is judged on."""
        if self.whole_loss:
            return float(self.whole_loss(self.model, self.batch(rows)))
        return float(self.loss(outputs, self.targets(rows).cpu()))

    def answer(self, rows: Columns) -> Tensor:
        """Outputs (m, K), quantiles in their order."""
        return in_order(self.model(*self.inputs(rows)).float(), self.info)

    def evaluate(self, split: SplitName) -> dict[str, float]:
        """The loss and, of classes, the accuracy, of numbers RMSE, MAE and R² in their own units (means over several
        targets): sums of all workers are added, every row counts once."""
        found = self._of_classes(split) if self.info.class_names else self._of_numbers(split)
        return found | self.own_figures(split)

    def _of_classes(self, split: SplitName) -> dict[str, float]:
        sums = PartSums(self.context, 3)
        for part, rows, outputs in self.batches(split):
            labels = torch.from_numpy(rows["label"])
            sums.add(part, [len(labels), (outputs.argmax(1) == labels).sum().item(),
                            self.mean_loss(rows, outputs) * len(labels)])
        count, right, loss = sums.total(self.total).tolist()
        return {"loss": loss / count, "accuracy": right / count}

    def _of_numbers(self, split: SplitName) -> dict[str, float]:
        sums = PartSums(self.context, 6 * len(self.mean))
        for part, rows, outputs in self.batches(split):
            errors = self.info.middle(raw_numbers(outputs, self.info)) - rows["target"]
            values = rows["target"] - self.mean
            loss = self.mean_loss(rows, outputs) * len(errors)
            each = (np.ones_like(errors), errors**2, np.abs(errors), values, values**2)
            sums.add(part, np.concatenate([*(figures.sum(axis=0) for figures in each), np.full(len(self.mean), loss)]))
        count, squared, absolute, values, squares, loss = sums.total(self.total).reshape(6, -1)
        with np.errstate(divide="ignore", invalid="ignore"):
            r2 = 1 - squared / (squares - values**2 / count)
        return {"loss": float((loss / count).mean()), "rmse": float(np.sqrt(squared / count).mean()),
                "mae": float((absolute / count).mean()), "r2": float(r2.mean())}

    def predict(self, split: SplitName) -> Iterator[Answers]:
        """Probabilities, or numbers in the targets' own units."""
        for _, rows, outputs in self.batches(split):
            if self.info.class_names:
                yield rows["row_id"], rows["label"], torch.softmax(outputs, 1).numpy()
            else:
                yield rows["row_id"], rows["target"], raw_numbers(outputs, self.info)

    def predict_perturbed(self) -> None:
        """Nothing: the report shuffles columns by itself."""


# ── losses ──
def loss_of(name: str, info: TableInfo, label_smoothing: float = 0.0) -> Loss:
    """The function that a config names: `auto` is cross entropy, or mean squared error. Raises: ConfigError."""
    if ":" in name:
        return function_of_yours("--model.loss", name)
    if info.class_names:
        if name == "quantile":
            raise ConfigError("--model.loss quantile: the target is a class: leave the option out, or pass "
                              "--data.predict number")
        return functools.partial(F.cross_entropy, label_smoothing=label_smoothing)
    return functools.partial(pinball, info.quantiles) if name == "quantile" else F.mse_loss


def pinball(quantiles: tuple[float, ...], outputs: Tensor, targets: Tensor) -> Tensor:
    """The loss that quantiles are the minimum of (Koenker & Bassett 1978), its mean. outputs: (m, T * quantiles)."""
    errors = targets.unsqueeze(2) - outputs.reshape(*targets.shape, -1)
    levels = torch.tensor(quantiles, device=errors.device)
    return torch.maximum(levels * errors, (levels - 1) * errors).mean()


def _trial(info: TableInfo) -> Trial:
    def inputs(rows: int) -> tuple[Tensor, Tensor]:
        return torch.zeros((rows, info.num_numbers)), torch.zeros((rows, len(info.cardinalities)), dtype=torch.int64)

    def targets(rows: int) -> Tensor:
        return torch.zeros(rows, dtype=torch.int64) if info.class_names else torch.zeros((rows, len(info.targets)))

    def batch(rows: int) -> dict[str, Tensor]:
        numbers, categories = inputs(rows)
        return {"numbers": numbers, "categories": categories, "target": targets(rows), "row_id": torch.arange(rows)}

    what = "logits" if info.class_names else "numbers"
    return Trial(inputs=inputs, targets=targets, batch=batch, outputs=info.num_outputs,
                 given=f"numbers (1, {info.num_numbers}) and categories (1, {len(info.cardinalities)})",
                 wanted=f"{what} (1, {info.num_outputs})")
