"""Files that are named after splits are these; what could mean two things is refused, whatever the kind of data."""

import csv
from pathlib import Path

import numpy as np
import pytest

from cluster.core.errors import DataError
from cluster.core.storage import FileInfo, Store
from jobs.common.config import from_dict
from jobs.common.config_groups.data import ClassFolder, Layout
from jobs.common.data.files import list_files
from jobs.common.data.found.account import lines_of
from jobs.common.data.found.split_names import by_split, split_of
from jobs.common.tables.prepare import prepare as prepare_table
from jobs.common.vision.config import ImageDataConfig
from jobs.common.vision.dataset import find_source as find_images
from jobs.tabular.config import TabularConfig
from jobs.transformer.config import TransformerConfig
from jobs.transformer.text.prepare import prepare as prepare_text


@pytest.mark.parametrize(("name", "split"), [
    ("train", "train"), ("Training", "train"), ("trn", "train"), ("seg_train", "train"),
    ("train-00000-of-00004", "train"),
    ("VAL", "validation"), ("valid", "validation"), ("dev.csv", "validation"), ("my-validation_set", "validation"),
    ("Testing", "test"), ("eval", "test"), ("t10k-images-idx3-ubyte", "test"), ("ag_news_test.csv", "test"),
    ("trained", None), ("latest", None), ("contest", None), ("train_or_test.csv", None), ("predict", None)])
def test_a_word_of_a_name_says_the_split(name: str, split: str | None) -> None:
    assert split_of(name) == split


def grouped(layout: Layout, *paths: str, by_name: bool = True) -> dict[str, list[str]]:
    groups, _ = by_split("in", [FileInfo(path, 1, 0.0) for path in sorted(paths)], layout, by_name=by_name)
    return {split: [file.path for file in files] for split, files in groups.items()}


@pytest.mark.parametrize(("paths", "splits"), [
    (("a.csv", "b.csv"), {"train": ["a.csv", "b.csv"]}),
    (("test.csv",), {"train": ["test.csv"]}),
    (("train.csv", "test.csv"), {"train": ["train.csv"], "test": ["test.csv"]}),
    (("data/train/a.csv", "data/dev/a.csv"), {"train": ["data/train/a.csv"], "validation": ["data/dev/a.csv"]}),
    (("de/train.csv", "en/train.csv", "en/val.csv"),
     {"train": ["de/train.csv", "en/train.csv"], "validation": ["en/val.csv"]}),
    (("train/test_1.csv", "test/train_1.csv"), {"train": ["train/test_1.csv"], "test": ["test/train_1.csv"]})])
def test_what_can_only_mean_one_thing_is_taken_so(paths: tuple[str, ...], splits: dict[str, list[str]]) -> None:
    assert grouped("auto", *paths) == splits


@pytest.mark.parametrize(("paths", "message"), [
    (("train.csv", "test.csv", "sample_submission.csv"),
     r"splits \(train train.csv, test test.csv\), and others are not \(sample_submission.csv\). Pass --data.layout"),
    (("train/a.csv", "test/a.csv", "predict/a.csv"), r"others are not \(predict/a.csv\)"),
    (("a.csv", "test.csv"), r"some files are named after a split \(test test.csv\), and the others are not \(a.csv\)"),
    (("test.csv", "val.csv"), "none is for training"),
    (("unsupervised-0.csv", "unsupervised-1.csv", "u-2.csv", "u-3.csv", "train.csv"),
     "u-2.csv, u-3.csv, .* and 1 more")])
def test_what_could_mean_two_things_is_refused_with_both(paths: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=f"could mean two things: .*{message}"):
        grouped("auto", *paths)
    assert grouped("one", *paths) == {"train": sorted(paths)}


def test_others_are_left_out_where_that_is_asked_for() -> None:
    files = [FileInfo(path, 1, 0.0) for path in ("sample.csv", "test.csv", "train.csv")]
    groups, unread = by_split("in", files, "splits")
    assert [*groups] == ["train", "test"]
    assert unread == {"files not named after a split": ["sample.csv"]}


def test_classes_are_not_taken_for_splits_by_the_names_of_pictures() -> None:
    assert grouped("auto", "cat/train_1.png", "dog/test_1.png", by_name=False) == {
        "train": ["cat/train_1.png", "dog/test_1.png"]}
    with pytest.raises(DataError, match=r"train train/1.png.*others are not.*bus/1.png"):
        grouped("auto", "bus/1.png", "car/1.png", "train/1.png", by_name=False)


# ── through every kind of data ──
def write_rows(path: Path, rows: int = 40) -> None:
    rng = np.random.default_rng(rows + len(str(path)))
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "x", "label"), *(
            (f"{path.stem} {i}", rng.normal(), "ab"[i % 2]) for i in range(rows))])


@pytest.mark.parametrize("kind", ["text", "table", "image"])
def test_a_stray_file_never_gets_into_training(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "in"
    for name in ("train", "test", "predict"):
        if kind == "image":
            for label in ("a", "b"):
                (folder / name / label).mkdir(parents=True)
                for i in range(8):
                    (folder / name / label / f"{i}.pgm").write_bytes(b"P5 2 2 255\n" + bytes([i, 1, 2, 3]))
        else:
            folder.mkdir(exist_ok=True)
            write_rows(folder / f"{name}.csv")

    def splits(layout: Layout) -> dict[str, int]:
        storage, data = Store.open(str(tmp_path / layout)), {"uri": str(folder), "layout": layout}
        if kind == "image":
            inner: ClassFolder = "inner" if layout == "one" else "auto"
            config = ImageDataConfig(uri=str(folder), layout=layout, class_folder=inner)
            found = find_images(str(folder), config).fragments().by_split
            return {split: sum(fragment.num_rows for fragment in of) for split, of in found.items()}
        if kind == "text":
            dataset = prepare_text(from_dict(TransformerConfig, {"task": "classify", "data": {
                **data, "tokenizer": "characters", "max_length": 16}}), storage, use_ray=False)
        else:
            config = from_dict(TabularConfig, {"data": {**data, "ignore": "text", "label_column": "label"}})
            dataset = prepare_table(config.data, storage, say=lambda _: None)
        assert ("left out: 1 files not named after a split (predict.csv)" in lines_of(dataset)) == (layout == "splits")
        return {split: of.num_rows for split, of in dataset.splits.items()}

    with pytest.raises(DataError, match="could mean two things"):
        splits("auto")
    everything, named = splits("one"), splits("splits")
    assert sum(everything.values()) == (48 if kind == "image" else 120)
    assert sum(named.values()) == (32 if kind == "image" else 80)
    assert named["test"] == (16 if kind == "image" else 40)


def test_hidden_files_and_litter_are_no_data_and_an_underscore_is(tmp_path: Path) -> None:
    for name in (".hidden.csv", "_SUCCESS", "Thumbs.db", "_delta_log/0.csv", "__MACOSX/a.csv", "._a.csv", "_rows.csv",
                 "a/_b.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert [file.path for file in list_files(str(tmp_path)).files] == ["_rows.csv", "a/_b.csv"]
