"""Pictures inside a report: small ones as they are, large ones scaled down, all of them data URIs."""
# pyright: reportUnknownMemberType=false

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.common.evaluation.metrics import Mistakes
from jobs.common.report.html import escape

MAX_PICTURES, MAX_SIDE, PIXELATED_SIDE = 24, 224, 64


def gallery(mistakes: Mistakes, class_names: Sequence[str]) -> str:
    """HTML: each picture above its true class, the predicted one and how sure the model was."""
    rows = zip(mistakes.images, mistakes.labels, mistakes.predictions, mistakes.confidences, strict=True)
    shown = [_picture(i, *row, class_names) for i, row in enumerate(rows) if i < MAX_PICTURES]
    return f'<div class="pictures">{"".join(shown)}</div>'


def _picture(place: int, image: NDArray[Any], label: int, predicted: int, sure: float, names: Sequence[str]) -> str:
    true, said = escape(names[int(label)]), escape(names[int(predicted)])
    large = " class=large" if max(image.shape[:2]) > PIXELATED_SIDE else ""
    return (
        f'<figure><img{large} alt="mistake {place + 1}: {true} taken for {said}" src="{data_uri(image)}">'
        f"<figcaption><b>{true}</b> taken for <b>{said}</b>, {sure:.1%} sure</figcaption></figure>"
    )


def data_uri(image: NDArray[Any]) -> str:
    """PNG for small pictures, JPEG of at most 224 pixels a side for others. image: (height, width, channels)."""
    from PIL import Image

    picture = Image.fromarray(_pixels(image))
    kind, options = "png", {"optimize": True}
    if max(picture.size) > PIXELATED_SIDE:
        picture.thumbnail((MAX_SIDE, MAX_SIDE))
        picture, kind, options = picture.convert("RGB"), "jpeg", {"quality": 80}
    data = io.BytesIO()
    picture.save(data, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"


def _pixels(image: NDArray[Any]) -> NDArray[np.uint8]:
    """(height, width) or (height, width, 3 or 4) bytes. Floats are stretched from their least to their greatest value."""
    if image.dtype != np.uint8:
        values = np.nan_to_num(image.astype(np.float64))
        spread = values.max() - values.min()
        image = ((values - values.min()) / (spread or 1.0) * 255).round().astype(np.uint8)
    if image.shape[2] in (3, 4):
        return image
    return image[:, :, 0]
