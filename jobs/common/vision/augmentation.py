"""Light augmentation of images: shifted, turned and scaled by numbers that are a function of (seed, epoch, row id).

What is drawn, and which map of the plane it makes, is here; a job's framework carries the map out.
"""

import numpy as np
import numpy.typing as npt

from jobs.common.data.counter_rng import IntArray, Purpose, row_uniforms
from jobs.common.vision.config import AugmentConfig


def warps(row_ids: IntArray, config: AugmentConfig, seed: int, epoch: int) -> npt.NDArray[np.float64]:
    """(n, 2, 3): where each pixel of a changed image comes from, in pixels from the image's middle: (x, y)
    = M @ (x', y', 1)."""
    draws = row_uniforms(Purpose.AUGMENT, seed, epoch, row_ids, 4) * 2 - 1
    angle = np.deg2rad(config.rotate) * draws[:, 0]
    scale = 1.0 + config.scale * draws[:, 1]
    across, down = config.shift * draws[:, 2], config.shift * draws[:, 3]
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    return np.stack([np.stack([cos, -sin, across], 1), np.stack([sin, cos, down], 1)], 1)
