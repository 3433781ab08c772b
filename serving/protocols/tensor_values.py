"""The values of one tensor, from JSON or bytes and back.
Whatever is wrong with them is a BadRequestError that names the input."""

import base64
import binascii
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, cast

import numpy as np

from cluster.core.documents import JsonObject
from jobs.common.arrays import Array
from jobs.common.artifact.tensor_spec import DTYPES, TensorSpec
from serving.core.errors import BadRequestError

_WORDS: Mapping[type, str] = {bool: "true or false", dict: "objects", float: "numbers", int: "numbers", list: "lists",
                              str: "strings", type(None): "null"}
"""What JSON calls the values that Python makes of it."""


def shown(value: object) -> str:
    """A value of a request in a message: short, whatever it holds."""
    return _WORDS[type(value)] if type(value) in (list, dict) else str(value)[:60]


def parameters_of(holder: Mapping[str, object]) -> JsonObject:
    """The `parameters` of a request or a tensor; empty where it has none."""
    found = holder.get("parameters")
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise BadRequestError("`parameters` is no object")
    return cast(JsonObject, found)


def of_json(tensor: Mapping[str, object], spec: TensorSpec, shape: tuple[int, ...]) -> Array:
    """The array of a tensor whose `data` are JSON, in its shape."""
    data = tensor.get("data")
    if not isinstance(data, list):
        raise BadRequestError(f"`data` of input {spec.name!r} is missing, or no list: its shape {list(shape)} says "
                              f"{math.prod(shape)} values")
    flat = _flat(cast(list[Any], data), spec, shape)
    wanted = {"BYTES": {str}, "BOOL": {bool}}.get(spec.datatype, {int, float})
    if strange := set(map(type, flat)) - wanted:
        words = " and ".join(sorted({_WORDS.get(each, each.__name__) for each in strange}))
        raise BadRequestError(f"`data` of input {spec.name!r} holds {words}: {spec.datatype} is "
                              f"{' and '.join(sorted({_WORDS[each] for each in wanted}))}")
    return (_texts(flat, parameters_of(tensor), spec)
            if spec.datatype == "BYTES" else _numbers(flat, spec)).reshape(shape)


def _flat(data: list[Any], spec: TensorSpec, shape: tuple[int, ...]) -> list[Any]:
    """Its values, as many as the shape says. They are nested as it says, or not at all."""
    found = (len(data),)
    while data and type(data[0]) is list and len(found) < len(shape):
        sizes: set[int] = set(map(len, data)) if set(map(type, data)) == {list} else set()
        if len(sizes) != 1:
            raise BadRequestError(f"`data` of input {spec.name!r} is ragged: nest it as its shape {list(shape)} says, "
                                  "or not at all")
        found = (*found, sizes.pop())
        data = list(chain.from_iterable(data))
    if len(data) != math.prod(shape) or (len(found) > 1 and found != shape):
        raise BadRequestError(f"`data` of input {spec.name!r} has {len(data)} values in shape {list(found)}, its shape "
                              f"{list(shape)} says {math.prod(shape)}")
    return data


def _numbers(flat: list[float], spec: TensorSpec) -> Array:
    """Of the tensor's type, if each is one of its. Whole numbers may be written as 3.0."""
    wanted = np.dtype(DTYPES[spec.datatype])
    if wanted.kind in "iu":
        return _whole(flat, spec, wanted)
    with np.errstate(over="ignore"):
        return _finite(np.array(flat, wanted), spec)


def _whole(flat: list[float], spec: TensorSpec, wanted: np.dtype[np.generic]) -> Array:
    values: Array = np.asarray(flat)
    # NumPy would round whole numbers that are beyond int64, or beside a 3.0: Python does not
    if values.dtype.kind != "i":
        if not all(value.is_integer() for value in flat if type(value) is float):
            raise BadRequestError(f"`data` of input {spec.name!r} holds fractions, and is {spec.datatype}")
        values = np.array(list(map(int, flat)), object)
    limits = np.iinfo(DTYPES[spec.datatype])
    if values.size and not (limits.min <= int(values.min()) and int(values.max()) <= limits.max):
        raise BadRequestError(f"`data` of input {spec.name!r} holds values outside {spec.datatype}: {limits.min} to "
                              f"{limits.max}")
    return values.astype(wanted, copy=False)


def _finite(values: Array, spec: TensorSpec) -> Array:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise BadRequestError(f"input {spec.name!r} holds values that are not finite in {spec.datatype}")
    return values


def _texts(flat: list[str], parameters: Mapping[str, object], spec: TensorSpec) -> Array:
    """Elements of BYTES from JSON strings: their UTF-8, or what they hold in base64."""
    try:
        if parameters.get("content_type") == "base64":
            return _objects([base64.b64decode(value, validate=True) for value in flat])
        return _objects([value.encode() for value in flat])
    except (binascii.Error, ValueError):
        raise BadRequestError(f"`data` of input {spec.name!r} holds strings that are not base64, or no UTF-8") from None


def of_bytes(data: memoryview, spec: TensorSpec, shape: tuple[int, ...]) -> Array:
    """The array of a binary tensor, in its shape: little endian; of BYTES each element after its length."""
    count = math.prod(shape)
    if spec.datatype == "BYTES":
        return _objects(_elements(data, spec, count)).reshape(shape)
    wanted = np.dtype(DTYPES[spec.datatype]).newbyteorder("<")
    if len(data) != count * wanted.itemsize:
        raise BadRequestError(f"input {spec.name!r} has {len(data)} bytes: {count} values of {spec.datatype}, as its "
                              f"shape {list(shape)} says, are {count * wanted.itemsize}")
    if spec.datatype == "BOOL" and np.frombuffer(data, np.uint8).max(initial=0) > 1:
        raise BadRequestError(f"input {spec.name!r} holds bytes that are neither 0 nor 1")
    return _finite(np.frombuffer(data, wanted).reshape(shape), spec)


def _elements(data: memoryview, spec: TensorSpec, count: int) -> list[bytes]:
    """Of BYTES: each 4 bytes of length, then itself."""
    found: list[bytes] = []
    at = 0
    while at < len(data) and len(found) <= count:
        if at + 4 > len(data) or at + 4 + (size := struct.unpack_from("<I", data, at)[0]) > len(data):
            raise BadRequestError(f"input {spec.name!r} ends in the middle of an element: each is 4 bytes of length, "
                                  "then itself")
        found.append(bytes(data[at + 4 : at + 4 + size]))
        at += 4 + size
    if len(found) != count:
        raise BadRequestError(f"input {spec.name!r} does not hold {count} elements of BYTES")
    return found


def _objects(values: Sequence[bytes]) -> Array:
    made = np.empty(len(values), object)
    made[:] = values
    return made


def to_json(values: Array, spec: TensorSpec) -> object:
    """What orjson writes as a flat list of values."""
    if spec.datatype == "BYTES":
        return [value if isinstance(value, str) else bytes(value).decode(errors="replace") for value in values.ravel()]
    return np.ascontiguousarray(values).ravel()


def to_bytes(values: Array, spec: TensorSpec) -> bytes:
    """The bytes of a binary tensor."""
    if spec.datatype != "BYTES":
        return np.ascontiguousarray(values, np.dtype(DTYPES[spec.datatype]).newbyteorder("<")).tobytes()
    return joined(elements(values))


def elements(values: Array) -> list[bytes]:
    """Of BYTES."""
    return [value.encode() if isinstance(value, str) else bytes(value) for value in values.ravel()]


def joined(elements: Iterable[bytes]) -> bytes:
    """Elements of BYTES: each 4 bytes of length, then itself."""
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)
