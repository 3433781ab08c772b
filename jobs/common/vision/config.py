"""What the configs of image jobs have in common beside the groups of every job."""

import math
import re
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from jobs.common.config import Config, DataConfig, EvalConfig, OnResume, TrainConfig, require
from jobs.common.config_groups.data import ClassFolder
from jobs.common.picture_rule import CHANNELS, MOST_PIXELS, Background, Fit, PictureRule
from jobs.common.training.optim_config import OptimConfig

MOST_SIDE = math.isqrt(MOST_PIXELS)


@dataclass(frozen=True, kw_only=True)
class ImageDataConfig(DataConfig):
    """Where the images come from, and how they are split and read."""

    image_column: str = "image"
    """Name of the Parquet column with the image: nested lists, a flat list, or encoded bytes (PNG, JPEG, …)."""
    class_folder: ClassFolder = "auto"
    """Of a folder of pictures in which each folder has the same ones below it: whether the `outer` or the `inner` are
    the classes; `auto` refuses such a one."""
    image_shape: str | None = None
    """HEIGHTxWIDTHxCHANNELS of an image kept as a flat list, such as 28x28x1; by default it is square and gray."""
    resize: int | None = None
    """Height and width, in pixels, that picture files are made to; by default all must have one size."""
    fit: Fit | None = None
    """How a picture becomes another size: `stretch` (the default) changes its proportions, `crop` cuts off what is too
    long, `pad` adds background."""
    channels: Literal["gray", "rgb", "rgba"] | None = None
    """What picture files become; by default what the first one is, and all must be so."""
    background: Background | None = None
    """What lies behind transparent parts of a picture, unless its channels are rgba, and what `pad` adds; black by
    default."""

    keep: Literal["pixels", "encoded"] = "pixels"
    """What of picture files is kept for training: their pixels, or the files themselves, which are decoded each time
    they are read: less on disk where they are small, and more work. The rows are the same ones."""

    on_resume: ClassVar[dict[str, OnResume]] = {**DataConfig.on_resume, "keep": "free"}
    decisive_choices: ClassVar[tuple[str, ...]] = (*DataConfig.decisive_choices, "class_folder", "keep")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.image_shape is None or bool(re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", self.image_shape)),
                "data.image_shape", self.image_shape, "use HEIGHTxWIDTHxCHANNELS, such as 28x28x1")
        require(self.resize is None or 1 <= self.resize <= MOST_SIDE, "data.resize", self.resize,
                f"must be from 1 to {MOST_SIDE} pixels")

    @property
    def picture(self) -> PictureRule:
        """How picture files become pixels."""
        # a run of an earlier version has none of these fields, so that None stands for what they are by default
        return PictureRule(size=None if self.resize is None else (self.resize, self.resize),
                           fit=self.fit or PictureRule.fit, channels=CHANNELS.get(self.channels or ""),
                           background=self.background or PictureRule.background)


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
class ImageTrainConfig(TrainConfig):
    """How long, in what batches, and whether against an adversary."""

    adversarial: float | None = None
    """Trains on images changed to deceive the model (PGD) by at most this share of the pixels' range, such as 0.1."""
    adversarial_steps: int = 7
    """Steps of that attack on each batch: each costs as much as a training step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.adversarial is None or 0 < self.adversarial <= 1, "train.adversarial", self.adversarial,
                "must be more than 0 and at most 1, a share of the pixels' range")
        require(self.adversarial_steps >= 1, "train.adversarial_steps", self.adversarial_steps, "must be at least 1")

    @property
    def differs_by_pass(self) -> str:
        """See Config."""
        return "adversarial training" if self.adversarial else ""


@dataclass(frozen=True, kw_only=True)
class ImageEvalConfig(EvalConfig):
    """How a model is judged."""

    robustness_rows: int = 500
    """Test rows that are judged again attacked, noisy, blurred, turned and shifted; 0: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.robustness_rows >= 0, "eval.robustness_rows", self.robustness_rows, "must be 0 or more")


@dataclass(frozen=True, kw_only=True)
class ImageConfig(Config):
    """The groups that every image job has; a job adds its model, and how the arithmetic is done."""

    data: ImageDataConfig = field(default_factory=ImageDataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: ImageTrainConfig = field(default_factory=ImageTrainConfig)
    eval: ImageEvalConfig = field(default_factory=ImageEvalConfig)
