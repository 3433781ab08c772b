"""The Open Inference Protocol (v2) over HTTP: requests to arrays, arrays to answers, in JSON and with binary tensors.

https://github.com/kserve/open-inference-protocol. The binary extension is Triton's: a body is JSON, then the tensors'
bytes, little endian, in the order of the JSON; the header `Inference-Header-Content-Length` says how long the JSON is.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import orjson

from cluster.core.documents import JsonObject
from jobs.common.arrays import Array
from jobs.common.artifact.tensor_spec import TensorSpec
from serving.core.errors import BadRequestError
from serving.protocols.tensor_values import of_bytes, of_json, parameters_of, shown, to_bytes, to_json

EXTENSIONS = ("binary_tensor_data", "classification")
HEADER_LENGTH = "inference-header-content-length"
QUICK_BYTES = 1 << 16
"""What is shorter is read in the event loop: handing it to a thread costs more than it frees."""
MOST_VALUES, MOST_BRACKETS = 1 << 19, 1 << 16
"""Commas and opening brackets of a body's JSON. While it becomes objects Python's lock is held, whichever thread reads
it, and nobody is answered: with so many that takes some 50 ms, whatever they are."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """One that is asked for. binary: as a binary tensor.
    classes: how many of its likeliest come in its place; 0: none do."""

    binary: bool
    classes: int = 0


@dataclass(frozen=True, kw_only=True)
class InferRequest:
    """A request that fits the model. inputs: by name; an element of BYTES is a `bytes`.
    rows: the first dimension of all."""

    inputs: Mapping[str, Array]
    rows: int
    id: str | None = None
    parameters: Mapping[str, object] = field(default_factory=dict[str, object])
    outputs: Mapping[str, Output] | None = None
    """Those that are asked for; None: all."""
    binary: bool = False
    """Whether outputs come as binary unless they say otherwise."""


def parse_request(body: bytes, header_length: str | None, specs: Sequence[TensorSpec], outputs: Sequence[TensorSpec],
                  max_rows: int, limit: str = "--max-batch-rows") -> InferRequest:
    """specs: of the inputs that the model takes. outputs: of those that it gives. limit: what sets `max_rows`, for the
    message.

    Raises: BadRequestError, with the remedy.
    """
    head, tail = _split(body, header_length)
    return fitted(json_object(head, '{"inputs": […]}'), tail, specs, outputs, max_rows, limit)


def json_object(body: bytes, example: str) -> JsonObject:
    """What a body holds. Raises: BadRequestError, before anything is made of what is too much."""
    if len(body) > QUICK_BYTES:
        _check_size("commas", body.count(b","), MOST_VALUES)
        _check_size("opening brackets", body.count(b"[") + body.count(b"{"), MOST_BRACKETS)
    try:
        message = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequestError(f"the body is no JSON ({error})") from None
    if not isinstance(message, dict):
        raise BadRequestError(f"the body is no JSON object: send {example}")
    return cast(JsonObject, message)


def _check_size(what: str, found: int, most: int) -> None:
    if found > most:
        raise BadRequestError(f"the JSON has {found:,} {what}: at most {most:,}. Send tensors as binary ones, `data` "
                              "that is not nested, or fewer rows in one request")


def fitted(message: Mapping[str, object], tail: memoryview, specs: Sequence[TensorSpec], outputs: Sequence[TensorSpec],
           max_rows: int, limit: str = "--max-batch-rows") -> InferRequest:
    """A request whose JSON has been read, or that has been put into its form. tail: the bytes of its binary tensors.

    What it says of its tensors is checked before any of them is made. Raises: BadRequestError.
    """
    tensors = [(tensor, _spec(tensor, specs)) for tensor in _list(message, "inputs")]
    shapes = {spec.name: _shape(tensor, spec) for tensor, spec in tensors}
    if missing := sorted({spec.name for spec in specs} - set(shapes)):
        raise BadRequestError(f"input {', '.join(missing)} is missing")
    rows, parameters = _rows(shapes, max_rows, limit), parameters_of(message)
    return InferRequest(inputs=_inputs(tensors, shapes, tail), rows=rows, id=_id(message), parameters=parameters,
                        outputs=_outputs(message, outputs), binary=_flag(parameters, "binary_data_output"))


def _split(body: bytes, header_length: str | None) -> tuple[bytes, memoryview]:
    if header_length is None:
        return body, memoryview(b"")
    if not re.fullmatch("[0-9]{1,18}", header_length) or int(header_length) > len(body):
        raise BadRequestError(f"Inference-Header-Content-Length is {header_length[:20]!r}, and the body has "
                              f"{len(body)} bytes: it is the length of the JSON that the body begins with")
    length = int(header_length)
    return body[:length], memoryview(body)[length:]


def _list(message: Mapping[str, object], name: str) -> list[JsonObject]:
    """Of tensors, each a JSON object with a name of its own."""
    found = message.get(name)
    if not isinstance(found, list) or not found:
        raise BadRequestError(f"`{name}` is missing, or no list of tensors")
    names: set[str] = set()
    for tensor in cast(list[JsonObject], found):
        own = tensor.get("name") if isinstance(tensor, dict) else None  # pyright: ignore[reportUnnecessaryIsInstance]
        if not isinstance(own, str):
            raise BadRequestError(f"an element of `{name}` is no object with a `name`")
        if own in names:
            raise BadRequestError(f"`{name}` has {own[:60]!r} twice")
        names.add(own)
    return cast(list[JsonObject], found)


def _flag(parameters: Mapping[str, object], name: str) -> bool:
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise BadRequestError(f"parameter `{name}` is neither true nor false")
    return value


def _id(message: Mapping[str, object]) -> str | None:
    value = message.get("id")
    if value is not None and not isinstance(value, str):
        raise BadRequestError("`id` is no string")
    return value


def _outputs(message: Mapping[str, object], specs: Sequence[TensorSpec]) -> dict[str, Output] | None:
    if message.get("outputs") in (None, []):
        return None
    default = _flag(parameters_of(message), "binary_data_output")
    known = [spec.name for spec in specs]
    found: dict[str, Output] = {}
    for tensor in _list(message, "outputs"):
        if tensor["name"] not in known:
            raise BadRequestError(f"the model has no output {tensor['name'][:60]!r}: it has {', '.join(known)}")
        found[tensor["name"]] = _output(tensor["name"], parameters_of(tensor), default)
    return found


def _output(name: str, parameters: Mapping[str, object], binary: bool) -> Output:
    """binary: unless it says otherwise."""
    if strange := [each for each in parameters if each not in ("binary_data", "classification")]:
        raise BadRequestError(f"output {name!r} has the parameter {strange[0][:60]!r}, which this endpoint does not "
                              "know: there are binary_data and classification")
    classes = parameters.get("classification", 0)
    if type(classes) is not int or classes < 0:
        raise BadRequestError(f"`classification` of output {name!r} is {shown(classes)}: it must be a number of "
                              "classes")
    return Output(binary=_flag(parameters, "binary_data") if "binary_data" in parameters else binary, classes=classes)


# ── inputs ──
def _rows(shapes: Mapping[str, Sequence[int]], max_rows: int, limit: str) -> int:
    if len({shape[0] for shape in shapes.values()}) != 1 or (found := next(iter(shapes.values()))[0]) == 0:
        have = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        raise BadRequestError("the first dimension of all inputs must be the same number of rows, 1 or more: they have "
                              f"{have[:150]}")
    if found > max_rows:
        raise BadRequestError(f"{found} rows in one request: at most {max_rows} ({limit}). Send them in several "
                              "requests")
    return found


def _inputs(tensors: Iterable[tuple[JsonObject, TensorSpec]], shapes: Mapping[str, tuple[int, ...]], tail: memoryview) \
        -> dict[str, Array]:
    found: dict[str, Array] = {}
    at = 0
    for tensor, spec in tensors:
        size = _binary_size(tensor, spec, len(tail) - at)
        if size is None:
            found[spec.name] = of_json(tensor, spec, shapes[spec.name])
            continue
        found[spec.name] = of_bytes(tail[at : at + size], spec, shapes[spec.name])
        at += size
    if at != len(tail):
        raise BadRequestError(f"{len(tail) - at} bytes of the body belong to no tensor: their `binary_data_size` must "
                              "add up to it")
    return found


def _binary_size(tensor: Mapping[str, object], spec: TensorSpec, left: int) -> int | None:
    """The bytes of a binary tensor; None for one in JSON. left: bytes that no tensor has yet."""
    size = parameters_of(tensor).get("binary_data_size")
    if size is None:
        return None
    if tensor.get("data") is not None:
        raise BadRequestError(f"input {spec.name!r} has both `data` and `binary_data_size`: send one of them")
    if type(size) is not int or not 0 <= size <= left:
        raise BadRequestError(f"binary_data_size of {spec.name!r} is {shown(size)}, and {left} bytes are left in the "
                              "body")
    return size


def _spec(tensor: JsonObject, specs: Sequence[TensorSpec]) -> TensorSpec:
    """The spec that a tensor is to keep: the model's, or BYTES of one element a row,
    such as the bytes of an image file."""
    spec, datatype = next((each for each in specs if each.name == tensor["name"]), None), tensor.get("datatype")
    if spec is None:
        known = ", ".join(each.name for each in specs)
        raise BadRequestError(f"the model has no input {tensor['name'][:60]!r}: it takes {known}")
    if datatype is None:
        raise BadRequestError(f"datatype of input {spec.name!r} is missing: it is {spec.datatype}")
    if datatype == spec.datatype:
        return spec
    if datatype == "BYTES":
        return TensorSpec(name=spec.name, datatype="BYTES", shape=(-1,))
    raise BadRequestError(f"input {spec.name!r} is {spec.datatype}, not {shown(datatype)}")


def _shape(tensor: Mapping[str, object], spec: TensorSpec) -> tuple[int, ...]:
    """Of whole numbers, and such that the model takes it."""
    wanted = f"as {spec.datatype} the model takes {list(spec.shape)}, where -1 is any size"
    shape = tensor.get("shape")
    sizes = cast(list[int], shape) if isinstance(shape, list) else []
    if set(map(type, sizes)) != {int} or min(sizes) < 0:
        raise BadRequestError(f"shape of input {spec.name!r} is missing, or no list of whole numbers: {wanted}")
    if len(sizes) != len(spec.shape) or not all(want in (-1, have)
                                                for want, have in zip(spec.shape, sizes, strict=True)):
        raise BadRequestError(f"input {spec.name!r} has shape {str(sizes[:8])[:80]}: {wanted}")
    return tuple(sizes)


# ── answers ──
def answer(request: InferRequest, outputs: Mapping[str, Array], specs: Sequence[TensorSpec],
           about: Mapping[str, object]) \
        -> tuple[bytes, int | None]:
    """A response's body, and the length of its JSON if binary tensors follow it.
    about: model_name, model_version, parameters."""
    tensors: list[dict[str, object]] = []
    tail: list[bytes] = []
    for spec in chosen(request, specs):
        values = outputs[spec.name]
        tensor: dict[str, object] = {"name": spec.name, "datatype": spec.datatype, "shape": list(values.shape)}
        if request.binary if request.outputs is None else request.outputs[spec.name].binary:
            tail.append(to_bytes(values, spec))
            tensor["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            tensor["data"] = to_json(values, spec)
        tensors.append(tensor)
    message = {**about, **({} if request.id is None else {"id": request.id}), "outputs": tensors}
    head = orjson.dumps(message, option=orjson.OPT_SERIALIZE_NUMPY)
    return (head + b"".join(tail), len(head)) if tail else (head, None)


def chosen(request: InferRequest, specs: Sequence[TensorSpec]) -> list[TensorSpec]:
    """The outputs that are asked for."""
    return [spec for spec in specs if request.outputs is None or spec.name in request.outputs]


def tensor_metadata(specs: Sequence[TensorSpec]) -> list[JsonObject]:
    return [{"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)} for spec in specs]
