"""The MLP job's config: the common groups, and its model, optimiser, augmentation and hardware."""

from dataclasses import dataclass, field
from typing import Literal

from jobs.common.config import Config, require
from jobs.common.images import ImageDataConfig


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
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
        require(all(width >= 1 for width in self.hidden), "model.hidden", self.hidden, "every width must be at least 1")
        require(0 <= self.dropout < 1, "model.dropout", self.dropout, "must be at least 0 and less than 1")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimiser and its schedule."""

    name: Literal["adamw", "sgd"] = "adamw"
    """The algorithm."""
    lr: float = 2e-3
    """Highest learning rate."""
    momentum: float = 0.0
    """Of SGD."""
    weight_decay: float = 0.05
    """Decoupled for AdamW, an L2 term for SGD."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """`cosine`: down to 0 at the last step."""
    warmup_steps: int = 50
    """Steps in which the rate rises from 0."""
    label_smoothing: float = 0.1
    """Share of the target spread over all classes."""
    clip_norm: float | None = 1.0
    """Largest norm of the gradient; None: no clipping."""

    def __post_init__(self) -> None:
        require(self.lr > 0, "optim.lr", self.lr, "must be more than 0")
        require(0 <= self.momentum < 1, "optim.momentum", self.momentum, "must be at least 0 and less than 1")
        require(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "must be 0 or more")
        require(self.warmup_steps >= 0, "optim.warmup_steps", self.warmup_steps, "must be 0 or more")
        require(0 <= self.label_smoothing < 1, "optim.label_smoothing", self.label_smoothing,
                "must be at least 0 and less than 1")
        require(self.clip_norm is None or self.clip_norm > 0, "optim.clip_norm", self.clip_norm, "must be more than 0")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random changes of the training images, drawn anew for each row and epoch."""

    shift: float = 1.5
    """Most pixels that an image is moved, each way."""
    rotate: float = 10.0
    """Most degrees that it is turned, each way."""
    scale: float = 0.1
    """Most that it is enlarged or shrunk: 0.1 is from 0.9 to 1.1 times."""

    def __post_init__(self) -> None:
        require(self.shift >= 0, "augment.shift", self.shift, "must be 0 or more pixels")
        require(0 <= self.rotate <= 180, "augment.rotate", self.rotate, "must be from 0 to 180 degrees")
        require(0 <= self.scale < 1, "augment.scale", self.scale, "must be at least 0 and less than 1")

    @property
    def active(self) -> bool:
        return bool(self.shift or self.rotate or self.scale)


@dataclass(frozen=True, kw_only=True)
class HardwareConfig:
    """How the arithmetic is done."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16`: matrix products in bfloat16, weights and sums in float32."""
    compile: bool = False
    """torch.compile: slow to start, faster after."""


@dataclass(frozen=True, kw_only=True)
class MlpConfig(Config):
    """Trains a multi-layer perceptron on images."""

    data: ImageDataConfig = field(default_factory=ImageDataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
