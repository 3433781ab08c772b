"""The config of the job for tables: what such jobs have in common, and the model."""

from dataclasses import dataclass, field
from functools import cached_property

from jobs.common.config import require
from jobs.common.own_code import OwnModel, require_function
from jobs.common.start_config import StartConfig
from jobs.common.tables.config import TableConfig


@dataclass(frozen=True, kw_only=True)
class ModelConfig(StartConfig):
    """The network, or a `torch.nn.Module` of yours."""

    build: str = "jobs.tabular.model:residual_network"
    """`module:function`, called as `build(info) -> nn.Module` with the data's `num_numbers`, `cardinalities`,
    `num_outputs`, `class_names`, `targets`, `schema` and this group, `model`.
    The module takes numbers (B, num_numbers) and categories (B, C) int64, and gives (B, num_outputs).
    Or `module:Class`, whose methods may also say loss, optimiser, schedule and metrics: see jobs/README.md."""
    settings: str | None = None
    """JSON of the attributes that an instance of that class has, such as '{"width": 64}'."""
    loss: str = "auto"
    """`auto`: cross entropy of classes, mean squared error of normalised numbers. `quantile`: predicts the 0.1, 0.5 and
    0.9 quantiles of numbers. `module:function`: yours, called as `loss(outputs, targets)`: the mean, a scalar."""
    width: int = 128
    """Of the network's layers."""
    blocks: int = 2
    """Residual blocks, of two layers each."""
    dropout: float = 0.2
    """Share of a block's values that are left out at random."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_function("model.build", self.build)
        if self.loss not in ("auto", "quantile"):
            require_function("model.loss", self.loss)
        require(self.width >= 1, "model.width", self.width, "must be at least 1")
        require(self.blocks >= 0, "model.blocks", self.blocks, "must be 0 or more")
        require(0 <= self.dropout < 1, "model.dropout", self.dropout, "must be at least 0 and less than 1")


@dataclass(frozen=True, kw_only=True)
class TabularConfig(TableConfig):
    """Predicts numbers or a class from the columns of a table."""

    model: ModelConfig = field(default_factory=ModelConfig)

    @cached_property
    def own(self) -> OwnModel:
        """What `--model.build` names. Raises: ConfigError."""
        return OwnModel.named(self.model.build, self.model.settings)

    @property
    def differs_by_pass(self) -> str:
        if self.model.build != ModelConfig.build:
            return super().differs_by_pass
        return "dropout" if self.model.dropout else ""
