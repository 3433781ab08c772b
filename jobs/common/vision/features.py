"""What can be said of an image whatever it shows: the figures by which drift is watched,
alike in training and in serving."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from jobs.common.arrays import Array

_SIDE = 64
"""Of images that are larger, as many rows and columns of pixels, or up to twice as many, are looked at."""
Floats = npt.NDArray[np.float32]


def image_features(images: Array, mean: Sequence[float]) -> dict[str, Floats]:
    """Of images (B, H, W, C), in pixel units unless said; each (B,). mean: of each channel over the training pixels.

    brightness: mean; contrast: deviation; sharpness: mean step to the pixels below and on the right; bright_share: the
    share of values above `mean`; centre_x, centre_y: where the contrast lies, in [0, 1];
    channel_0 …: their means, where there are several.
    """
    step = max(1, max(images.shape[1:3]) // _SIDE)
    with np.errstate(all="ignore"):  # of floats that are not finite, which fall into the last bin
        pixels = images[:, ::step, ::step].astype(np.float32)
        rows, channels = len(pixels), pixels.shape[3]
        gray = pixels @ np.full(channels, 1 / channels, np.float32)
        brightness = gray.reshape(rows, -1).mean(1)
        off = gray - brightness[:, None, None]
        squares = off * off
        across, down = squares.sum(1), squares.sum(2)
        total, size = down.sum(1), gray[0].size
        steps = [np.abs(np.diff(gray, axis=axis)).reshape(rows, -1).sum(1) for axis in (1, 2)]
        above = np.count_nonzero((pixels > np.asarray(mean, np.float32)).reshape(rows, -1), axis=1)
        found = {"brightness": brightness, "contrast": np.sqrt(total / size), "sharpness": (steps[0] + steps[1]) / size,
                 "bright_share": above / (size * channels), "centre_x": _centre(across, total),
                 "centre_y": _centre(down, total)}
        if channels > 1:
            found |= {f"channel_{i}": pixels[..., i].reshape(rows, -1).mean(1) for i in range(channels)}
    return {name: column.astype(np.float32) for name, column in found.items()}


def _centre(weights: Floats, total: Floats) -> Floats:
    """weights: (B, length), total: (B,) of their sums; the middle where there are none."""
    places = (np.arange(weights.shape[1], dtype=np.float32) + 0.5) / weights.shape[1]
    return np.where(total == 0, np.float32(0.5), weights @ places / np.where(total == 0, 1, total))
