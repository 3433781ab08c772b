"""Images as rows of a model: tensors as they are, and image files, which a person has, made to the model's size."""

import io
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from cluster.core.errors import InputError
from jobs.common.arrays import Array
from jobs.common.artifact.artifact import Artifact
from jobs.common.vision.features import image_features

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

FORMATS = ("PNG", "JPEG", "WEBP")
"""Those that are read, by name: Pillow knows forty more, some of which run programs (EPS: Ghostscript)."""
MOST_PIXELS = 25_000_000
"""Of all image files of a request, by what they say of themselves: more are refused before any is unpacked."""
_MOST_PARTS: Mapping[bytes, tuple[int, tuple[bytes, ...]]] = {
    b"\x89PNG": (8, (b"iCCP", b"iTXt", b"zTXt")), b"\xff\xd8\xff": (32, (b"\xff\xda",))}
"""By a file's beginning, how many it may have of what Pillow works through whatever the pixels are: a PNG's compressed
texts and profiles, of which each kilobyte becomes a megabyte, and a JPEG's scans,
of which a few bytes go over the whole picture again."""
_PIECE = 4096
"""Bytes of a file that are unpacked in one go, in which Python's lock is held."""


def image_rows(images: Array, shape: Sequence[int], dtype: str) -> Array:
    """images: (B, H, W, C), or (B,) of the bytes of image files. shape: (H, W, C) of the model. Raises: InputError."""
    if images.dtype != object:
        return images
    with _readable():
        opened: list[ImageFile] = []
        pixels = 0
        for data in images:
            opened.append(_opened(data))
            pixels += opened[-1].width * opened[-1].height
            if pixels > MOST_PIXELS:
                raise InputError(f"the image files of a request may have {MOST_PIXELS:,} pixels together, and these "
                                 f"have more (one has {opened[-1].width} × {opened[-1].height}): make them smaller, or "
                                 "send fewer")
        return np.stack([_row(image, shape, dtype) for image in opened])


@contextmanager
def _readable() -> Generator[None]:
    """Whatever a file makes Pillow raise is said of that file. Raises: InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception:  # noqa: BLE001  (decoders let through what they meet: struct.error, NotImplementedError, …)
        raise InputError("an element of the input is no image file that can be read: send PNG, JPEG or WebP") \
            from None


def _opened(data: bytes) -> "ImageFile":
    """An image whose pixels are still packed."""
    from PIL import Image

    for beginning, (most, parts) in _MOST_PARTS.items():
        if data.startswith(beginning) and sum(map(data.count, parts)) > most:
            raise InputError("an image file has too many compressed texts or scans: save it again without them")
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    image.decodermaxblock = _PIECE
    return image


def _row(image: "ImageFile", shape: Sequence[int], dtype: str) -> Array:
    """Grey or colour as the model has it, scaled bilinearly to its height and width. The image is closed then."""
    from PIL import Image

    height, width, channels = shape
    image.info.pop("transparency", None)  # it changes no pixel here, and Pillow may warn of it
    picture = image.convert("L" if channels == 1 else "RGB")
    image.close()
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(picture).reshape(height, width, channels)
    return pixels if dtype == "UINT8" else pixels.astype(np.float32)


def image_inputs(artifact: Artifact, images: Array) -> tuple[Array]:
    """Of an ONNX graph."""
    return (images,)


class GraphPredictor:
    """What answers about images have in common, whatever computes them: all but `load`."""

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


class ImagePredictor(GraphPredictor):
    """The same by a model that can say what its answers rest on."""

    def explain(self, row: Array) -> Mapping[str, Array]:
        predicted = self._model.predict(row).argmax(1)
        attributions, gaps, differences = self._model.explain(row, predicted)
        return {"predicted": predicted, "attributions": attributions, "difference": differences, "gap": gaps}
