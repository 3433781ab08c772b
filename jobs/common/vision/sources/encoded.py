"""Columns and files of encoded pictures (PNG, JPEG, WebP, GIF, BMP, TIFF, PNM) as arrays of one size."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.core.errors import DataError
from jobs.common.data.arrow import ArrowArray
from jobs.common.data.found.bad_rows import BadRow
from jobs.common.data.source import Images, ImageSpec, Where, size
from jobs.common.picture import PictureError, decode_picture
from jobs.common.picture_rule import CHANNELS, PictureRule


def is_encoded(kind: Any) -> bool:
    """Whether a column's type is of encoded images: bytes, or a struct with a field `bytes`."""
    binary = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and is_encoded(kind.field("bytes").type)
    return any(check(kind) for check in binary)


def encoded_bytes(column: ArrowArray) -> list[bytes | None]:
    """The bytes of each image of an Arrow column; None where there is none."""
    values = column.to_pylist()
    return [value and value["bytes"] for value in values] if pa.types.is_struct(column.type) else values


def encoded_spec(files: Iterable[tuple[str, bytes | None]], rule: PictureRule) -> ImageSpec:
    """What the first encoded image that can be read is. files: what to call each, and its bytes. Raises: DataError of
    the first of all, if none can."""
    first: DataError | None = None
    for name, data in files:
        try:
            height, width, channels = _decoded(data, rule).shape
        except PictureError as error:
            first = first or DataError(f"{name} {error}")
        else:
            return ImageSpec((height, width, channels), "uint8", encoded=True)
    assert first is not None, "a fragment has rows"
    raise first


def decode_images(files: Sequence[bytes | None], spec: ImageSpec, rule: PictureRule, where: Where) -> Images:
    """Raises: DataError where numbers were expected."""
    if spec.dtype != "uint8":
        raise DataError(f"{where(0)} is an encoded image, the first image {spec.dtype} numbers: use one kind "
                        "everywhere")
    images = np.empty((len(files), *spec.shape), np.uint8)
    bad: dict[int, BadRow] = {}
    for row, data in enumerate(files):
        try:
            image = _decoded(data, rule)
            if image.shape != spec.shape:
                raise _different(image.shape, spec)
            images[row] = image
        except PictureError as error:
            images[row], bad[row] = 0, (where(row), str(error))
    return Images(images, files, bad)


def _decoded(data: bytes | None, rule: PictureRule) -> npt.NDArray[np.uint8]:
    """Raises: PictureError."""
    if data is None:
        raise PictureError("holds no image (null): remove the row or fill it")
    return decode_picture(data, rule)


def _different(found: tuple[int, ...], spec: ImageSpec) -> PictureError:
    remedies = [remedy for remedy, same in (("--data.resize 224", found[:2] == spec.shape[:2]),
                                            (f"--data.channels {'|'.join(CHANNELS)}", found[2] == spec.shape[2]))
                if not same]
    return PictureError(f"is {size(found)}, the first image is {size(spec.shape)} (height x width x channels): all "
                     f"images must be alike: pass {' and '.join(remedies)}, and each is made so")
