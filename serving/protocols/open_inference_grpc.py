"""The Open Inference Protocol's messages of gRPC: to requests and from answers, as open_inference_json.py has them.

They are those of open_inference.proto, compiled by `make proto`, in a pool of their own: a client in the same process,
such as Triton's, brings others of the same names.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from cluster.core.documents import JsonObject
from jobs.common.arrays import Array
from jobs.common.artifact.tensor_spec import DTYPES, TensorSpec
from serving.core.errors import BadRequestError
from serving.protocols import open_inference_json as protocol
from serving.protocols import tensor_values
from serving.protocols.open_inference_json import InferRequest

MOST_FIELDS = 1 << 16
"""Of a message that is longer than what is read at once: each becomes an object, and an empty one may be two bytes."""
_Fields: TypeAlias = Mapping[int, "_Fields"]
_PARAMETERS: _Fields = {2: {}}
_REQUEST: _Fields = {4: _PARAMETERS, 5: {4: _PARAMETERS, 5: {}}, 6: {2: _PARAMETERS}}
"""By their numbers, the fields of a ModelInferRequest that are messages, and of them those that are, and so on."""
_NUMBER_BYTES = 10
PACKAGE = "inference"
DESCRIPTION = Path(__file__).with_name("open_inference.binpb")
_CONTENTS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents", "UINT64": "uint64_contents",
    "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}
"""Where a tensor's values lie that are not raw bytes. FP16 is always raw."""


@cache
def message(name: str) -> Any:
    """The class of a message, such as ModelInferRequest."""
    from google.protobuf import message_factory

    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"{PACKAGE}.{name}"))


@cache
def _pool() -> Any:
    from google.protobuf import descriptor_pb2, descriptor_pool

    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTION.read_bytes()).file:
        pool.Add(file)
    return pool


def parsed(name: str, data: bytes) -> Any:
    """Raises: BadRequestError."""
    from google.protobuf.message import DecodeError

    if len(data) > protocol.QUICK_BYTES:
        _check_fields(data, name)
    try:
        return message(name).FromString(data)
    except DecodeError:
        raise BadRequestError(f"the message is no {name}") from None


def _check_fields(data: bytes, name: str) -> None:
    """Raises: BadRequestError for more of them than are made into objects, whatever is in them."""
    known: _Fields = _REQUEST if name == "ModelInferRequest" else {}
    waiting = [(0, len(data), known)]
    fields = 0
    try:
        while waiting:
            at, end, inside = waiting.pop()
            while at < end:
                number, start, at = _field(data, at)
                fields += 1
                if fields > MOST_FIELDS:
                    raise BadRequestError(f"the message has more than {MOST_FIELDS:,} fields: send tensors as "
                                          "raw_input_contents")
                if number in inside:
                    waiting.append((start, at, inside[number]))
    except (IndexError, KeyError):
        raise BadRequestError(f"the message is no {name}") from None


def _field(data: bytes, at: int) -> tuple[int, int, int]:
    """Of the one that begins there: its number, and where what it holds begins and ends (protobuf's wire format)."""
    key, at = _number(data, at)
    kind = key & 7
    if kind == 0:
        return key >> 3, at, _number(data, at)[1]
    size, at = _number(data, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
    return key >> 3, at, at + size


def _number(data: bytes, at: int) -> tuple[int, int]:
    """A number of 7 bits a byte, the lowest first, and where it ends."""
    found = 0
    for place in range(_NUMBER_BYTES):
        byte = data[at + place]
        found |= (byte & 127) << 7 * place
        if byte < 128:
            return found, at + place + 1
    raise IndexError(at)


def parse_call(call: Any, specs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], max_rows: int) -> InferRequest:
    """call: a ModelInferRequest. The rest as in `protocol.parse_request`. Raises: BadRequestError, with the remedy."""
    raw = call.raw_input_contents
    if raw and len(raw) != len(call.inputs):
        raise BadRequestError(f"raw_input_contents has {len(raw)} elements for {len(call.inputs)} inputs: one for each")
    tail: list[bytes] = []
    asked = {
        "inputs": [_described(tensor, raw[at] if raw else None, tail) for at, tensor in enumerate(call.inputs)],
        "outputs": [{"name": output.name, "parameters": _parameters(output)} for output in call.outputs],
        "parameters": _parameters(call), "id": call.id or None,
    }
    return protocol.fitted(asked, memoryview(tail[0] if len(tail) == 1 else b"".join(tail)), specs, outputs, max_rows)


def _described(tensor: Any, raw: bytes | None, tail: list[bytes]) -> JsonObject:
    """A tensor as HTTP's JSON has it. What is binary there goes to the tail."""
    found = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
    contents, where = tensor.contents, _CONTENTS.get(tensor.datatype)
    fields = [field.name for field, _ in contents.ListFields()]
    if fields and tensor.datatype in DTYPES and (raw is not None or fields != [where]):
        place = where if raw is None and where else "raw_input_contents"
        raise BadRequestError(f"input {tensor.name[:60]!r} is {tensor.datatype}, and has {' and '.join(fields)}: its "
                              f"values go into {place} alone")
    if raw is None and tensor.datatype == "BYTES":
        raw = tensor_values.joined(contents.bytes_contents)
    if raw is None:
        values = getattr(contents, where) if where is not None and fields else None
        if values is not None and len(values) > protocol.MOST_VALUES:
            raise BadRequestError(f"input {tensor.name[:60]!r} has {len(values):,} values in {where}: at most "
                                  f"{protocol.MOST_VALUES:,}. Send them as raw_input_contents")
        return found | {"data": None if values is None else list(values)}
    tail.append(raw)
    return found | {"parameters": {"binary_data_size": len(raw)}}


def _parameters(holder: Any) -> JsonObject:
    found: JsonObject = {}
    for name, parameter in holder.parameters.items():
        which = parameter.WhichOneof("parameter_choice")
        found[name] = None if which is None else getattr(parameter, which)
    return found


def answer_call(call: Any, request: InferRequest, outputs: Mapping[str, Array], specs: Sequence[TensorSpec],
                about: JsonObject) -> Any:
    """A ModelInferResponse: raw where the request was raw, or an output is FP16. about: as in `protocol.answer`."""
    made = message("ModelInferResponse")(model_name=about["model_name"], model_version=about["model_version"],
                                         id=request.id or "")
    for name, value in about["parameters"].items():
        made.parameters[name].string_param = value
    chosen = protocol.chosen(request, specs)
    raw = bool(call.raw_input_contents) or any(spec.datatype not in _CONTENTS for spec in chosen)
    for spec in chosen:
        values = outputs[spec.name]
        tensor = made.outputs.add(name=spec.name, datatype=spec.datatype, shape=values.shape)
        if raw:
            made.raw_output_contents.append(tensor_values.to_bytes(values, spec))
        elif spec.datatype == "BYTES":
            tensor.contents.bytes_contents.extend(tensor_values.elements(values))
        else:
            getattr(tensor.contents, _CONTENTS[spec.datatype]).extend(values.ravel().tolist())
    return made
