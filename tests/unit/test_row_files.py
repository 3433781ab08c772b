"""Files of rows as people have them: packed, in other letters, other delimiters, JSON as a list: text and tables."""

import bz2
import csv
import gzip
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cluster.core.errors import ConfigError, DataError
from cluster.core.storage import Store
from jobs.common.config import from_dict
from jobs.common.config_changes import differences
from jobs.common.data import files
from jobs.common.data.dataset import Dataset
from jobs.common.tables.prepare import prepare as prepare_table
from jobs.tabular.config import TabularConfig
from jobs.transformer.config import TransformerConfig
from jobs.transformer.text.prepare import prepare as prepare_text

ROWS = [(f"größe {i}; {chr(34)}quoted{chr(34)}, {i % 7}", i / 3, "ab"[i % 2]) for i in range(48)]
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes, ".gz": gzip.compress, ".bz2": bz2.compress,
    ".zst": lambda data: pa.Codec("zstd").compress(data).to_pybytes()}


def text(tmp_path: Path, uri: Path, **data: Any) -> Dataset:
    config = from_dict(TransformerConfig, {"task": "classify", "data": {
        "uri": str(uri), "max_length": 16, "tokenizer": "characters", **data}})
    return prepare_text(config, Store.open(str(tmp_path / "storage")), use_ray=False)


def table(tmp_path: Path, uri: Path, **data: Any) -> Dataset:
    config = from_dict(TabularConfig, {"data": {"uri": str(uri), "label_column": "label", "ignore": "text", **data}})
    return prepare_table(config.data, Store.open(str(tmp_path / "storage")), say=lambda _: None)


def as_csv(delimiter: str = ",", rows: list[tuple[Any, ...]] = ROWS, **options: Any) -> str:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, **options).writerows([("text", "x", "label"), *rows])
    return out.getvalue()


BOTH = pytest.mark.parametrize("prepare", [text, table])


@BOTH
@pytest.mark.parametrize(("ending", "delimiter", "encoding"), [
    (".gz", ",", "utf-8"), (".bz2", ",", "utf-8"), (".zst", ",", "utf-8"), ("", ";", "utf-8"), ("", "tab", "utf-8"),
    ("", ",", "latin-1"), ("", ",", "utf-16"), (".gz", "|", "cp1252")])
def test_the_same_rows_however_they_are_written(tmp_path: Path, prepare: Any, ending: str, delimiter: str,
                                                encoding: str) -> None:
    plain, other = tmp_path / "plain.csv", tmp_path / f"other.csv{ending}"
    plain.write_text(as_csv(), encoding="utf-8", newline="")
    content = as_csv("\t" if delimiter == "tab" else delimiter).encode(encoding)
    other.write_bytes(PACKERS[ending](content))
    found = prepare(tmp_path, other, delimiter=delimiter, encoding=encoding)
    assert found.fingerprint == prepare(tmp_path, plain).fingerprint


@pytest.mark.parametrize("ending", PACKERS)
def test_json_lines_and_a_list_of_objects_are_the_same_rows(tmp_path: Path, ending: str) -> None:
    rows = [{"text": text, "label": label} for text, _, label in ROWS]
    lines, whole = tmp_path / "rows.jsonl", tmp_path / f"rows.json{ending}"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole.write_bytes(PACKERS[ending](json.dumps(rows, indent=1).encode()))
    assert text(tmp_path, whole).fingerprint == text(tmp_path, lines).fingerprint


def test_what_is_wrong_in_a_list_is_named_by_its_place(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"text": "a", "label": "b"}, 5]))
    with pytest.raises(DataError, match=r"a\.json, item 1 of its list is no JSON object \(5\)"):
        text(tmp_path, tmp_path / "a.json")
    (tmp_path / "b.json").write_text('[{"text": "a"}')
    with pytest.raises(DataError, match=r"b\.json begins as a JSON list, and is none"):
        text(tmp_path, tmp_path / "b.json")


@BOTH
def test_a_wrong_delimiter_or_encoding_is_named_with_what_to_pass(tmp_path: Path, prepare: Any) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(as_csv(";"), newline="")
    with pytest.raises(DataError, match=r"has one column only, 'text;x;label.*: pass --data.delimiter ';'"):
        prepare(tmp_path, path)
    path.write_bytes(as_csv("\t").encode())
    with pytest.raises(DataError, match=r"--data.delimiter 'tab'"):
        prepare(tmp_path, path)
    path.write_bytes("täxt,x,label\na,1,b\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"is not UTF-8.*pass --data.encoding latin-1"):
        prepare(tmp_path, path)
    path.write_bytes(as_csv().encode("utf-16"))
    with pytest.raises(DataError, match=r"begins as UTF-16 does: pass --data.encoding utf-16"):
        prepare(tmp_path, path)


@BOTH
def test_a_column_that_is_there_twice_is_named(tmp_path: Path, prepare: Any) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,x,text,label\na,1,b,c\n")
    with pytest.raises(DataError, match="has the column 'text' twice"):
        prepare(tmp_path, path)
    path.write_text("text,x,label\n")
    with pytest.raises(DataError, match="holds no"):
        prepare(tmp_path, path)


@BOTH
def test_quotes_are_characters_where_that_is_asked_for(tmp_path: Path, prepare: Any) -> None:
    rows = [(f'5" pipe number {i}', x, label) for i, (_, x, label) in enumerate(ROWS)]
    path = tmp_path / "rows.tsv"
    path.write_text("text\tx\tlabel\n" + "".join(f"{a}\t{b}\t{c}\n" for a, b, c in rows))
    found = prepare(tmp_path, path, quoting="none")
    assert sum(split.num_rows for split in found.splits.values()) == len(rows)


def test_a_stray_quote_never_swallows_rows(tmp_path: Path) -> None:
    lines = [f"row {i}\t{label}" for i, (_, _, label) in enumerate(ROWS)]
    lines[0], lines[9] = f'"{lines[0]}', lines[9].replace("\t", '"\t')
    (tmp_path / "rows.tsv").write_text("text\tlabel\n" + "\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"rows\.tsv, line 2: a quote begins .*--data.quoting none"):
        text(tmp_path, tmp_path / "rows.tsv")
    assert text(tmp_path, tmp_path / "rows.tsv", quoting="none").splits["train"].num_rows


@BOTH
@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"no gzip" + data])
def test_a_damaged_pack_is_named(tmp_path: Path, prepare: Any, damage: Callable[[bytes], bytes]) -> None:
    (tmp_path / "rows.csv.gz").write_bytes(damage(gzip.compress(as_csv().encode())))
    with pytest.raises(DataError, match=r"rows\.csv\.gz cannot be read"):
        prepare(tmp_path, tmp_path / "rows.csv.gz")


def test_a_small_file_that_unpacks_to_very_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_UNPACKED", 1 << 20)
    (tmp_path / "rows.csv.gz").write_bytes(gzip.compress(b"text,label\n" + b"a,b\n" * 1_000_000))
    with pytest.raises(DataError, match="unpacks to more than"):
        text(tmp_path, tmp_path / "rows.csv.gz")


@pytest.mark.parametrize(("option", "value"), [("delimiter", ",,"), ("delimiter", '"'), ("encoding", "klingon"),
                                               ("encoding", "rot13")])
def test_options_that_mean_nothing_are_refused(option: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"--data.{option}"):
        from_dict(TransformerConfig, {"data": {option: value}})


# ── which data it is ──
@BOTH
def test_other_content_of_the_same_size_and_time_is_other_data(tmp_path: Path, prepare: Any) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(as_csv(), newline="")
    before = path.stat()
    first = prepare(tmp_path, path)
    path.write_text(as_csv().replace("47", "48"), newline="")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert prepare(tmp_path, path).store.uri != first.store.uri


@BOTH
def test_a_place_that_is_spelt_otherwise_is_the_same_data(tmp_path: Path, prepare: Any, monkeypatch: Any) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/rows.csv").write_text(as_csv(), newline="")
    monkeypatch.chdir(tmp_path)
    spellings = [f"{tmp_path}/in", f"{tmp_path}/in/../in/", f"file://{tmp_path}/in", "in", "./in"]
    assert len({prepare(tmp_path, spelling).store.uri for spelling in spellings}) == 1
    assert differences({"data": {"uri": spellings[0]}}, {"data": {"uri": spellings[1]}}) == []
    assert differences({"data": {"uri": spellings[0]}}, {"data": {"uri": spellings[2]}}) == []
    assert differences({"data": {"uri": "digits"}}, {"data": {"uri": f"{tmp_path}/digits"}}) != []


@BOTH
def test_classes_are_called_as_they_are_named(tmp_path: Path, prepare: Any) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(as_csv(), newline="")
    assert prepare(tmp_path, path, label_names="a=negative, b=positive").class_names == ("negative", "positive")
    assert prepare(tmp_path, path).class_names == ("a", "b")
    for wrong, why in (("c=x", "there is no class 'c': there are a, b"), ("a=b", "two classes would have one name"),
                       ("a=", "'a' is given no name")):
        with pytest.raises(ConfigError, match=f"--data.label-names {wrong}: {why}"):
            prepare(tmp_path, path, label_names=wrong)
