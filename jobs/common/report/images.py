"""Pictures inside a report: small ones as they are, large ones scaled down, all of them data URIs."""
# pyright: reportUnknownMemberType=false

import base64
import io

import numpy as np
from numpy.typing import NDArray

from jobs.common.arrays import Array

MAX_SIDE, PIXELATED_SIDE = 224, 64


def data_uri(image: Array, max_side: int = MAX_SIDE) -> str:
    """PNG for small pictures, JPEG of at most `max_side` pixels a side for others. image: (height, width, channels)."""
    from PIL import Image

    picture = Image.fromarray(_pixels(image))
    kind, options = "png", {"optimize": True}
    if max(picture.size) > PIXELATED_SIDE:
        picture.thumbnail((max_side, max_side))
        picture, kind, options = picture.convert("RGB"), "jpeg", {"quality": 80}
    data = io.BytesIO()
    picture.save(data, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"


def _pixels(image: Array) -> NDArray[np.uint8]:
    """(height, width) or (height, width, 3 or 4) bytes.
    Floats are stretched from their least to their greatest value."""
    if image.dtype != np.uint8:
        values = np.nan_to_num(image.astype(np.float64))
        spread = values.max() - values.min()
        image = ((values - values.min()) / (spread or 1.0) * 255).round().astype(np.uint8)
    if image.shape[2] in (3, 4):
        return image
    return image[:, :, 0]
