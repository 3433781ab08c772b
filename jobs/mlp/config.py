"""The MLP job's config: what image jobs have in common, and its model and hardware."""

from dataclasses import dataclass, field
from typing import Literal

from jobs.common.config import require
from jobs.common.start_config import StartConfig
from jobs.common.vision.config import ImageConfig
from jobs.pytorch.config import HardwareConfig


@dataclass(frozen=True, kw_only=True)
class ModelConfig(StartConfig):
    """A perceptron from pixels to classes; its input size and classes come from the data."""

    name: Literal["mlp"] = "mlp"
    """The architecture."""
    hidden: tuple[int, ...] = (256, 256)
    """Width of each hidden layer."""
    dropout: float = 0.2
    """Probability that a hidden unit is left out in training."""
    normalise: Literal["standard", "unit"] = "standard"
    """`standard`: by the training pixels' mean and deviation. `unit`: pixels divided by 255."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(all(width >= 1 for width in self.hidden), "model.hidden", self.hidden, "every width must be at least 1")
        require(0 <= self.dropout < 1, "model.dropout", self.dropout, "must be at least 0 and less than 1")


@dataclass(frozen=True, kw_only=True)
class MlpConfig(ImageConfig):
    """Trains a multi-layer perceptron on images."""

    model: ModelConfig = field(default_factory=ModelConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)

    @property
    def differs_by_pass(self) -> str:
        return "dropout" if self.model.dropout else self.train.differs_by_pass
