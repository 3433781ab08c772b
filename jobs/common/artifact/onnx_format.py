"""What is in an ONNX file, without reading its numbers: one that names other files,
or operators of unknown libraries, is refused.

An ONNX file is a protobuf message (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto). Only the fields that lead
to tensors and nodes are followed here;
everything else is skipped by its length, so a large file takes no longer than a small one.
"""

from collections.abc import Iterator, Mapping

DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
"""Of operators that ONNX Runtime has by itself: others would come with a library of native code."""
_WITHIN: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
"""Message -> field -> the message in it."""
_GRAPH = 7
_DOMAIN = 7
"""Of a node."""
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
"""Of a tensor."""
_ORT = slice(4, 8), b"ORTM"
"""What ONNX Runtime knows its own format by, which it takes before it looks whether the file is ONNX;
nothing checks that one."""
_FIXED = {1: 8, 5: 4}
_MOST_NESTED = 32


def refusal(data: bytes) -> str | None:
    """Why it is not taken, to follow the file's name; None if it is. data: the whole file."""
    place, mark = _ORT
    if data[place] == mark:
        return "is of ONNX Runtime's own format, under the name of ONNX"
    try:
        if not any(number == _GRAPH for number, _ in _fields(memoryview(data))):
            return "is not ONNX"
        return _refused("model", memoryview(data), 0)
    except (ValueError, IndexError):
        return "is not ONNX, or is damaged"


def _refused(kind: str, message: memoryview, depth: int) -> str | None:
    if depth > _MOST_NESTED:
        raise ValueError("nested too deeply")
    for number, value in _fields(message):
        if kind == "tensor" and (number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value)):
            return "keeps numbers in another file"
        if kind == "node" and number == _DOMAIN and _text(value) not in DOMAINS:
            return f"needs the operators of {_text(value)[:40]!r}, which would be native code"
        inner = _WITHIN[kind].get(number)
        if inner and isinstance(value, memoryview) and (why := _refused(inner, value, depth + 1)):
            return why
    return None


def _text(value: "memoryview | int") -> str:
    return bytes(value).decode(errors="replace") if isinstance(value, memoryview) else str(value)


def _fields(message: memoryview) -> Iterator[tuple[int, "memoryview | int"]]:
    """(number, its bytes or number) of each field. Raises: ValueError or IndexError if it is no protobuf message."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise ValueError("a field has the number 0")
        if wire == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(message, at)
        elif wire in _FIXED:
            size = _FIXED[wire]
        else:
            raise ValueError(f"wire type {wire}")
        if at + size > len(message):
            raise ValueError("cut off")
        yield number, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
