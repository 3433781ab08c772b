"""Carries out with PyTorch the shifts, turns and scalings that `jobs.common.vision.augmentation` draws."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateImportUsage=false

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (the field's own name)
from torch import Tensor

from jobs.common.data.counter_rng import IntArray
from jobs.common.vision.augmentation import warps
from jobs.common.vision.config import AugmentConfig


def augment(images: Tensor, row_ids: IntArray, config: AugmentConfig, seed: int, epoch: int) -> Tensor:
    """images: (m, H, W, C), any dtype. Returns (m, H, W, C) float32; bilinear, what comes from outside is 0."""
    height, width = images.shape[1:3]
    # `affine_grid` counts from -1 to 1 over each side.
    sides = np.array([[1.0, height / width, 2 / width], [width / height, 1.0, 2 / height]])
    theta = torch.from_numpy((warps(row_ids, config, seed, epoch) * sides).astype(np.float32)).to(images.device)
    planes = images.permute(0, 3, 1, 2).to(torch.float32)
    grid = F.affine_grid(theta, list(planes.shape), align_corners=False)
    return F.grid_sample(planes, grid, align_corners=False).permute(0, 2, 3, 1)
