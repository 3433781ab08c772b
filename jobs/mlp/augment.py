"""Light augmentation: each image is shifted, turned and scaled by numbers that are a function of (seed, epoch, row id)."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateImportUsage=false

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (the field's own name)
from torch import Tensor

from jobs.common.permutation import IntArray, Purpose, row_uniforms
from jobs.mlp.config import AugmentConfig


def augment(images: Tensor, row_ids: IntArray, config: AugmentConfig, seed: int, epoch: int) -> Tensor:
    """images: (m, H, W, C), any dtype. Returns (m, H, W, C) float32; bilinear, what comes from outside is 0."""
    height, width = images.shape[1:3]
    draws = row_uniforms(Purpose.AUGMENT, seed, epoch, row_ids, 4) * 2 - 1
    angle = np.deg2rad(config.rotate) * draws[:, 0]
    scale = 1.0 + config.scale * draws[:, 1]
    across, down = config.shift * draws[:, 2] * 2 / width, config.shift * draws[:, 3] * 2 / height
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    matrix = np.stack([np.stack([cos, -sin, across], 1), np.stack([sin, cos, down], 1)], 1)
    theta = torch.from_numpy(matrix.astype(np.float32)).to(images.device)
    planes = images.permute(0, 3, 1, 2).to(torch.float32)
    grid = F.affine_grid(theta, list(planes.shape), align_corners=False)
    return F.grid_sample(planes, grid, align_corners=False).permute(0, 2, 3, 1)
