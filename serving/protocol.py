"""The Open Inference Protocol (v2) over HTTP: requests to arrays, arrays to answers, in JSON and with binary tensors.

https://github.com/kserve/open-inference-protocol. The binary extension is Triton's: a body is JSON, then the tensors' bytes, little
endian, in the order of the JSON; the header `Inference-Header-Content-Length` says how long the JSON is.
"""

import base64
import binascii
import math
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import orjson
from numpy.typing import NDArray

from jobs.common.open_inference import DTYPES, TensorSpec
from serving.errors import BadRequestError

Array = NDArray[Any]
EXTENSIONS = ("binary_tensor_data",)
HEADER_LENGTH = "inference-header-content-length"
_KINDS = {"BOOL": "b", "FP16": "biuf", "FP32": "biuf", "FP64": "biuf"}
"""What kinds of JSON numbers NumPy may find for a datatype; for integers, all but booleans."""


@dataclass(frozen=True, kw_only=True)
class InferRequest:
    """A request that fits the model. inputs: by name; an element of BYTES is a `bytes`. rows: the first dimension of all."""

    inputs: Mapping[str, Array]
    rows: int
    id: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict[str, Any])
    outputs: Mapping[str, bool] | None = None
    """Which ones are asked for, and whether as binary; None: all."""
    binary: bool = False
    """Whether outputs come as binary unless they say otherwise."""


def parse_request(body: bytes, header_length: str | None, specs: Sequence[TensorSpec], outputs: Sequence[TensorSpec],
                  max_rows: int) -> InferRequest:
    """specs: of the inputs that the model takes. outputs: of those that it gives. Raises: BadRequestError, with the remedy."""
    head, tail = _split(body, header_length)
    try:
        message = orjson.loads(head)
    except orjson.JSONDecodeError as error:
        raise BadRequestError(f"the body is no JSON ({error})") from None
    if not isinstance(message, dict):
        raise BadRequestError("the body is no JSON object: send {\"inputs\": […]}")
    return fitted(cast(dict[str, Any], message), tail, specs, outputs, max_rows)


def fitted(message: Mapping[str, Any], tail: memoryview, specs: Sequence[TensorSpec], outputs: Sequence[TensorSpec],
           max_rows: int) -> InferRequest:
    """A request whose JSON has been read, or that has been put into its form. tail: the bytes of its binary tensors.

    Raises: BadRequestError.
    """
    inputs = _inputs(_list(message, "inputs"), tail, {spec.name: spec for spec in specs})
    parameters = _parameters(message)
    return InferRequest(inputs=inputs, rows=_rows(inputs, max_rows), id=_id(message), parameters=parameters,
                        outputs=_outputs(message, outputs), binary=_flag(parameters, "binary_data_output"))


def _split(body: bytes, header_length: str | None) -> tuple[bytes | memoryview, memoryview]:
    if header_length is None:
        return body, memoryview(b"")
    if not re.fullmatch("[0-9]{1,18}", header_length) or int(header_length) > len(body):
        raise BadRequestError(f"Inference-Header-Content-Length is {header_length[:20]!r}, and the body has {len(body)} bytes: it "
                              "is the length of the JSON that the body begins with")
    whole = memoryview(body)
    return whole[: int(header_length)], whole[int(header_length) :]


def _list(message: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Of tensors, each a JSON object with a name of its own."""
    found = message.get(name)
    if not isinstance(found, list) or not found:
        raise BadRequestError(f"`{name}` is missing, or no list of tensors")
    names: set[str] = set()
    for tensor in cast(list[dict[str, Any]], found):
        own = tensor.get("name") if isinstance(tensor, dict) else None  # pyright: ignore[reportUnnecessaryIsInstance]
        if not isinstance(own, str):
            raise BadRequestError(f"an element of `{name}` is no object with a `name`")
        if own in names:
            raise BadRequestError(f"`{name}` has {own[:60]!r} twice")
        names.add(own)
    return cast(list[dict[str, Any]], found)


def _parameters(holder: Mapping[str, Any]) -> dict[str, Any]:
    found = holder.get("parameters")
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise BadRequestError("`parameters` is no object")
    return cast(dict[str, Any], found)


def _flag(parameters: Mapping[str, Any], name: str) -> bool:
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise BadRequestError(f"parameter `{name}` is neither true nor false")
    return value


def _id(message: Mapping[str, Any]) -> str | None:
    value = message.get("id")
    if value is not None and not isinstance(value, str):
        raise BadRequestError("`id` is no string")
    return value


def _outputs(message: Mapping[str, Any], specs: Sequence[TensorSpec]) -> dict[str, bool] | None:
    if message.get("outputs") in (None, []):
        return None
    default = _flag(_parameters(message), "binary_data_output")
    known = [spec.name for spec in specs]
    found: dict[str, bool] = {}
    for tensor in _list(message, "outputs"):
        if tensor["name"] not in known:
            raise BadRequestError(f"the model has no output {tensor['name'][:60]!r}: it has {', '.join(known)}")
        parameters = _parameters(tensor)
        found[tensor["name"]] = _flag(parameters, "binary_data") if "binary_data" in parameters else default
    return found


# ── inputs ──
def _inputs(tensors: list[dict[str, Any]], tail: memoryview, specs: Mapping[str, TensorSpec]) -> dict[str, Array]:
    found: dict[str, Array] = {}
    at = 0
    for tensor in tensors:
        spec = specs.get(tensor["name"])
        if spec is None:
            raise BadRequestError(f"the model has no input {tensor['name'][:60]!r}: it takes {', '.join(specs)}")
        spec = _fitting(tensor, spec)
        shape, size = _shape(tensor, spec), _parameters(tensor).get("binary_data_size")
        if size is None:
            found[spec.name] = _of_json(tensor, spec, shape)
            continue
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(tail) - at:
            raise BadRequestError(f"binary_data_size of {spec.name!r} is {str(size)[:20]}, and {len(tail) - at} bytes are left "
                                  "in the body")
        found[spec.name] = _of_bytes(tail[at : at + size], spec, shape)
        at += size
    if at != len(tail):
        raise BadRequestError(f"{len(tail) - at} bytes of the body belong to no tensor: their `binary_data_size` must add up to it")
    if missing := sorted(set(specs) - set(found)):
        raise BadRequestError(f"input {', '.join(missing)} is missing")
    return found


def _fitting(tensor: Mapping[str, Any], spec: TensorSpec) -> TensorSpec:
    """The spec that a tensor is to keep: the model's, or BYTES of one element a row, such as the bytes of an image file."""
    datatype = tensor.get("datatype")
    if datatype == spec.datatype:
        return spec
    if datatype == "BYTES":
        return TensorSpec(name=spec.name, datatype="BYTES", shape=(-1,))
    raise BadRequestError(f"input {spec.name!r} is {spec.datatype}, not {str(datatype)[:20]}")


def _shape(tensor: Mapping[str, Any], spec: TensorSpec) -> tuple[int, ...]:
    """Of whole numbers, and such that the model takes it."""
    shape = tensor.get("shape")
    sizes = cast(list[Any], shape) if isinstance(shape, list) else None
    if sizes is None or not all(isinstance(size, int) and not isinstance(size, bool) and size >= 0 for size in sizes):
        raise BadRequestError(f"shape of input {spec.name!r} is no list of whole numbers")
    fits = len(sizes) == len(spec.shape) and all(want in (-1, have) for want, have in zip(spec.shape, sizes, strict=True))
    if not fits:
        raise BadRequestError(f"input {spec.name!r} has shape {str(sizes)[:80]}: the model takes {list(spec.shape)}, where -1 is "
                              "any size")
    return tuple(sizes)


def _of_json(tensor: Mapping[str, Any], spec: TensorSpec, shape: tuple[int, ...]) -> Array:
    data = tensor.get("data")
    if not isinstance(data, list):
        raise BadRequestError(f"`data` of input {spec.name!r} is missing, or no list")
    count = math.prod(shape)
    if spec.datatype == "BYTES":
        return _texts(cast(list[Any], data), _parameters(tensor), spec, count).reshape(shape)
    try:
        values = _numbers(cast(list[Any], data), np.dtype(DTYPES[spec.datatype]))
    except (ValueError, OverflowError):
        raise BadRequestError(f"`data` of input {spec.name!r} is ragged: nest it as its shape says, or not at all") from None
    if values.size != count or (values.ndim != 1 and values.shape != shape):
        raise BadRequestError(f"`data` of input {spec.name!r} has {values.size} values in shape {list(values.shape)[:8]}, "
                              f"its shape says {count}")
    return _cast(values, spec).reshape(shape)


def _numbers(data: list[Any], wanted: np.dtype[Any]) -> Array:
    """Raises: ValueError if they are ragged."""
    values: Array = np.asarray(data)
    if wanted == np.uint64 and values.dtype.kind == "f" and all(type(value) is int and value >= 0 for value in _flat(data)):
        return np.asarray(data, wanted)  # NumPy would round whole numbers of which some are beyond int64
    return values


def _cast(values: Array, spec: TensorSpec) -> Array:
    """To the tensor's type, if each value is one of its. Whole numbers may be written as 3.0."""
    kind, wanted = values.dtype.kind, np.dtype(DTYPES[spec.datatype])
    if kind not in _KINDS.get(spec.datatype, "iuf"):
        raise BadRequestError(f"`data` of input {spec.name!r} holds something that is no {spec.datatype}")
    if wanted.kind in "iu" and values.dtype != wanted:
        limits = np.iinfo(wanted)
        if kind == "f" and not (values == np.rint(values)).all():
            raise BadRequestError(f"`data` of input {spec.name!r} holds fractions, and is {spec.datatype}")
        if values.size and not (limits.min <= values.min().item() and values.max().item() <= limits.max):  # Python compares exactly
            raise BadRequestError(f"`data` of input {spec.name!r} holds values outside {spec.datatype}: {limits.min} to "
                                  f"{limits.max}")
    with np.errstate(over="ignore"):
        made = values.astype(wanted, copy=False)
    return _finite(made, spec)


def _finite(values: Array, spec: TensorSpec) -> Array:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise BadRequestError(f"input {spec.name!r} holds values that are not finite in {spec.datatype}")
    return values


def _texts(data: list[Any], parameters: Mapping[str, Any], spec: TensorSpec, count: int) -> Array:
    """Elements of BYTES from JSON strings: their UTF-8, or what they hold in base64."""
    flat = _flat(data)
    if len(flat) != count or not all(isinstance(value, str) for value in flat):
        raise BadRequestError(f"`data` of input {spec.name!r} must be {count} strings")
    try:
        if parameters.get("content_type") == "base64":
            return _objects([base64.b64decode(value, validate=True) for value in flat])
        return _objects([value.encode() for value in flat])
    except (binascii.Error, ValueError):
        raise BadRequestError(f"`data` of input {spec.name!r} holds strings that are not base64, or no UTF-8") from None


def _flat(data: list[Any]) -> list[Any]:
    while any(isinstance(value, list) for value in data):
        data = [inner for value in data for inner in (cast(list[Any], value) if isinstance(value, list) else [value])]
    return data


def _of_bytes(data: memoryview, spec: TensorSpec, shape: tuple[int, ...]) -> Array:
    count = math.prod(shape)
    if spec.datatype == "BYTES":
        return _objects(_elements(data, spec, count)).reshape(shape)
    wanted = np.dtype(DTYPES[spec.datatype]).newbyteorder("<")
    if len(data) != count * wanted.itemsize:
        raise BadRequestError(f"input {spec.name!r} has {len(data)} bytes: {count} values of {spec.datatype} are "
                              f"{count * wanted.itemsize}")
    if spec.datatype == "BOOL" and np.frombuffer(data, np.uint8).max(initial=0) > 1:
        raise BadRequestError(f"input {spec.name!r} holds bytes that are neither 0 nor 1")
    return _finite(np.frombuffer(data, wanted).reshape(shape), spec)


def _elements(data: memoryview, spec: TensorSpec, count: int) -> list[bytes]:
    """Of BYTES: each 4 bytes of length, then itself."""
    found: list[bytes] = []
    at = 0
    while at < len(data) and len(found) <= count:
        if at + 4 > len(data) or at + 4 + (size := struct.unpack_from("<I", data, at)[0]) > len(data):
            raise BadRequestError(f"input {spec.name!r} ends in the middle of an element: each is 4 bytes of length, then itself")
        found.append(bytes(data[at + 4 : at + 4 + size]))
        at += 4 + size
    if len(found) != count:
        raise BadRequestError(f"input {spec.name!r} does not hold {count} elements of BYTES")
    return found


def _objects(values: Sequence[bytes]) -> Array:
    made = np.empty(len(values), object)
    made[:] = values
    return made


def _rows(inputs: Mapping[str, Array], max_rows: int) -> int:
    rows = {len(array) for array in inputs.values()}
    if len(rows) != 1 or 0 in rows:
        raise BadRequestError("the first dimension of all inputs must be the same number of rows, 1 or more")
    (found,) = rows
    if found > max_rows:
        raise BadRequestError(f"{found} rows in one request: at most {max_rows}")
    return found


# ── answers ──
def answer(request: InferRequest, outputs: Mapping[str, Array], specs: Sequence[TensorSpec], about: Mapping[str, Any]) \
        -> tuple[bytes, int | None]:
    """A response's body, and the length of its JSON if binary tensors follow it. about: model_name, model_version, parameters."""
    tensors: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for spec in chosen(request, specs):
        values = outputs[spec.name]
        tensor: dict[str, Any] = {"name": spec.name, "datatype": spec.datatype, "shape": list(values.shape)}
        if request.binary if request.outputs is None else request.outputs[spec.name]:
            tail.append(to_bytes(values, spec))
            tensor["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            tensor["data"] = _to_json(values, spec)
        tensors.append(tensor)
    message = {**about, **({} if request.id is None else {"id": request.id}), "outputs": tensors}
    head = orjson.dumps(message, option=orjson.OPT_SERIALIZE_NUMPY)
    return (head + b"".join(tail), len(head)) if tail else (head, None)


def chosen(request: InferRequest, specs: Sequence[TensorSpec]) -> list[TensorSpec]:
    """The outputs that are asked for."""
    return [spec for spec in specs if request.outputs is None or spec.name in request.outputs]


def _to_json(values: Array, spec: TensorSpec) -> Any:
    if spec.datatype == "BYTES":
        return [value if isinstance(value, str) else bytes(value).decode(errors="replace") for value in values.ravel()]
    return np.ascontiguousarray(values).ravel()


def to_bytes(values: Array, spec: TensorSpec) -> bytes:
    if spec.datatype != "BYTES":
        return np.ascontiguousarray(values, np.dtype(DTYPES[spec.datatype]).newbyteorder("<")).tobytes()
    return joined(elements(values))


def elements(values: Array) -> list[bytes]:
    """Of BYTES."""
    return [value.encode() if isinstance(value, str) else bytes(value) for value in values.ravel()]


def joined(elements: Iterable[bytes]) -> bytes:
    """Elements of BYTES: each 4 bytes of length, then itself."""
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def tensor_metadata(specs: Sequence[TensorSpec]) -> list[dict[str, Any]]:
    return [{"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)} for spec in specs]
