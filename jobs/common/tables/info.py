"""What a model for tables is built for, and what it takes and gives."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.core.documents import JsonObject
from cluster.core.errors import ConfigError
from jobs.common.arrays import Array
from jobs.common.data.dataset import Columns, Dataset
from jobs.common.start_config import StartConfig
from jobs.common.tables.columns import TableSchema


@dataclass(frozen=True)
class Target:
    """A number that is predicted; models predict (value - mean) / std."""

    name: str
    mean: float
    std: float


@dataclass(frozen=True, kw_only=True)
class TableInfo:
    """The data that a model is built for."""

    schema: TableSchema
    """The input columns."""
    class_names: tuple[str, ...]
    """In the order of the labels, from 0; empty where numbers are predicted."""
    targets: tuple[Target, ...]
    """The numbers that are predicted; empty where it is a class."""
    model: Any
    """The config's group `model`."""

    @staticmethod
    def of(dataset: Dataset, model: Any) -> "TableInfo":
        """model: the config's group of this name."""
        return TableInfo.described(dataset.details["_fields"], dataset.details["targets"], dataset.class_names, model)

    @staticmethod
    def described(fields: Sequence[JsonObject], targets: Sequence[JsonObject], class_names: Sequence[str],
                  model: Any) -> "TableInfo":
        """fields, targets: as prepared data and an artifact's `preprocessing` have them."""
        return TableInfo(schema=TableSchema.of(fields), class_names=tuple(class_names),
                         targets=tuple(Target(**each) for each in targets), model=model)

    @property
    def num_numbers(self) -> int:
        """N of the module's first argument, `numbers` (B, N) float32."""
        return len(self.schema.numbers)

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """Of each column of the module's second argument, `categories` (B, C) int64: its codes are below this, and 0
        stands for a value that is missing or was never seen."""
        return self.schema.cardinalities

    @cached_property
    def quantiles(self) -> tuple[float, ...]:
        """Those that are predicted of each target; the middle one is the prediction."""
        return (0.1, 0.5, 0.9) if getattr(self.model, "loss", None) == "quantile" else (0.5,)

    @property
    def num_outputs(self) -> int:
        """K of what the module gives, (B, K): a logit a class, or of each target its quantiles, normalised."""
        return len(self.class_names) or len(self.targets) * len(self.quantiles)

    def inputs(self, rows: Columns) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """(numbers, categories) of prepared rows; one of them may have no columns."""
        count = len(rows["row_id"])
        return (rows.get("numbers", np.zeros((count, 0), np.float32)),
                rows.get("categories", np.zeros((count, 0), np.int32)).astype(np.int64))

    def middle(self, predicted: Array) -> Array:
        """The predictions (rows, T) of (rows, T * quantiles)."""
        return predicted[:, len(self.quantiles) // 2 :: len(self.quantiles)]


def check_columns(start: StartConfig, there: TableInfo, here: TableInfo) -> None:
    """Raises: ConfigError where a model that another one is to begin with is of other columns, categories or targets,
    and no layer begins anew."""
    before, now = ({each.name: (each.kind, each.misses, each.values) for each in info.schema.fields}
                   for info in (there, here))
    odd = [f"column {name!r} is {_said(before.get(name))} there and {_said(now.get(name))} here"
           for name in dict.fromkeys((*before, *now)) if before.get(name) != now.get(name)]
    if not odd and list(before) != list(now):
        odd.append(f"its columns are in the order {', '.join(before)}, and here {', '.join(now)}")
    targets = [", ".join(each.name for each in info.targets) or "a class" for info in (there, here)]
    odd += [f"it predicts {targets[0]}, and here {targets[1]}"] if targets[0] != targets[1] else []
    if odd and not start.init_except:
        raise ConfigError(f"--model.init-from {start.init_from}: is of another table: {'; '.join(odd)}: take data of "
                          "the same columns, or let the layers that they go into and come out of begin anew with "
                          "--model.init-except")


def _said(field: tuple[str, bool, tuple[str, ...]] | None) -> str:
    if field is None:
        return "missing"
    kind, misses, values = field
    listed = f" of {', '.join(values[:5])}{', …' if len(values) > 5 else ''}" if values else ""
    return f"a {kind}{listed}{', which may be missing,' if misses else ''}"
