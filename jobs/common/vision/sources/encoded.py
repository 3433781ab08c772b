"""Columns and files of encoded pictures (PNG, JPEG, WebP, GIF, BMP, TIFF, PNM) as arrays of one size."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.core.errors import DataError
from jobs.common.data.arrow import ArrowArray
from jobs.common.data.source import Images, ImageSpec, Where, size
from jobs.common.vision.picture import PictureError, decode_picture
from jobs.common.vision.picture_rule import CHANNELS, PictureRule


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


def encoded_spec(data: bytes, name: str, rule: PictureRule) -> ImageSpec:
    """What an encoded image is. Raises: DataError."""
    height, width, channels = _decoded(data, name, rule).shape
    return ImageSpec((height, width, channels), "uint8", encoded=True)


def decode_images(files: Sequence[bytes], spec: ImageSpec, rule: PictureRule, where: Where) -> Images:
    """Raises: DataError."""
    if spec.dtype != "uint8":
        raise DataError(f"{where(0)} is an encoded image, the first image {spec.dtype} numbers: use one kind "
                        "everywhere")
    images = np.empty((len(files), *spec.shape), np.uint8)
    for row, data in enumerate(files):
        image = _decoded(data, where(row), rule)
        if image.shape != spec.shape:
            raise _different(image.shape, spec, where(row))
        images[row] = image
    return Images(images, files)


def _decoded(data: bytes, name: str, rule: PictureRule) -> npt.NDArray[np.uint8]:
    """Raises: DataError that names it."""
    try:
        return decode_picture(data, rule)
    except PictureError as error:
        raise DataError(f"{name} {error}") from error


def _different(found: tuple[int, ...], spec: ImageSpec, name: str) -> DataError:
    remedies = [remedy for remedy, same in (("--data.resize 224", found[:2] == spec.shape[:2]),
                                            (f"--data.channels {'|'.join(CHANNELS)}", found[2] == spec.shape[2]))
                if not same]
    return DataError(f"{name} is {size(found)}, the first image is {size(spec.shape)} (height x width x channels): all "
                     f"images must be alike: pass {' and '.join(remedies)}, and each is made so")
