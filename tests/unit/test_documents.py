"""JSON and YAML from outside: bounded, checked, and refused with one line."""

import os
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from cluster.core.documents import (
    DocumentError,
    load_json,
    parse_json,
    parse_yaml,
    parse_yaml_documents,
    read_json,
    read_yaml,
)
from cluster.core.errors import StorageError
from cluster.core.storage import Store

_BOMB = "a0: &a0 x\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10))
"""10^9 values in 600 characters."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    path: str
    size: int


@dataclass(frozen=True, kw_only=True)
class Listing:
    name: str
    entries: tuple[Entry, ...] = ()


def test_a_document_becomes_its_dataclass() -> None:
    text = '{"name": "a", "entries": [{"path": "x", "size": 3}]}'
    assert parse_json(text, Listing) == Listing(name="a", entries=(Entry(path="x", size=3),))
    assert parse_json(b'{"a": NaN}', dict[str, float])["a"] != 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * 100_000, "recursion limit"),
        ('{"name": 5}', "name: Input should be a valid string"),
        ('{"name": "a", "entries": [{"path": "x", "size": "3"}]}', "entries.0.size: Input should be a valid integer"),
        ('{"name": "a", "entries": {}}', "entries: Input should be a valid"),
        ("{}", "name: Field required"),
        ("", "Invalid JSON"),
        (b"\xff\xfe", "Invalid JSON"),
        ('"' + "a" * 2000 + '"', "more than 1,000 bytes"),
    ],
)
def test_what_is_not_of_the_shape_is_one_line(text: str, says: str) -> None:
    with pytest.raises(DocumentError) as caught:
        parse_json(text, Listing, most_bytes=200_000 if text[:1] == "[" else 1000)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_stored_document_is_measured_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "large.json").open("w") as file:
        file.truncate(1 << 40)
    with pytest.raises(DocumentError, match="more than"):
        load_json(Store.open(str(tmp_path)), "large.json")
    with pytest.raises(DocumentError, match="more than"):
        read_json(tmp_path / "large.json")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (_BOMB, "aliases"),
        ("a: &a [*a]", "aliases"),
        ("[" * 50_000, "nested too deeply"),
        ("a: [1", "expected"),
        ("a: 2026-02-31", "day"),
        ("---\na: 1\n---\nb: 2\n", "2 documents"),
        ("!!python/object/apply:os.system [id]", "could not determine a constructor"),
    ],
)
def test_yaml_that_is_a_bomb_or_none_is_one_line(text: str, says: str) -> None:
    with pytest.raises(DocumentError, match=says) as caught:
        parse_yaml(text)
    assert "\n" not in str(caught.value)


def test_yaml_keeps_aliases_documents_and_its_loader() -> None:
    assert parse_yaml("base: &b {x: 1}\nother: *b") == {"base": {"x": 1}, "other": {"x": 1}}
    assert list(parse_yaml_documents("a: 1\n---\nb: 2")) == [{"a": 1}, {"b": 2}]
    assert parse_yaml("a: 1:4", yaml.BaseLoader) == {"a": "1:4"}
    assert parse_yaml("") is None


def test_a_pipe_is_read_and_a_device_is_not(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("a: 1",))
    writer.start()
    assert read_yaml(pipe) == {"a": 1}
    writer.join()
    with pytest.raises(DocumentError, match="device"):
        read_yaml(Path("/dev/zero"))


def test_a_store_opens_files_only(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "manifest.json")
    with pytest.raises(StorageError, match="is not a file"):
        load_json(Store.open(str(tmp_path)), "manifest.json")
