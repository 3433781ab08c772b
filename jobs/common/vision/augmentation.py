"""Light augmentation of images: shifted, turned and scaled by numbers that are a function of (seed, epoch, row id).

What is drawn, and which map of the plane it makes, is here; a job's framework carries the map out.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from jobs.common.config import require
from jobs.common.data.counter_rng import IntArray, Purpose, row_uniforms


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


def warps(row_ids: IntArray, config: AugmentConfig, seed: int, epoch: int) -> npt.NDArray[np.float64]:
    """(n, 2, 3): where each pixel of a changed image comes from, in pixels from the image's middle: (x, y) = M @ (x', y', 1)."""
    draws = row_uniforms(Purpose.AUGMENT, seed, epoch, row_ids, 4) * 2 - 1
    angle = np.deg2rad(config.rotate) * draws[:, 0]
    scale = 1.0 + config.scale * draws[:, 1]
    across, down = config.shift * draws[:, 2], config.shift * draws[:, 3]
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    return np.stack([np.stack([cos, -sin, across], 1), np.stack([sin, cos, down], 1)], 1)
