"""Text data: the embedded sets, formats, tokenizers, packing, and every mistake that a user can make with it."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.core.errors import ConfigError, DataError
from cluster.core.storage import Store
from jobs.common.config import from_dict
from jobs.common.data.dataset import SPLITS, Dataset
from jobs.common.data.found.account import lines_of
from jobs.common.data.reader import Reader
from jobs.transformer.config import TransformerConfig
from jobs.transformer.text.dataset_files import load_tokenizer, sample, tokenizer_files
from jobs.transformer.text.embedded import Programs, entity_split, phrases
from jobs.transformer.text.prepare import prepare, waste
from jobs.transformer.text.tokenizer import choose
from jobs.transformer.text.writing import packed

SHARED = Path(__file__).parents[2].parent / "shared/data"
ROWS = [(f"the {word} number {i} is here", word) for i in range(12) for word in ("cat", "dog", "bird")]


def config_of(task: str = "classify", **data: Any) -> TransformerConfig:
    small = {"max_length": 16, "tokenizer": "wordpiece" if task == "classify" else "bpe", "vocab_size": 200}
    return from_dict(TransformerConfig, {"task": task, "data": small | data})


def prepared(tmp_path: Path, config: TransformerConfig, say: Any = None) -> Dataset:
    return prepare(config, Store.open(str(tmp_path / "storage")), use_ray=False, say=say)


def write_csv(path: Path, rows: list[tuple[Any, ...]], header: tuple[str, ...] | None = ("text", "label")) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([*([header] if header else []), *rows])
    return str(path)


def rows_of(dataset: Dataset, config: TransformerConfig, split: Any) -> dict[str, np.ndarray]:
    reader = Reader.open(dataset, split, config.data)
    rows = reader.rows(0, dataset.splits[split].num_rows)
    reader.close()
    return rows


# ── the embedded sets ──
def test_phrases_are_of_one_language_and_entities_of_one_split() -> None:
    found = phrases()
    assert 35_000 < len(found) < 39_000
    assert len({language for _, language, _ in found}) == 33
    assert len({text for text, _, _ in found}) == len(found), "no phrase twice, in one language or in two"
    splits: dict[str, set[str]] = {}
    for _, _, entity in found:
        splits.setdefault(entity, set()).add(entity_split(entity))
    assert all(len(of) == 1 for of in splits.values())
    shares = [sum(entity_split(entity) == split for _, _, entity in found) / len(found) for split in SPLITS]
    assert shares == pytest.approx([0.7, 0.1, 0.2], abs=0.03)


def test_the_library_s_own_source_is_packed_without_waste(tmp_path: Path) -> None:
    config = config_of("generate", uri="stdlib", tokenizer="bytes", max_length=2048)
    said: list[str] = []
    dataset = prepared(tmp_path, config, said.append)
    assert waste(dict(dataset.details), dataset.splits) < 0.02
    assert dataset.details["tokens"]["train"] > 4e6
    assert any("positions are padding" in line for line in said)


def test_what_is_prepared_twice_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "input.txt").write_text("".join(f"{text} {word}\n" for text, word in ROWS * 20))
    config = config_of("generate", uri=str(tmp_path / "input.txt"))
    dataset, again = (prepared(tmp_path / name, config) for name in ("one", "again"))
    assert again.fingerprint == dataset.fingerprint
    assert tokenizer_files(again) == tokenizer_files(dataset)


def test_a_source_that_is_not_utf8_is_left_out_of_the_library(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_bytes("# é".encode("latin-1"))
    (tmp_path / "b.py").write_text("x = 1")
    assert Programs("train", str(tmp_path), ("a.py", "b.py")).read().texts == ["x = 1"]


# ── formats ──
def test_all_formats_give_the_same_rows(tmp_path: Path) -> None:
    uris = [write_csv(tmp_path / "a/rows.csv", ROWS), str(tmp_path / "b/rows.jsonl"), str(tmp_path / "c/rows.parquet")]
    for uri in uris[1:]:
        Path(uri).parent.mkdir()
    Path(uris[1]).write_text("".join(json.dumps({"text": t, "label": w}) + "\n" for t, w in ROWS))
    pq.write_table(pa.table({"text": [t for t, _ in ROWS], "label": [w for _, w in ROWS]}), uris[2])
    found = [prepared(tmp_path / str(i), config_of(uri=uri)) for i, uri in enumerate(uris)]
    assert len({dataset.fingerprint for dataset in found}) == 1
    assert found[0].class_names == ("bird", "cat", "dog")
    assert sum(split.num_rows for split in found[0].splits.values()) == len(ROWS)


def test_columns_by_number_and_joined_and_splits_by_name(tmp_path: Path) -> None:
    for name in ("train", "val", "test"):
        write_csv(tmp_path / f"in/{name}.csv", [(w, t, name) for t, w in ROWS], header=None)
    config = config_of(uri=str(tmp_path / "in"), text_column="1", text_columns_join=("2",), label_column="0")
    dataset = prepared(tmp_path, config)
    assert {name: split.num_rows for name, split in dataset.splits.items()} == dict.fromkeys(SPLITS, len(ROWS))
    found = sample(dataset)
    assert {(text, dataset.class_names[label]) for text, label in zip(found.texts, found.labels, strict=True)} == {
        (text + " test", name) for text, name in ROWS}


def test_the_sample_s_first_rows_stand_for_all_whatever_the_order_of_the_source(tmp_path: Path) -> None:
    rows = [(f"phrase {i} of {name}", name) for name in ("a", "b", "c", "d") for i in range(400)]
    dataset = prepared(tmp_path, config_of(uri=write_csv(tmp_path / "sorted.csv", rows)))
    found = sample(dataset)
    assert np.bincount(found.labels[:80]).min() > 8, "a sorted source's first 80 are of each class"
    ids = rows_of(dataset, config_of(uri="x"), "test")["row_id"]
    assert ids[found.positions].tolist() == found.row_ids.tolist()
    assert [rows[i][0] for i in found.row_ids] == found.texts


def test_one_text_file_is_cut_by_characters(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("é" + "abcdefghij" * 100)
    config = config_of("generate", uri=str(tmp_path / "in.txt"), tokenizer="characters")
    said: list[str] = []
    dataset = prepared(tmp_path, config, said.append)
    assert any("is one text: its first 90% is for training" in line for line in said)
    assert dataset.details["bytes"] == {"train": 901, "validation": 101, "test": 101}
    assert rows_of(dataset, config, "validation")["tokens"].tolist() == rows_of(dataset, config,
                                                                                "test")["tokens"].tolist()


def test_fewer_training_rows_leave_the_others_as_they_are(tmp_path: Path) -> None:
    uri = write_csv(tmp_path / "rows.csv", ROWS)
    every, few = (prepared(tmp_path, config_of(uri=uri, max_train_rows=most)) for most in (None, 10))
    assert few.splits["train"].num_rows == 10 < every.splits["train"].num_rows
    assert few.splits["test"].num_rows == every.splits["test"].num_rows


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data")
def test_ag_news_is_read(tmp_path: Path) -> None:
    config = config_of(uri=str(SHARED / "ag_news/ag_news_7600.csv"), text_column="1", text_columns_join=("2",),
                       label_column="0",
                       max_length=128)
    dataset = prepared(tmp_path, config)
    assert dataset.class_names == ("1", "2", "3", "4")
    assert sum(split.num_rows for split in dataset.splits.values()) == 7600


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data")
def test_shakespeare_is_cut_where_nanogpt_cuts_it(tmp_path: Path) -> None:
    path = SHARED / "tinyshakespeare/input.txt"
    config = config_of("generate", uri=str(path), tokenizer="characters", max_length=64)
    dataset = prepared(tmp_path, config)
    assert dataset.details["bytes"]["train"] == int(0.9 * len(path.read_text()))


# ── tokenizers ──
def texts_config(kind: str, task: str = "generate", **data: Any) -> TransformerConfig:
    return config_of(task, uri="stdlib" if task == "generate" else "languages", tokenizer=kind, vocab_size=300, **data)


@pytest.mark.parametrize("kind", ["bpe", "bytes", "characters"])
def test_what_is_encoded_is_given_back(kind: str) -> None:
    text = "Grüße,\n\n\tdef f(x):  return 'naïve' # 東京 <|endoftext|> 🙂"
    tokenizer = choose(texts_config(kind), [text, "more words for it"])
    ids = tokenizer.backend_tokenizer
    ids.encode_special_tokens = True
    encoded = ids.encode(text, add_special_tokens=False).ids
    assert tokenizer.eos_token_id not in encoded, "text cannot write the end of a document"
    assert tokenizer.decode(encoded) == text


def test_a_tokenizer_knows_the_training_split_only(tmp_path: Path) -> None:
    for name, extra in (("train", ""), ("val", "Ω"), ("test", "Ω")):
        write_csv(tmp_path / f"in/{name}.csv", [(t + extra, w) for t, w in ROWS])
    dataset = prepared(tmp_path, config_of(uri=str(tmp_path / "in"), tokenizer="characters"))
    tokenizer = load_tokenizer(dataset)
    assert tokenizer("Ω")["input_ids"][1] == tokenizer.unk_token_id
    assert tokenizer.unk_token_id not in tokenizer(ROWS[0][0])["input_ids"]


def test_a_text_that_is_too_long_is_cut_counted_and_said(tmp_path: Path) -> None:
    said: list[str] = []
    config = config_of(uri=write_csv(tmp_path / "rows.csv",
                                     [(t + " word" * 40 * (i % 2), w) for i, (t, w) in enumerate(ROWS)]))
    dataset = prepared(tmp_path, config, said.append)
    assert sum(dataset.details["truncated"].values()) == len(ROWS) // 2
    assert any("18 of 36 texts are longer than 16 tokens and were cut" in line for line in said)
    rows = rows_of(dataset, config, "train")
    assert rows["length"].max() == 16
    tokenizer = load_tokenizer(dataset)
    ends = rows["tokens"][np.arange(len(rows["length"])), rows["length"] - 1]
    assert (ends == tokenizer.sep_token_id).all(), "its special tokens are kept"


# ── packing ──
@pytest.mark.parametrize("length", [8, 50, 1000])
def test_the_targets_of_packed_rows_are_the_stream(length: int) -> None:
    rng = np.random.default_rng(length)
    documents = [np.concatenate([[0], rng.integers(1, 99, size)]).astype(np.int32)
                 for size in rng.integers(1, 400, 300)]
    counts = {"train": 0}
    rows = np.concatenate(list(packed(iter(documents), length, counts, "train")))
    stream = np.concatenate(documents)
    assert counts["train"] == len(stream)
    targets = rows[:, 1:].reshape(-1)
    assert (targets[: len(stream) - 1] == stream[1:]).all() and (targets[len(stream) - 1 :] == -1).all()
    assert (rows[1:, 0] == rows[:-1, -1]).all()


# ── bad input ──
def refused(tmp_path: Path, uri: str, message: str, task: str = "classify", **data: Any) -> None:
    with pytest.raises(DataError, match=message):
        prepared(tmp_path, config_of(task, uri=uri, **data))
    assert not list((tmp_path / "storage").glob("data/*/*")), "nothing is left"


def test_empty_texts_are_left_out_and_said(tmp_path: Path) -> None:
    uri = write_csv(tmp_path / "rows.csv", [*ROWS, ("", "cat"), ("  ", "dog")])
    dataset = prepared(tmp_path, config_of(uri=uri))
    assert sum(split.num_rows for split in dataset.splits.values()) == len(ROWS)
    assert lines_of(dataset) == ["rows: train 24, validation 6, test 6 from 1 file",
                                 "3 classes: bird (12), cat (12), dog (12)", "left out: 2 rows without text"]
    refused(tmp_path / "x", write_csv(tmp_path / "x/none.csv", [("", "cat")]), "all of its 1 rows are empty")


def test_mistakes_are_named_with_file_and_row(tmp_path: Path) -> None:
    good = write_csv(tmp_path / "rows.csv", ROWS)
    refused(tmp_path, good, r"has no column 'body': it has text, label; name one with --data.text-column",
            text_column="body")
    refused(tmp_path, good, r"has no column 'kind'.*--data.label-column", label_column="kind")
    (tmp_path / "latin.csv").write_bytes("text,label\nnaïve,a\n".encode("latin-1"))
    refused(tmp_path, str(tmp_path / "latin.csv"), r"latin.csv: byte 13 \(line 2\) is not UTF-8 \(0xef\)")
    (tmp_path / "bad.jsonl").write_text('{"text": "a", "label": "b"}\n{"text": \n')
    refused(tmp_path, str(tmp_path / "bad.jsonl"), r"bad.jsonl, line 2 is no JSON object")
    refused(tmp_path, write_csv(tmp_path / "ragged.csv", [*ROWS, ("a", "b", "c")]),
            r"row 37 has 3 columns, where the first row has 2")
    (tmp_path / "a.txt").write_text("hello")
    refused(tmp_path, str(tmp_path / "a.txt"), "holds plain text, which has no labels")
    pq.write_table(pa.table({"text": [1, 2], "label": ["a", "b"]}), tmp_path / "numbers.parquet")
    refused(tmp_path, str(tmp_path / "numbers.parquet"), "column 'text' holds int, not text")
    refused(tmp_path, str(tmp_path / "nothing"), "there is no such file or folder")


def test_mistakes_inside_a_table_are_named(tmp_path: Path) -> None:
    refused(tmp_path, write_csv(tmp_path / "none.csv", [*ROWS, ("some text", "")]), r"none.csv, row 36: remove the row")
    (tmp_path / "quote.csv").write_text('text,label\nfirst,cat\n"oops,cat\nnext,dog\n')
    refused(tmp_path, str(tmp_path / "quote.csv"), r"quote.csv, line 4 is no CSV .*: quote a text that holds quotes")
    unreadable = pa.StringArray.from_buffers(2, pa.array([0, 1, 2], pa.int32()).buffers()[1], pa.py_buffer(b"a\xff"))
    pq.write_table(pa.table({"text": unreadable, "label": ["a", "b"]}), tmp_path / "bytes.parquet")
    refused(tmp_path, str(tmp_path / "bytes.parquet"), r"bytes.parquet, row 1: column 'text' is not UTF-8")
    good = [{"text": text, "label": label} for text, label in ROWS]
    refused(tmp_path, write_json(tmp_path / "n.jsonl", [*good, {"text": 5, "label": "cat"}]),
            "line 37 holds int, not text")
    refused(tmp_path, write_json(tmp_path / "s.jsonl", [*good, {"text": "\ud800", "label": "cat"}]),
            "line 37 holds half a")
    unlabelled = [{"text": "", "label": "cat"}, *good, {"text": "x", "label": None}]
    refused(tmp_path, write_json(tmp_path / "l.jsonl", unlabelled), "l.jsonl, row 37: remove the row")


@pytest.mark.parametrize(("labels", "classes"), [
    ([1, 1.0, "1", "2"], ("1", "2")), ([True, False], ("false", "true")),
    (["cat", "Cat ", "dog"], ("Cat ", "cat", "dog"))])
def test_a_class_is_one_however_it_is_written(tmp_path: Path, labels: list[Any], classes: tuple[str, ...]) -> None:
    dataset = prepared(tmp_path, config_of(uri=write_labels(tmp_path, labels)))
    assert dataset.class_names == classes
    warned = any(line.startswith("WARNING: the classes 'Cat ', 'cat' differ by case") for line in lines_of(dataset))
    assert warned == ("cat" in classes)


@pytest.mark.parametrize(("labels", "message"), [
    ([True, 1, "dog"], r"holds '1' \(.*row 1\) and 'true' \(.*row 0\), which are the same number"),
    (["1", "1.0"], "which are the same number"),
    ([["a"], "b"], r"line 1 has \['a'\] in column 'label', where a class is"),
    ([0.5, 1], "line 1 has 0.5"), ([float("nan"), 1], "line 1 has nan"),
    ([{"name": "a"}, "b"], "line 1 has {'name': 'a'}")])
def test_what_is_no_class_is_refused(tmp_path: Path, labels: list[Any], message: str) -> None:
    refused(tmp_path, write_labels(tmp_path, labels), message)


def write_labels(folder: Path, labels: list[Any]) -> str:
    """Rows whose labels are these in turn."""
    return write_json(folder / "rows.jsonl", [{"text": f"{text} {i}", "label": labels[i % len(labels)]}
                                              for i, (text, _) in enumerate(ROWS)])


def test_all_rows_that_cannot_be_read_are_named_or_left_out_and_listed(tmp_path: Path) -> None:
    lines = [json.dumps({"text": text, "label": label}) for text, label in ROWS * 100]
    for place in range(5, 30):
        lines[10 * place] = "{"
    lines[7] = json.dumps({"text": "no label"})
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    uri = str(tmp_path / "rows.jsonl")
    refused(tmp_path, uri, r"(?s)^25 rows cannot be read: .*--data.bad-rows skip\n  .*line 51 is no JSON.*line 241 is "
            r"no JSON[^\n]*\n  and 5 more$")
    refused(tmp_path, uri, r"26 of 3,600 rows of .* cannot be read, more than --data.bad-rows-most 0.001 allows",
            bad_rows="skip", bad_rows_most=0.001)
    dataset = prepared(tmp_path, config_of(uri=uri, bad_rows="skip"))
    assert sum(split.num_rows for split in dataset.splits.values()) == 3600 - 26
    listed = dataset.store.read_text(f"{dataset.blocks}/skipped.csv")
    with io.StringIO(listed) as file:
        rows = list(csv.reader(file))
    assert len(rows) == 27 and rows[1][0].endswith("rows.jsonl, line 51")
    assert [f"{uri}, row 7", "has no value in column 'label'"] in rows
    assert any(line.startswith("left out: 26 rows that cannot be read, listed in ") for line in lines_of(dataset))


def write_json(path: Path, rows: list[dict[str, Any]], **options: Any) -> str:
    path.write_text("".join(json.dumps(row, **options) + "\n" for row in rows))
    return str(path)


def test_what_is_unusual_in_a_table_is_read(tmp_path: Path) -> None:
    rows = [{"text": text, "label": label, "id": i if i % 2 else "x"} for i, (text, label) in enumerate(ROWS)]
    separator = [*rows, {"text": "one\u2028line", "label": "cat"}, {"text": None, "label": "cat"}]
    found = prepared(tmp_path, config_of(uri=write_json(tmp_path / "rows.jsonl", separator, ensure_ascii=False)))
    assert sum(split.num_rows for split in found.splits.values()) == len(ROWS) + 1
    path = Path(write_csv(tmp_path / "rows.csv", [*ROWS, ("word " * 40_000, "cat")]))
    path.write_text(path.read_text() + "\n")
    found = prepared(tmp_path, config_of(uri=str(path)))
    assert sum(split.num_rows for split in found.splits.values()) == len(ROWS) + 1


def test_the_same_files_in_other_splits_are_other_data(tmp_path: Path) -> None:
    one, two = write_csv(tmp_path / "in/a.csv", ROWS), write_csv(tmp_path / "in/b.csv",
                                                                 [(f"{text} too", of) for text, of in ROWS])
    sets = [prepared(tmp_path, config_of(uri=uri, **given)) for uri, given in (
        (one, {"val_uri": two}), (one, {"test_uri": two}), (two, {"val_uri": one}), (str(tmp_path / "in"), {}))]
    assert [found.splits["validation"].num_rows == len(ROWS) for found in sets] == [True, False, True, False]
    assert len({found.store.uri for found in sets}) == len({found.fingerprint for found in sets}) == 4


def test_a_label_that_training_never_saw_is_named(tmp_path: Path) -> None:
    write_csv(tmp_path / "in/train.csv", ROWS)
    write_csv(tmp_path / "in/val.csv", ROWS)
    write_csv(tmp_path / "in/test.csv", [*ROWS, ("a fish", "fish")])
    refused(tmp_path, str(tmp_path / "in"),
            r"test.csv, row 36: label 'fish' in column 'label' was never seen in training")


def test_an_empty_text_does_not_shift_the_row_that_is_named(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_csv(tmp_path / f"in/{split}.csv", ROWS)
    write_csv(tmp_path / "in/test.csv", [("", "cat"), *ROWS, ("a fish", "fish")])
    refused(tmp_path, str(tmp_path / "in"), r"test.csv, row 37: label 'fish'")


def test_too_few_documents_for_the_splits_are_refused(tmp_path: Path) -> None:
    uri = write_csv(tmp_path / "rows.csv", ROWS[:1])
    refused(tmp_path, uri, "documents leave none for", task="generate")


def test_a_folder_without_a_tokenizer_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text('{"model_type": "bert"}')
    uri = write_csv(tmp_path / "rows.csv", ROWS)
    config = from_dict(TransformerConfig, {"model": {"name": str(tmp_path / "model")}, "data": {"uri": uri}})
    with pytest.raises(ConfigError, match=r"tokenizer.json.*copy a folder"):
        prepared(tmp_path, config)
