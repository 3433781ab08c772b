"""The config of the job for a PyTorch module of yours: what image jobs have in common, and where the module is."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from jobs.common.own_code import OwnModel, require_function
from jobs.common.start_config import StartConfig
from jobs.common.vision.config import ImageConfig, ImageEvalConfig


@dataclass(frozen=True, kw_only=True)
class ModelConfig(StartConfig):
    """A `torch.nn.Module` of yours, from images to logits."""

    build: str = "jobs.pytorch.model:small_network"
    """`module:function`, called as `build(info) -> nn.Module` with the data's `shape` (height, width, channels),
    `class_names`, `num_classes`, `mean` and `std`.
    The module takes normalised float images (B, C, H, W) and gives logits (B, classes).
    Or `module:Class`, whose methods may also say loss, optimiser, schedule and metrics: see jobs/README.md."""
    settings: str | None = None
    """JSON of the attributes that an instance of that class has, such as '{"width": 64}'."""
    loss: str | None = None
    """`module:function`, called as `loss(logits, labels)`: the mean over the rows, a scalar.
    By default cross entropy."""
    normalise: Literal["standard", "unit"] = "standard"
    """`standard`: by the training pixels' mean and deviation. `unit`: pixels divided by 255."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_function("model.build", self.build)
        if self.loss is not None:
            require_function("model.loss", self.loss)


@dataclass(frozen=True, kw_only=True)
class HardwareConfig:
    """How the arithmetic is done."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16`: matrix products and convolutions in bfloat16, weights and sums in float32."""
    compile: bool = False
    """torch.compile: slow to start, faster after."""


@dataclass(frozen=True, kw_only=True)
class ModuleEvalConfig(ImageEvalConfig):
    """How a model is judged."""

    metric: str = "accuracy"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Which validation metric chooses the best checkpoint and stops early: `accuracy`, `loss`, or one of a class of
    yours."""


@dataclass(frozen=True, kw_only=True)
class PytorchConfig(ImageConfig):
    """Trains a PyTorch module of yours on images."""

    model: ModelConfig = field(default_factory=ModelConfig)
    eval: ModuleEvalConfig = field(default_factory=ModuleEvalConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)

    @cached_property
    def own(self) -> OwnModel:
        """What `--model.build` names. Raises: ConfigError."""
        return OwnModel.named(self.model.build, self.model.settings)
