"""What the configs of jobs on tables have in common beside the groups of every job."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from jobs.common.config import Config, EvalConfig, TrainConfig, require
from jobs.common.data.csv_config import CsvDataConfig
from jobs.common.own_code import OwnModel
from jobs.common.training.optim_config import OptimConfig


@dataclass(frozen=True, kw_only=True)
class TableDataConfig(CsvDataConfig):
    """Where the table comes from, and which of its columns mean what."""

    uri: str = "diabetes"
    """`diabetes` or `breast_cancer` (embedded), or a path or URI: CSV (*.csv, *.csv.gz) or Parquet, a file, a folder
    or a pattern."""
    label_column: str = "target"
    """Name of the column that is predicted; of several numbers the names, with commas."""
    predict: Literal["auto", "number", "class"] = "auto"
    """What it holds: `auto` takes texts, and whole numbers from 0 to 19 at most, for classes; the run says which."""
    ignore: str | None = None
    """Names of columns that the model shall not see, with commas: numbers of rows, names of people."""
    categories: str | None = None
    """Names of columns of numbers that stand for categories, with commas: postal codes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(names(self.label_column)), "data.label_column", repr(self.label_column),
                "name the column that is predicted")


def names(listed: str | None) -> tuple[str, ...]:
    """Of a list with commas, each once."""
    return tuple(dict.fromkeys(name.strip() for name in (listed or "").split(",") if name.strip()))


@dataclass(frozen=True, kw_only=True)
class TableTrainConfig(TrainConfig):
    """How long, and in what batches."""

    epochs: int = 100
    """Passes over the training rows."""
    early_stopping_epochs: int | None = 20
    """Stops when the validation metric has not improved for this many epochs."""


@dataclass(frozen=True, kw_only=True)
class TableEvalConfig(EvalConfig):
    """How a model is judged."""

    metric: str = "auto"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Which validation metric chooses the best checkpoint and stops early: `loss`, `rmse`, `mae`, `r2`, `accuracy`, or
    one of a class of yours; `auto` is `loss`."""
    baseline: bool = False
    """Judges scikit-learn's HistGradientBoosting on the same rows, beside the model."""
    importance_rows: int = 1000
    """Test rows whose columns are shuffled, one at a time, to see what the model rests on; 0: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.importance_rows >= 0, "eval.importance_rows", self.importance_rows, "must be 0 or more")


@dataclass(frozen=True, kw_only=True)
class TableOptimConfig(OptimConfig):
    """The optimiser and its schedule."""

    label_smoothing: float = 0.0
    """Share of the target spread over all classes."""


@dataclass(frozen=True, kw_only=True)
class TableConfig(Config):
    """The groups that every job on tables has; a job adds its model."""

    data: TableDataConfig = field(default_factory=TableDataConfig)
    train: TableTrainConfig = field(default_factory=TableTrainConfig)
    eval: TableEvalConfig = field(default_factory=TableEvalConfig)
    optim: TableOptimConfig = field(default_factory=TableOptimConfig)

    @cached_property
    def own(self) -> OwnModel | None:
        """The user's code that builds the model, where there is any. Raises: ConfigError."""
        return None

    @property
    def metric(self) -> str:
        """Which validation metric chooses the best checkpoint."""
        return "loss" if self.eval.metric == "auto" else self.eval.metric
