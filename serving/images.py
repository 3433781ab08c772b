"""Images as rows of a model: tensors as they are, and image files, which a person has, made to the model's size."""

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.common.artifact import Artifact
from jobs.common.image_features import image_features
from serving.errors import BadRequestError

Array = NDArray[Any]
MOST_PIXELS = 40_000_000
"""Of an image file: what is larger is refused before it is unpacked."""


def image_rows(images: Array, shape: Sequence[int], dtype: str) -> Array:
    """images: (B, H, W, C), or (B,) of the bytes of image files. shape: (H, W, C) of the model. Raises: BadRequestError."""
    if images.dtype != object:
        return images
    return np.stack([_decoded(data, shape, dtype) for data in images])


def _decoded(data: bytes, shape: Sequence[int], dtype: str) -> Array:
    """Grey or colour as the model has it, scaled bilinearly to its height and width."""
    from PIL import Image

    height, width, channels = shape
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise BadRequestError(f"an image of {image.width} × {image.height} pixels: at most {MOST_PIXELS:,} pixels")
                picture = image.convert("L" if channels == 1 else "RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise BadRequestError("an element of the input is no image file that can be read: send PNG or JPEG") from None
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(picture).reshape(height, width, channels)
    return pixels if dtype == "UINT8" else pixels.astype(np.float32)


def image_inputs(artifact: Artifact, images: Array) -> tuple[Array]:
    """Of an ONNX graph."""
    return (images,)


class ImagePredictor:
    """What the image jobs share: all but `load`."""

    def __init__(self, model: Any, artifact: Artifact) -> None:
        """model: the artifact's, which gives probabilities (B, K) for images (B, H, W, C) by `predict`, and what they
        rest on by `explain`."""
        about = artifact.manifest.description
        self._model, self._shape, self._datatype = model, tuple(about.preprocessing["shape"]), about.inputs[0].datatype
        self._mean = about.data.get("mean", 0.0)

    def decode(self, inputs: Mapping[str, Array]) -> Array:
        return image_rows(inputs["image"], self._shape, self._datatype)

    def predict(self, rows: Array) -> Array:
        return self._model.predict(rows)

    def encode(self, predicted: Array) -> Mapping[str, Array]:
        return {"probabilities": predicted}

    def features(self, rows: Array) -> dict[str, Array]:
        return dict(image_features(rows, self._mean))

    def explain(self, row: Array) -> Mapping[str, Array]:
        predicted = self._model.predict(row).argmax(1)
        attributions, gaps, differences = self._model.explain(row, predicted)
        return {"predicted": predicted, "attributions": attributions, "difference": differences, "gap": gaps}
