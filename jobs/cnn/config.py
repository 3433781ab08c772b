"""The CNN job's config: what image jobs have in common, and its model, class weights and hardware."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from jobs.common.config import OnResume, require
from jobs.common.own_code import require_function
from jobs.common.start_config import StartConfig
from jobs.common.vision.config import ImageConfig, ImageTrainConfig


@dataclass(frozen=True, kw_only=True)
class ModelConfig(StartConfig):
    """Blocks of convolutions, each followed by max pooling, then a classifier;
    input size and classes come from the data."""

    name: Literal["cnn"] = "cnn"
    """The architecture."""
    build: str = "jobs.cnn.model:build_model"
    """`module:function`, called as `build(info) -> keras.Model` with the data's `shape` (height, width, channels),
    `class_names`, `num_classes`, `mean` and `std`: from pixels to logits."""
    width: int = 16
    """Filters of the first block; each block after it has twice as many."""
    depth: int = 3
    """Blocks: each halves height and width."""
    convolutions: int = 2
    """Convolutions in each block."""
    kernel: int = 3
    """Height and width of each filter, in pixels."""
    padding: Literal["same", "valid"] = "same"
    """`same`: a convolution keeps the image's size. `valid`: it takes away what its filter does not fit on."""
    batch_norm: bool = True
    """Normalises what each convolution gives, by the statistics of a micro-batch."""
    head: Literal["flatten", "average"] = "average"
    """What the classifier sees of the last block: all of it, or each filter's mean."""
    dense: tuple[int, ...] = (64,)
    """Width of each hidden layer of the classifier."""
    dropout: float = 0.4
    """Probability that an input of the classifier's layers is left out in training."""
    normalise: Literal["standard", "unit"] = "standard"
    """`standard`: by the training pixels' mean and deviation. `unit`: pixels divided by 255."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_function("model.build", self.build)
        for name in ("width", "depth", "convolutions", "kernel"):
            require(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "must be at least 1")
        require(all(width >= 1 for width in self.dense), "model.dense", self.dense, "every width must be at least 1")
        require(0 <= self.dropout < 1, "model.dropout", self.dropout, "must be at least 0 and less than 1")

    @property
    def smallest_side(self) -> int:
        """Least height and width, in pixels, of which every block leaves something."""
        side = 1
        for _ in range(self.depth):
            side = 2 * side + (self.convolutions * (self.kernel - 1) if self.padding == "valid" else 0)
        return side


@dataclass(frozen=True, kw_only=True)
class CnnTrainConfig(ImageTrainConfig):
    """How long, in what batches, what a row counts, and whether against an adversary."""

    epochs: int = 40
    """Passes over the training rows."""
    global_batch_size: int = 36
    """Rows of one optimiser step over all workers; a multiple of the most workers."""
    class_weights: Literal["none", "balanced"] = "none"
    """`balanced`: the rows of each class count the same in all, so that rare classes are not neglected."""
    most_steps_per_call: int = 64
    """Most steps that TensorFlow makes before it returns to Python; fewer where they take long.
    The result is the same."""

    on_resume: ClassVar[dict[str, OnResume]] = {**ImageTrainConfig.on_resume, "most_steps_per_call": "free"}

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.most_steps_per_call >= 1, "train.most_steps_per_call", self.most_steps_per_call,
                "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class HardwareConfig:
    """How the arithmetic is done."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """`bf16`: convolutions and matrix products in bfloat16, weights and sums in float32.
    `fp16`: for GPUs, with loss scaling."""
    xla: bool = False
    """Compiles forward and backward pass with XLA: slow to start; often faster on GPUs, slower on CPUs."""


@dataclass(frozen=True, kw_only=True)
class CnnConfig(ImageConfig):
    """Trains a convolutional network on images."""

    model: ModelConfig = field(default_factory=ModelConfig)
    train: CnnTrainConfig = field(default_factory=CnnTrainConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)

    @property
    def differs_by_pass(self) -> str:
        if self.model.build != ModelConfig.build:
            return super().differs_by_pass
        return ("batch normalisation" if self.model.batch_norm else "dropout" if self.model.dropout
                else self.train.differs_by_pass)
