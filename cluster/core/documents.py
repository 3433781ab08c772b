"""Reads every JSON and YAML document that may be damaged or hostile: bounded in size and depth,
checked against a shape.

`parse_json(text, Manifest)` returns a `Manifest` or raises a `DocumentError`, a one-line `ValueError` that says what is
wrong and where in the document. The caller adds which file it is and what to do about it.
"""

import dataclasses
import functools
import stat
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import yaml

from cluster.core.errors import NewerVersionError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

    from cluster.core.storage import Store

T = TypeVar("T")
Loader = type[yaml.BaseLoader] | type[yaml.SafeLoader]
JsonObject = dict[str, Any]
JSON_VALUE = cast(type[Any], object)
"""The shape of a document that may be anything."""
MOST_JSON_BYTES = 64 << 20
"""A checkpoint of 10,000 parts has a manifest of 3 MB."""
MOST_YAML_BYTES = 4 << 20
MOST_YAML_NODES = 100_000
"""With every alias counted as what it stands for."""
_SHOWN = 3


class DocumentError(ValueError):
    """A document is too large, too deep, not JSON or YAML, or not of the shape that its reader wants."""


def parse_json(text: str | bytes, shape: type[T] = JsonObject, *, most_bytes: int = MOST_JSON_BYTES) -> T:
    """Returns the document as `shape`: a dataclass, or a type such as `dict[str, int]`.
    Nothing is coerced but lists to tuples.

    Raises: DocumentError.
    """
    from pydantic import ValidationError  # 0.05 s that a command without documents does without

    _check_size(len(text), most_bytes)
    try:
        return _adapter(shape).validate_json(text, strict=True)
    except ValidationError as error:
        problems = [_sentence(each["loc"], each["msg"])
                    for each in error.errors(include_url=False, include_input=False)]
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise DocumentError("; ".join(problems[:_SHOWN]) + more) from None


def load_json(store: "Store", path: str, shape: type[T] = JsonObject, *, most_bytes: int = MOST_JSON_BYTES) -> T:
    """Returns a stored document, whose size is checked before it is read. Raises: FileNotFoundError, DocumentError."""
    with store.reading(path) as stream:
        _check_size(stream.size(), most_bytes)
        return parse_json(stream.read(), shape, most_bytes=most_bytes)


def read_json(path: Path, shape: type[T] = JsonObject, *, most_bytes: int = MOST_JSON_BYTES) -> T:
    """Returns the document in a file of this machine. Raises: OSError, DocumentError."""
    return parse_json(read_bounded(path, most_bytes), shape, most_bytes=most_bytes)


def parse_yaml(text: str | bytes, loader: Loader = yaml.SafeLoader) -> object:
    """Returns the only document of a text; None if it has none. Raises: DocumentError, also for several documents."""
    documents = list(parse_yaml_documents(text, loader))
    if len(documents) > 1:
        raise DocumentError(f"it holds {len(documents)} documents, one is expected")
    return documents[0] if documents else None


def parse_yaml_documents(text: str | bytes, loader: Loader = yaml.SafeLoader) -> Generator[object]:
    """Yields each document of a text. Raises: DocumentError."""
    _check_size(len(text), MOST_YAML_BYTES)
    try:
        reader = loader(text)
        while reader.check_node():
            node = cast(yaml.Node, reader.get_node())
            if _expanded(node, {}) > MOST_YAML_NODES:
                raise DocumentError(f"its aliases stand for more than {MOST_YAML_NODES:,} values")
            yield cast(Any, reader).construct_document(node)
    except RecursionError:
        raise DocumentError("it is nested too deeply") from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:  # ValueError: dates such as 2026-02-31
        raise error if isinstance(error, DocumentError) else DocumentError(" ".join(str(error).split())) from None


def read_yaml(path: Path, loader: Loader = yaml.SafeLoader) -> object:
    """Returns the only document in a file of this machine. Raises: OSError, DocumentError."""
    return parse_yaml(read_bounded(path, MOST_YAML_BYTES), loader)


def read_bounded(path: Path, most_bytes: int) -> bytes:
    """Returns the bytes of a file or a pipe, of which no more than `most_bytes` are read.
    Raises: OSError, DocumentError."""
    with path.open("rb") as file:
        if stat.S_ISCHR(path.stat().st_mode) and not file.isatty():
            raise DocumentError("it is a device, not a file")
        data = file.read(most_bytes + 1)
    _check_size(len(data), most_bytes)
    return data


def check_version(where: str, found: object, known: int, otherwise: str) -> None:
    """Refuses a document of a later format than this program reads. otherwise: what to do without the newer one.

    Raises: NewerVersionError.
    """
    if not isinstance(found, int) or found > known:
        raise _newer(where, f"its format has version {found!r:.20}, this one reads up to {known}", otherwise)


def check_fields(where: str, values: Mapping[str, object], shape: type[Any], otherwise: str) -> None:
    """Refuses a document with a field that its dataclass does not have. Raises: NewerVersionError."""
    if unknown := values.keys() - {each.name for each in dataclasses.fields(shape)}:
        raise _newer(where, f"this one does not know its field {min(unknown)!r:.50}", otherwise)


def _newer(where: str, why: str, otherwise: str) -> NewerVersionError:
    return NewerVersionError(f"{where} was written by a newer Trainyard ({why}): go on with that one, or {otherwise}")


@functools.cache
def _adapter(shape: type[T]) -> "TypeAdapter[T]":
    from pydantic import TypeAdapter

    return TypeAdapter(shape)


def _check_size(size: int, most_bytes: int) -> None:
    if size > most_bytes:
        raise DocumentError(f"it has more than {most_bytes:,} bytes")


def _sentence(place: tuple[int | str, ...], message: str) -> str:
    where = ".".join(map(str, place))
    return f"{where}: {message}" if where else message


def _expanded(node: yaml.Node, known: dict[int, int]) -> int:
    """Number of values below a node; what an alias names is counted at each place that names it."""
    if id(node) not in known:
        known[id(node)] = MOST_YAML_NODES + 1  # until it is known: a node that holds itself is never small enough
        known[id(node)] = 1 + sum(_expanded(child, known) for child in _children(node))
    return known[id(node)]


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [each for pair in cast(list[tuple[yaml.Node, yaml.Node]], node.value) for each in pair]
    return cast(list[yaml.Node], node.value) if isinstance(node, yaml.SequenceNode) else []
