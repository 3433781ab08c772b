"""Text that is prepared in pieces is what it is in one: rows, classes, splits, order; and what is done is kept."""

import csv
import itertools
import json
import multiprocessing
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.core.errors import DataError, StoppedError
from cluster.core.storage import Store
from jobs.common.config import from_dict
from jobs.common.data import pieces
from jobs.common.data.block_layout import BlockLayout
from jobs.common.data.dataset import SPLITS, Dataset
from jobs.common.data.found import repeats
from jobs.common.data.found.account import lines_of
from jobs.common.data.reader import Reader
from jobs.common.data.splits import PERCENT, RankSplit, count_labels
from jobs.common.tables.prepare import prepare as prepare_table
from jobs.common.vision.config import ImageDataConfig
from jobs.common.vision.prepare import prepare as prepare_images
from jobs.tabular.config import TabularConfig
from jobs.transformer.config import TransformerConfig
from jobs.transformer.text import prepare as preparing
from jobs.transformer.text import sources
from jobs.transformer.text.dataset_files import load_tokenizer, sample
from jobs.transformer.text.sources import find_source
from jobs.transformer.text.survey import read_piece, survey
from jobs.transformer.text.text_file import TextFile
from jobs.transformer.text.writing import Task
from tests.unit.piece_counts import pieces_made

CLASSES = ("cat", "dog", "bird")
ROWS = [(f'the {CLASSES[i % 3]} says "{i}",\nand, on the next line, it says more', CLASSES[i % 3]) for i in range(90)]


def config_of(task: str = "classify", **data: Any) -> TransformerConfig:
    """Files are cut into parts of 900 bytes, and each is a piece."""
    small = {"piece_mb": 0.0009, "max_length": 16, "vocab_size": 200,
             "tokenizer": "bytes" if task == "generate" else "wordpiece"}
    return from_dict(TransformerConfig, {"task": task, "data": small | data})


def written(folder: Path, kind: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"rows.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in ROWS))
    elif kind == "parquet":
        pq.write_table(pa.table({"text": [t for t, _ in ROWS], "label": [w for _, w in ROWS]}), path, row_group_size=7)
    else:
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *ROWS])
    return str(path)


def prepared(folder: Path, config: TransformerConfig, say: Callable[[str], None] | None = None) -> Dataset:
    return preparing.prepare(config, Store.open(str(folder)), use_ray=False, say=say)


def rows_of(dataset: Dataset, config: TransformerConfig) -> dict[str, dict[str, np.ndarray]]:
    found = {}
    for split in SPLITS:
        reader = Reader.open(dataset, split, config.data)
        found[split] = {name: column.copy() for name, column in reader.rows(0, reader.num_rows).items()}
        reader.close()
    return found


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_table_in_pieces_has_every_row_once_and_each_class_its_share(tmp_path: Path, kind: str) -> None:
    config = config_of(uri=written(tmp_path, kind), tokenizer="characters", max_length=96)
    dataset = prepared(tmp_path / "storage", config)
    assert len(dataset.splits["train"].pieces) > 5
    rows = rows_of(dataset, config)
    assert sorted(np.concatenate([of["row_id"] for of in rows.values()])) == list(range(len(ROWS)))
    tokenizer = load_tokenizer(dataset)
    for split, of in rows.items():
        for tokens, label, row in zip(of["tokens"], of["label"], of["row_id"], strict=True):
            text, word = ROWS[row]
            assert tokenizer.decode(tokens[tokens >= 0], skip_special_tokens=True) == (
                text if split == "train" else tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True))
            assert dataset.class_names[label] == word
    shares = {split: Counter(of["label"].tolist()) for split, of in rows.items()}
    assert shares["test"] == dict.fromkeys(range(3), 6), "20% of 30"
    assert shares["validation"] == dict.fromkeys(range(3), 5), "16% of 30"
    found = sample(dataset)
    assert rows["test"]["row_id"][found.positions].tolist() == found.row_ids.tolist()
    assert [ROWS[i][0] for i in found.row_ids] == found.texts


def test_a_long_text_in_pieces_is_the_same_stream(tmp_path: Path) -> None:
    text = "".join(f"línea {i}, {'x' * (i % 50)}\n" for i in range(300))
    (tmp_path / "long.txt").write_text(text)
    config = config_of("generate", uri=str(tmp_path / "long.txt"))
    dataset = prepared(tmp_path / "storage", config)
    rows, start = rows_of(dataset, config), dataset.details["start_id"]
    streams: dict[str, bytes] = {}
    for split in ("train", "test"):
        places = np.cumsum([0, *dataset.splits[split].pieces])
        tokens = [rows[split]["tokens"][a:b] for a, b in itertools.pairwise(places) if b > a]
        whole = np.concatenate([np.concatenate([part[:1, 0], part[:, 1:].reshape(-1)]) for part in tokens])
        assert len(tokens) > 1
        assert (whole == start).sum() == 1, "one document, begun once"
        tokenizer = load_tokenizer(dataset)
        streams[split] = tokenizer.decode(whole[(whole >= 0) & (whole != start)])
    assert streams["train"] + streams["test"] == text


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_wherever_a_file_is_cut_its_rows_are_the_same(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    cell = st.text(st.sampled_from('ab",\n é'), min_size=1, max_size=12).map(lambda text: f"x{text}")
    table = data.draw(st.lists(cell, min_size=1, max_size=30))
    kind, most = data.draw(st.sampled_from(["csv", "jsonl"])), data.draw(st.integers(1, 80))
    path = tmp_path_factory.mktemp("cut") / f"rows.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in table))
    else:
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([("text",), *((text,) for text in table)])
    config = config_of("generate", uri=str(path), piece_mb=most / 1e6).data
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "_SCAN_BYTES", data.draw(st.integers(1, 40)))
        parts = find_source(config, "generate").fragments
    assert [text for part in parts for text in part.read().texts] == table


def test_a_mistake_in_a_later_part_is_named_by_its_line(tmp_path: Path) -> None:
    lines = [json.dumps({"text": text, "label": label}) for text, label in ROWS]
    (tmp_path / "bad.jsonl").write_text("\n".join([*lines, "{", *lines]))
    with pytest.raises(DataError, match=r"bad\.jsonl, line 91 is no JSON object"):
        prepared(tmp_path / "storage", config_of(uri=str(tmp_path / "bad.jsonl")))
    (tmp_path / "latin.jsonl").write_bytes("\n".join(lines).encode() + b"\n\xef\n")
    place = len("\n".join(lines)) + 1
    with pytest.raises(DataError, match=rf"latin\.jsonl: byte {place} \(line 91\) is not UTF-8"):
        prepared(tmp_path / "storage", config_of(uri=str(tmp_path / "latin.jsonl")))


# ── splits ──
@given(st.lists(st.integers(3, 400), min_size=2, max_size=5), st.integers(0, 9), st.integers(1, 200))
@settings(max_examples=50, deadline=None)
def test_splits_by_rank_are_exact_however_the_rows_are_cut(counts: list[int], seed: int, size: int) -> None:
    codes = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts), dtype=np.int32), counts))
    rule = RankSplit(seed, (2, 1), tuple(counts), tuple("abcde"[: len(counts)]))
    whole = rule.of(codes, [0] * len(counts))
    for code, count in enumerate(counts):
        for split, percent in PERCENT.items():
            assert (whole[codes == code] == split).sum() == max(1, (count * percent + 50) // 100)
    parts = [rule.of(codes[start:start + size], np.bincount(codes[:start], minlength=len(counts)).tolist())
             for start in range(0, len(codes), size)]
    assert np.concatenate(parts).tolist() == whole.tolist()
    most = int((whole == 0).sum()) // 2
    fewer = replace(rule, most=most).of(codes, [0] * len(counts))
    assert (fewer == 0).sum() == most
    assert (fewer[whole > 0] == whole[whole > 0]).all(), "what is tested does not change"


@given(st.lists(st.integers(0, 30), max_size=8), st.integers(1, 9))
def test_a_position_is_found_in_its_piece(rows: list[int], block_rows: int) -> None:
    layout = BlockLayout(sum(rows), block_rows, rows)
    wanted = [(f"{piece:06d}/{place // block_rows:08d}.parquet", place % block_rows)
              for piece, count in enumerate(rows) for place in range(count)]
    blocks, places = layout.locate(np.arange(sum(rows)))
    assert [(layout.path(int(block)), int(place)) for block, place in zip(blocks, places, strict=True)] == wanted
    per_block = Counter(path for path, _ in wanted)
    bounds = {layout.path(block): layout.bounds(block) for block in range(len(per_block))}
    assert {path: end - first for path, (first, end) in bounds.items()} == per_block
    assert list(bounds.values()) == list(itertools.pairwise([0, *(end for _, end in bounds.values())]))


# ── resuming ──
def test_a_preparation_that_was_stopped_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(uri=written(tmp_path, "jsonl"))
    undisturbed = prepared(tmp_path / "undisturbed", config)
    with monkeypatch.context() as patch:
        before = pieces_made(patch, Task, 4)
        with pytest.raises(StoppedError):
            prepared(tmp_path / "storage", config)
    assert before == [0, 1, 2, 3]
    after = pieces_made(monkeypatch, Task)
    said: list[str] = []
    dataset = prepared(tmp_path / "storage", config, said.append)
    assert "going on with 4 pieces that a preparation has left that was stopped" in said
    assert before + after == list(range(len(undisturbed.splits["train"].pieces))), "none is made twice"
    assert dataset.fingerprint == undisturbed.fingerprint
    for split, rows in rows_of(undisturbed, config).items():
        assert all((rows_of(dataset, config)[split][name] == column).all() for name, column in rows.items())
    assert not dataset.store.folders(f"{dataset.blocks}/done"), "and nothing is left that only preparing needed"


def _prepare_slowly(folder: str, uri: str) -> None:
    fill = Task._fill
    Task._fill = lambda *a: time.sleep(0.2) or fill(*a)  # type: ignore[method-assign]
    prepared(Path(folder), config_of(uri=uri))


def test_a_preparation_that_is_killed_is_taken_over(tmp_path: Path) -> None:
    uri, storage = written(tmp_path, "jsonl"), tmp_path / "storage"
    process = multiprocessing.get_context("spawn").Process(target=_prepare_slowly, args=(str(storage), uri))
    process.start()
    try:
        deadline = time.monotonic() + 60
        while len(list(storage.glob("data/*/blocks-*/done/*.json"))) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.kill()
        process.join()
    said: list[str] = []
    dataset = prepared(storage, config_of(uri=uri), said.append)
    assert any(re.fullmatch(r"going on with [2-9] pieces .*", line) for line in said)
    assert dataset.fingerprint == prepared(tmp_path / "undisturbed", config_of(uri=uri)).fingerprint


def test_a_piece_of_which_something_has_gone_meanwhile_is_made_again(tmp_path: Path,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(uri=written(tmp_path, "jsonl"))
    undisturbed = prepared(tmp_path / "undisturbed", config)
    fill, made = Task._fill, []
    monkeypatch.setattr(Task, "_fill", lambda *a: fill(*a) if a[1].number < 4 else stop())
    with pytest.raises(StoppedError):
        prepared(tmp_path / "storage", config)
    (folder,) = (tmp_path / "storage").glob("data/*/blocks-*")
    (folder / "hashes/000001.parquet").unlink()
    next(path for split in SPLITS for path in sorted((folder / split / "000002").glob("*.parquet"))).unlink()
    monkeypatch.setattr(Task, "_fill", lambda *a: made.append(a[1].number) or fill(*a))
    dataset = prepared(tmp_path / "storage", config)
    assert made[:3] == [1, 2, 4]
    assert dataset.fingerprint == undisturbed.fingerprint
    for split, rows in rows_of(undisturbed, config).items():
        assert all((rows_of(dataset, config)[split][name] == column).all() for name, column in rows.items())


def stop() -> None:
    raise StoppedError("stopped")


def test_pieces_of_other_options_are_not_taken_over(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    for blocks, plan in (("blocks-a", [1, 2]), ("blocks-b", [1, 3]), ("blocks-c", [1, 2])):
        found = pieces.unfinished(store, blocks, plan)
    assert found == ("blocks-a",)


# ── the same content again ──
@pytest.mark.parametrize("at_once", [1 << 22, 7])
def test_repeats_leaks_and_contradictions_are_counted_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                               at_once: int) -> None:
    monkeypatch.setattr(repeats, "_ROWS_AT_ONCE", at_once)
    for split, more in (("train", [ROWS[0], (ROWS[1][0], "cat"), ("new", "cat"), ("new", "cat"), ("new", "cat")]),
                        ("val", [("only here", "dog")] * 2), ("test", [("only here", "dog"), ROWS[2]])):
        own = ROWS if split == "train" else [(f"{text} {split}", label) for text, label in ROWS]
        (tmp_path / f"{split}.jsonl").write_text("".join(
            json.dumps({"text": text, "label": label}) + "\n" for text, label in [*own, *more]))
    dataset = prepared(tmp_path / "storage", config_of(uri=str(tmp_path)))
    found, said = dataset.details["_found"]["repeats"], lines_of(dataset)
    assert found["duplicates"] == {"train": 4, "validation": 1, "test": 0}
    assert found["leaks"] == {"validation": 0, "test": 2}
    assert found["contradictions"] == 2
    assert len(found["examples"]["duplicates"]) == 5
    assert any("rows with the content of an earlier one of their split: 4 of train, 1 of validation" in line
               for line in said)
    assert any(line.startswith("LEAK: rows whose content is in another split, too: 2 of test") for line in said)
    assert any("2 rows have the content of another row that has another label" in line for line in said)


@pytest.mark.parametrize("kind", ["text", "image", "table"])
def test_repeats_are_dropped_where_that_is_asked_for_and_leaks_refused(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(0)
    values = {split: rng.integers(0, 256, 60).tolist() for split in ("train", "val", "test")}
    values["train"] = [*range(60), 1, 1]
    values["val"], values["test"] = [*range(100, 140), 2], [*range(200, 240), 2, 3]
    for split, numbers in values.items():
        rows = {"text": [f"row {n}" for n in numbers], "image": [[n, 0, 0, 9] for n in numbers],
                "x": [float(n) for n in numbers], "label": ["ab"[n % 2] for n in numbers]}
        pq.write_table(pa.table(rows), tmp_path / f"{split}.parquet")

    def sizes(**data: Any) -> dict[str, int]:
        storage = Store.open(str(tmp_path / "storage"))
        given = {"uri": f"{tmp_path}/*.parquet", "label_column": "label", **data}
        if kind == "text":
            dataset = preparing.prepare(config_of(**given), storage, use_ray=False)
        elif kind == "image":
            dataset = prepare_images(ImageDataConfig(**given), storage, use_ray=False)
        else:
            config = from_dict(TabularConfig, {"data": {**given, "ignore": "text,image"}}).data
            dataset = prepare_table(config, storage, say=lambda _: None)
        lost = 145 - sum(split.num_rows for split in dataset.splits.values())
        said = any(line.startswith(f"left out: {lost:,} rows with the content") for line in lines_of(dataset))
        assert said == bool(lost)
        return {split: of.num_rows for split, of in dataset.splits.items()}

    assert sizes() == {"train": 62, "validation": 41, "test": 42}
    assert sizes(duplicates="drop") == {"train": 60, "validation": 41, "test": 42}
    assert sizes(leaks="drop") == {"train": 60, "validation": 40, "test": 42}
    assert sizes(leaks="drop", duplicates="drop") == {"train": 58, "validation": 40, "test": 42}
    with pytest.raises(DataError, match=r"content in two splits: 1 rows of validation, 2 rows of test \(row ids"):
        sizes(leaks="refuse")


def test_what_a_task_reads_is_what_the_whole_has(tmp_path: Path) -> None:
    uri = written(tmp_path, "csv")
    whole, config = (config_of(uri=uri, max_train_rows=20, piece_mb=size) for size in (64, 0.0005))
    whole = preparing.read_texts(whole)
    found = survey(find_source(config.data, "classify"), config, use_ray=False, say=None)
    assert len(found.pieces) > 5
    parts = [read_piece(found.rule, piece) for piece in found.pieces]
    assert [text for part in parts for text in part.texts] == whole.texts == [text for text, _ in ROWS]
    assert np.concatenate([part.splits for part in parts]).tolist() == whole.splits.tolist()
    assert (whole.splits == 0).sum() == 20


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_part_is_read_without_what_lies_before_it(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(uri=written(tmp_path, kind)).data
    *_, last = find_source(config, "classify").fragments
    assert isinstance(last, TextFile) and last.part
    monkeypatch.setattr(TextFile, "line_offset", lambda _: pytest.fail("its lines are counted"))
    read = last.read()
    count_labels(last, read.labels, "label")
    assert read.texts[-1] == ROWS[-1][0]
