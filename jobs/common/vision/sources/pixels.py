"""Pixels out of an Arrow column: nested lists by their buffers, with nothing done row by row in Python;
or encoded images.

A channel comes last. Every function names a row in its messages through `Where`, which turns an index into words.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.core.errors import DataError
from jobs.common.arrays import Array
from jobs.common.data.arrow import ArrowArray, numpy_column
from jobs.common.data.source import Images, ImageSpec, Shape, Where, different, size
from jobs.common.picture_rule import PictureRule
from jobs.common.vision.sources.encoded import decode_images, encoded_bytes, encoded_spec, is_encoded

Pixels = Array


def first_spec(columns: Iterable[ArrowArray], shape: Shape | None, rule: PictureRule, where: Where) -> ImageSpec:
    """What the first image of a column in parts is. `shape`: of an image kept as a flat list. Raises: DataError."""
    parts = iter(columns)
    column = next(parts)
    if is_encoded(column.type):
        files = (data for part in itertools.chain((column,), parts) for data in encoded_bytes(part))
        return encoded_spec(((where(row), data) for row, data in enumerate(files)), rule)
    values, lengths = _flatten(column.slice(0, 1), where)
    shape = _tensor_shape(column) or shape
    return ImageSpec(_as_shape(lengths, shape, where(0)), "float32" if values.dtype.kind == "f" else "uint8")


def decode_column(column: ArrowArray, spec: ImageSpec, shape: Shape | None, rule: PictureRule, where: Where) -> Images:
    """All images of a column. Raises: DataError for one that is not as `spec`, or not a number."""
    if is_encoded(column.type):
        return decode_images(encoded_bytes(column), spec, rule, where)
    values, lengths = _flatten(column, where, spec)
    found = _as_shape(lengths, _tensor_shape(column) or shape, where(0))
    if found != spec.shape:
        raise different(found, spec, where(0))
    return Images(as_pixels(values, spec, where))


def as_pixels(values: Pixels, spec: ImageSpec, where: Where) -> Pixels:
    """Numbers in the order of rows as (n, H, W, C) of the spec's dtype. Raises: DataError if one does not fit."""
    flat = values.reshape(-1, math.prod(spec.shape))
    if (values.dtype.kind == "f") != (spec.dtype == "float32"):
        raise DataError(f"{where(0)} has pixels of type {values.dtype}, the first image {spec.dtype}: use one type "
                        "everywhere")
    if values.dtype.kind == "f":
        flat = _finite(flat, where)
    elif values.dtype != np.uint8 and len(values):
        if int(values.min()) < 0 or int(values.max()) > 255:
            row = int(np.flatnonzero(((flat < 0) | (flat > 255)).any(axis=1))[0])
            worst = flat[row][(flat[row] < 0) | (flat[row] > 255)][0]
            raise DataError(f"{where(row)} has the pixel value {worst}: integer pixels must lie in 0 to 255; store "
                            "others as float32")
        flat = flat.astype(np.uint8)
    return flat.reshape(-1, *spec.shape)


def _finite(flat: Pixels, where: Where) -> Pixels:
    with np.errstate(over="ignore"):
        flat = flat.astype(np.float32, copy=False)
    if not np.isfinite(flat).all():
        row = int(np.flatnonzero(~np.isfinite(flat).all(axis=1))[0])
        what = "not a number (NaN)" if np.isnan(flat[row]).any() else "infinite"
        raise DataError(f"{where(row)} has a pixel that is {what}: remove the row or repair it")
    return flat


def _flatten(column: Any, where: Where, spec: ImageSpec | None = None) -> tuple[Pixels, list[int]]:
    """All numbers of nested lists, and the length of the lists at each level. Raises: DataError if lengths differ."""
    whole, lengths = column, list[int]()
    while True:
        if isinstance(column, pa.ExtensionArray):
            column = column.storage
        if column.null_count:
            row = column.is_null().to_pylist().index(True) // math.prod(lengths)
            raise DataError(f"{where(row)} holds an empty (null) value: remove the row or fill it")
        if not _is_list(column.type):
            return _numbers(column, where), lengths
        if pa.types.is_fixed_size_list(column.type):
            lengths.append(column.type.list_size)
        else:
            lengths.append(_length(column, whole, lengths, where, spec))
        column = column.flatten()


def _length(column: Any, whole: ArrowArray, above: Sequence[int], where: Where, spec: ImageSpec | None) -> int:
    """The one length of all lists of a level."""
    found = np.diff(numpy_column(column.offsets))
    if (found == found[0]).all():
        return int(found[0])
    row = int(np.flatnonzero(found != found[0])[0]) // math.prod(above)
    image = _nested_shape(whole[row].as_py())
    if image is None:
        raise DataError(f"{where(row)} is ragged: its lists differ in length; all lines of an image must be of one "
                        "length")
    first = spec.shape if spec else _nested_shape(whole[0].as_py()) or ()
    raise DataError(f"{where(row)} is {size(image)}, the first image is {size(first)}: all images must have one size; "
                    "resize them")


def _nested_shape(value: object) -> tuple[int, ...] | None:
    """The shape of nested Python lists; None if they are ragged."""
    if not isinstance(value, list):
        return ()
    inner = {_nested_shape(item) for item in value}
    lengths = inner.pop() if inner else ()
    return None if inner or lengths is None else (len(value), *lengths)


def _as_shape(lengths: Sequence[int], shape: Shape | None, name: str) -> Shape:
    """Height, width and channels from the lengths of nested lists."""
    count, found = math.prod(lengths), "x".join(map(str, lengths))
    if len(lengths) == 1 and shape is None:
        side = math.isqrt(count)
        if side * side != count or not count:
            raise DataError(f"{name} is a flat list of {count} values, which is not a square gray image: name its size "
                            "with --data.image-shape HEIGHTxWIDTHxCHANNELS")
        return side, side, 1
    if len(lengths) == 1 and shape is not None and math.prod(shape) == count:
        return shape
    if not 2 <= len(lengths) <= 3 or not count or (shape is not None and (*lengths, 1)[:3] != shape):
        asked = f"--data.image-shape {size(shape)}" if shape else "height x width x channels"
        raise DataError(f"{name} is {found}, which is not {asked}: correct the column or the option")
    if len(lengths) == 3 and lengths[0] in (1, 3, 4) and lengths[2] > 4:
        raise DataError(f"{name} is {found}, which looks like channels x height x width: store height x width x "
                        "channels")
    return lengths[0], lengths[1], lengths[2] if len(lengths) == 3 else 1


def _numbers(column: ArrowArray, where: Where) -> Pixels:
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.uint8())
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise DataError(f"{where(0)} holds {column.type}, not pixels: an image is nested lists of numbers, or encoded "
                        "bytes; name another column with --data.image-column")
    return numpy_column(column)


def _tensor_shape(column: ArrowArray) -> Shape | None:
    """Of a column that says so itself: Arrow's tensors of a fixed shape are flat lists."""
    height, width, *channels = getattr(column.type, "shape", (0, 0))
    return (height, width, channels[0] if channels else 1) if height and len(channels) < 2 else None


def _is_list(kind: object) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
