"""Texts that are nearly the same: found in all of a set, as comparing all would, and left out but for the first."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.core.errors import ConfigError, DataError, StoppedError
from cluster.core.storage import Store
from jobs.common.config import from_dict
from jobs.common.data.dataset import SPLITS, Dataset
from jobs.common.data.found import near_texts, repeats
from jobs.common.data.found.account import account_of, lines_of
from jobs.common.data.found.near_texts import shingles_of
from jobs.common.data.found.shingles import FUNCTIONS, Shingles, candidates, common, functions_in_band
from jobs.common.data.reader import Reader
from jobs.common.report.data_report import render
from jobs.transformer.config import TransformerConfig
from jobs.transformer.text import prepare as preparing
from jobs.transformer.text.prepare import prepare
from jobs.transformer.text.writing import Task

WORDS = [f"word{i}" for i in range(400)]
PLANTED = {5: (70, 1), 12: (85, 0), 13: (71, 2)}
"""Rows that are made of others: how many words of forty are other ones."""


def config_of(task: str = "classify", **data: Any) -> TransformerConfig:
    small = {"max_length": 64, "tokenizer": "characters", "vocab_size": 300}
    return from_dict(TransformerConfig, {"task": task, "data": small | data})


def prepared(folder: Path, config: TransformerConfig) -> Dataset:
    return prepare(config, Store.open(str(folder)), use_ray=False)


def texts(rng: np.random.Generator, count: int = 90) -> list[str]:
    """Of forty words each, and three that are nearly another one's: the last words differ, or case and commas."""
    rows = [rng.choice(WORDS, 40).tolist() for _ in range(count)]
    for source, (copy, others) in PLANTED.items():
        rows[copy] = [*rows[source][: 40 - others], *(f"other{k}" for k in range(others))]
    made = [" ".join(row) for row in rows]
    made[85] = made[85].replace(" ", ", ").upper()
    return made


@pytest.fixture
def uri(tmp_path: Path) -> str:
    rows = texts(np.random.default_rng(0))
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text, "label": "ab"[i % 2]}) + "\n" for i, text in enumerate(rows)))
    return str(path)


def split_of(dataset: Dataset, config: TransformerConfig) -> dict[int, str]:
    found: dict[int, str] = {}
    for split in SPLITS:
        reader = Reader.open(dataset, split, config.data)
        found |= dict.fromkeys(reader.rows(0, reader.num_rows)["row_id"].tolist(), split)
        reader.close()
    return found


# ── what rows have in common ──
def brute(rows: list[list[int]], size: int) -> list[set[tuple[int, ...]]]:
    return [{tuple(row[i : i + size]) for i in range(max(1, len(row) - size + 1))} if row else set() for row in rows]


@given(st.lists(st.lists(st.integers(0, 3), max_size=12), max_size=12), st.integers(1, 5))
@settings(max_examples=150, deadline=None)
def test_runs_are_those_of_each_row_alone(rows: list[list[int]], size: int) -> None:
    tokens = np.array([token for row in rows for token in row], np.int64)
    runs = Shingles.of(tokens, np.array([len(row) for row in rows], np.int64), size)
    sets = brute(rows, size)
    assert np.diff(runs.ends).tolist() == [len(each) for each in sets]
    for one, other in itertools.combinations(range(len(rows)), 2):
        both, either = len(sets[one] & sets[other]), len(sets[one] | sets[other])
        assert common(runs.least(one), runs.least(other)) == pytest.approx(both / max(1, either))
    keys, owners = runs.keys(0.8)
    assert sorted(set(owners.tolist())) == [i for i, each in enumerate(sets) if each]
    order = np.random.default_rng(0).permutation(len(keys))
    assert candidates(keys, owners).tolist() == candidates(keys[order], owners[order]).tolist()


@pytest.mark.parametrize("share", [0.5, 0.8, 0.95, 1.0])
def test_nearly_all_pairs_that_have_the_share_in_common_are_found(share: float) -> None:
    in_band = functions_in_band(share)
    assert 1 - (1 - share**in_band) ** (FUNCTIONS // in_band) >= 0.99
    rng, rows = np.random.default_rng(1), list[np.ndarray]()
    same = round(100 * 2 * share / (1 + share))  # of 100 runs of each, so that this many of all are in both
    for _ in range(200):
        row = rng.integers(0, 1 << 40, 200)
        rows += [row[:100], np.concatenate([row[:same], row[100 : 200 - same]])]
    runs = Shingles.of(np.concatenate(rows), np.full(len(rows), 100), 1)
    pairs = candidates(*runs.keys(share))
    assert len(pairs) >= 196 and all(first % 2 == 0 and second == first + 1 for first, second in pairs.tolist())


def test_rows_with_one_key_are_paired_with_the_first_and_the_one_before() -> None:
    keys, rows = np.array([7, 7, 5, 7, 7], np.uint64), np.array([3, 0, 1, 2, 9])
    assert candidates(keys, rows).tolist() == [[0, 2], [0, 3], [0, 9], [2, 3], [3, 9]]


def test_long_rows_are_compared_by_a_part_of_their_runs() -> None:
    rng = np.random.default_rng(2)
    one = rng.integers(0, 1 << 40, 5000)
    other = np.concatenate([one[:4000], rng.integers(0, 1 << 40, 1000)])
    runs = Shingles.of(np.concatenate([one, other]), np.array([5000, 5000]), 1)
    assert common(runs.least(0), runs.least(1)) == pytest.approx(4000 / 6000, abs=0.08)
    assert common(runs.least(0), runs.least(0)) == 1


@pytest.mark.parametrize(("one", "other", "share"), [
    ("The cat sat, on a mat!", "the CAT sat on a mat", 1), ("a b c d e f", "a b c d e g", 1 / 3),
    ("东京是日本的首都", "东京是日本的首都。", 1), ("東京は日本", "東京は中国", 0), ("!!", "??", 0)])
def test_words_are_letters_whatever_their_case_and_characters_where_there_are_no_spaces(one: str, other: str,
                                                                                        share: float) -> None:
    runs = shingles_of([one, other])
    assert common(runs.least(0), runs.least(1)) == pytest.approx(share)


# ── in a set ──
@pytest.mark.parametrize("piece_mb", [64, 0.002])
@pytest.mark.parametrize("at_once", [1 << 22, 100])
def test_rows_nearly_the_same_are_dropped_but_for_the_first(tmp_path: Path, uri: str, piece_mb: float, at_once: int,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "_ROWS_AT_ONCE", at_once)
    monkeypatch.setattr(near_texts, "_PAIRS_AT_ONCE", 2)
    config = config_of(uri=uri, near_duplicates="drop", piece_mb=piece_mb)
    dataset = prepared(tmp_path / "storage", config)
    assert (len(dataset.splits["train"].pieces) > 5) == (piece_mb < 1)
    before = split_of(prepared(tmp_path / "storage", config_of(uri=uri, piece_mb=piece_mb)), config)
    assert split_of(dataset, config) == {row: split for row, split in before.items() if row not in (70, 71, 85)}
    assert ("left out: 3 rows with nearly the content of others (--data.near-duplicates) (row 70 as row 5, row 71 as "
            "row 13, row 85 as row 12)") in lines_of(dataset)
    assert not any("--data.duplicates" in line for line in lines_of(dataset))
    assert {path.name for path in Path(dataset.store.local_path(dataset.blocks)).iterdir()} == {
        *SPLITS, "hashes", "tokenizer", "sample.parquet"}, "nothing that only finding needed"
    more = prepared(tmp_path / "storage", config_of(uri=uri, near_duplicates="drop", near_duplicates_from=0.95,
                                                    piece_mb=piece_mb))
    assert set(before) - set(split_of(more, config)) == {85}, "36 runs of five words, of which one or two differ"


def test_what_is_nearly_the_same_is_counted_as_what_is_the_same_is(tmp_path: Path) -> None:
    rows = texts(np.random.default_rng(0))
    folder = tmp_path / "in"
    folder.mkdir()
    for name, of in (("train", range(70)), ("val", range(70, 80)), ("test", range(80, 90))):
        (folder / f"{name}.jsonl").write_text("".join(
            json.dumps({"text": rows[i], "label": "ab"[i % 2]}) + "\n"
            for i in [*of, *([6, 6] if name == "train" else [])]))
    dataset = prepared(tmp_path / "storage", config_of(uri=str(folder), near_duplicates="report"))
    said, found = lines_of(dataset), account_of(dataset).near
    assert found and found.duplicates == {"train": 2, "validation": 0, "test": 0}
    assert found.leaks == {"validation": 2, "test": 1} and found.contradictions == 4
    assert found.examples["leaks"] == [(5, 72), (12, 87), (13, 73)]
    assert "rows with nearly the content of an earlier one of their split: 2 of train" in said
    assert ("LEAK: rows with nearly the content of one in another split: 1 of test, 2 of validation: scores on them "
            "are too good") in said
    assert "4 rows have nearly the content of another row that has another label" in said
    assert "rows with the content of an earlier one of their split: 2 of train" in said
    html = render("run", dataset, (), "in")
    assert "LEAK: nearly the content of a row of another split" in html and "12 and 87" in html
    assert sum(split.num_rows for split in dataset.splits.values()) == 92, "nothing is left out"
    both = prepared(tmp_path / "storage", config_of(uri=str(folder), near_duplicates="report", duplicates="drop"))
    left = account_of(both).near
    assert left and not any(left.duplicates.values()) and left.leaks == {"validation": 2, "test": 1}


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2), st.integers(0, 2)), max_size=30))
def test_repeats_are_counted_whatever_the_numbers_of_groups(rows: list[tuple[int, int, int]]) -> None:
    """rows: group, split and label; a row's id is its place."""
    table = np.array(rows, np.int64).reshape(-1, 3)
    order = np.lexsort((np.arange(len(rows)), table[:, 1], table[:, 0]))
    found = repeats.count_repeats(table[order, 0] * 7 + 3, table[order, 1], table[order, 2], order)
    groups = [[rows[i] for i in order if rows[i][0] == group] for group in range(10)]
    for code, split in enumerate(SPLITS):
        counts = [sum(row[1] == code for row in group) for group in groups]
        assert found.duplicates[split] == sum(max(0, count - 1) for count in counts)
        if code:
            assert found.leaks[split] == sum(count for count, group in zip(counts, groups, strict=True)
                                             if any(row[1] < code for row in group))
    assert found.contradictions == sum(len(group) for group in groups if len({row[2] for row in group}) > 1)
    assert all(rows[one][0] == rows[other][0] for pairs in found.examples.values() for one, other in pairs)


def test_of_the_same_content_one_row_stays_whatever_else_is_dropped(tmp_path: Path) -> None:
    rows = texts(np.random.default_rng(0))
    folder = tmp_path / "in"
    folder.mkdir()
    for name, more in (("train", [rows[0]] * 2), ("val", []), ("test", [rows[0]])):
        own = rows[:40] if name == "train" else [f"{name} {text[::-1]}" for text in rows[:40]]
        (folder / f"{name}.jsonl").write_text("".join(
            json.dumps({"text": text, "label": "ab"[i % 2]}) + "\n" for i, text in enumerate([*own, *more])))
    config = config_of(uri=str(folder), near_duplicates="drop", duplicates="drop", leaks="drop")
    dataset = prepared(tmp_path / "storage", config)
    kept = split_of(dataset, config)
    assert [row for row in (0, 40, 41, 122) if row in kept] == [122], "the one that is in test, as leaks say"
    assert any(line.startswith("left out: 3 rows with the content of others") for line in lines_of(dataset))


def test_documents_that_are_nearly_the_same_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number, text in enumerate(texts(np.random.default_rng(0))):
        (tmp_path / "in" / f"{number:02}.txt").write_text(text)
    configs = [config_of("generate", uri=str(tmp_path / "in"), near_duplicates=what) for what in ("ignore", "drop")]
    every, fewer = (prepared(tmp_path / "storage", config) for config in configs)
    assert sum(every.details["tokens"].values()) - sum(fewer.details["tokens"].values()) == sum(
        len(texts(np.random.default_rng(0))[row]) + 1 for row in (70, 71, 85))


def test_a_search_for_them_that_was_stopped_goes_on_where_it_was(tmp_path: Path, uri: str,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(uri=uri, near_duplicates="drop", piece_mb=0.002)
    undisturbed = prepared(tmp_path / "undisturbed", config)

    def stop(*_: Any, **__: Any) -> Any:
        raise StoppedError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(preparing, "find_near", stop)
        with pytest.raises(StoppedError):
            prepared(tmp_path / "storage", config)
    fill, made = Task._fill, []
    monkeypatch.setattr(Task, "_fill", lambda *a: made.append(a[1].number) or fill(*a))
    dataset = prepared(tmp_path / "storage", config)
    assert made == list(range(len(dataset.splits["train"].pieces))), "once, without the rows that are dropped"
    assert dataset.fingerprint == undisturbed.fingerprint


def test_a_split_that_would_have_no_rows_is_refused_and_so_is_a_share_of_nothing(tmp_path: Path) -> None:
    rows = texts(np.random.default_rng(0))[:40]
    for name in ("train", "val", "test"):
        extra = "" if name == "train" else " end"
        few = rows if name == "train" else rows[:2]
        (tmp_path / f"{name}.jsonl").write_text("".join(
            json.dumps({"text": text + extra, "label": "ab"[i % 2]}) + "\n" for i, text in enumerate(few)))
    with pytest.raises(DataError, match=r"drop leaves no validation rows of .*: all 2 are nearly the same"):
        prepared(tmp_path / "storage", config_of(uri=str(tmp_path), near_duplicates="drop"))
    with pytest.raises(ConfigError, match=r"needs --data\.near-duplicates report or drop"):
        config_of(near_duplicates_from=0.9)
    with pytest.raises(ConfigError, match=r"from 0\.5 to 1"):
        config_of(near_duplicates="drop", near_duplicates_from=0.2)
