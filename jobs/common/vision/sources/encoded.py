"""Encoded images (PNG, JPEG, WebP, GIF, BMP, TIFF, PNM) as arrays of one size: 8 bits, gray or colour, channel last."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import io
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.core.errors import DataError
from jobs.common.data.arrow import ArrowArray
from jobs.common.data.source import ImageSpec, Where, different

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Those that are read, by name: Pillow knows more, of which some run programs (EPS: Ghostscript)."""


def is_encoded(kind: Any) -> bool:
    """Whether a column's type is of encoded images: bytes, or a struct with a field `bytes`."""
    binary = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and is_encoded(kind.field("bytes").type)
    return any(check(kind) for check in binary)


def encoded_bytes(column: ArrowArray, where: Where) -> ArrowArray:
    """The bytes of each image of an Arrow column. Raises: DataError for a null."""
    data = column.field("bytes") if pa.types.is_struct(column.type) else column
    missing = column.is_null() if column.null_count else data.is_null()
    if column.null_count or data.null_count:
        raise DataError(f"{where(missing.to_pylist().index(True))} holds no image (null): remove the row or fill it")
    return data


def encoded_spec(data: bytes, name: str) -> ImageSpec:
    """What an encoded image is. Raises: DataError."""
    height, width, channels = decode_image(data, name).shape
    return ImageSpec((height, width, channels), "uint8")


def decode_images(encoded: Iterable[bytes], count: int, spec: ImageSpec, where: Where) -> npt.NDArray[np.uint8]:
    """`count` encoded images as (count, H, W, C). Raises: DataError."""
    if spec.dtype != "uint8":
        raise DataError(f"{where(0)} is an encoded image, the first image {spec.dtype} numbers: use one kind "
                        "everywhere")
    images = np.empty((count, *spec.shape), np.uint8)
    for row, data in enumerate(encoded):
        image = decode_image(data, where(row))
        if image.shape != spec.shape:
            raise different(image.shape, spec, where(row))
        images[row] = image
    return images


def decode_image(data: bytes, name: str) -> npt.NDArray[np.uint8]:
    """(H, W, C) uint8 of a file in one of FORMATS. Raises: DataError that names it."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.mode.startswith(("I", "F")):
                raise DataError(f"{name} has pixels of more than 8 bits (mode {image.mode}): convert it to 8 bits")
            keep = {"L", "LA", "RGB", "RGBA"}
            pixels = np.asarray(image if image.mode in keep else image.convert("L" if image.mode == "1" else "RGB"))
    except DataError:
        raise
    except Exception as error:  # Pillow lets through whatever its decoders raise
        raise DataError(f"{name} cannot be decoded as an image ({error}): remove or replace it") from error
    return pixels[..., None] if pixels.ndim == 2 else pixels
