"""Which files of a folder are pictures, and what is said of those that are left out."""

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cluster.core.errors import DataError
from cluster.core.storage import Store
from jobs.common.data.dataset import Dataset
from jobs.common.data.found.account import lines_of
from jobs.common.picture import BEGINNING, ENDINGS, FORMATS, MODES, SENT_FORMATS
from jobs.common.vision.config import ImageDataConfig
from jobs.common.vision.prepare import prepare

COLOUR = Image.new("RGB", (3, 2), "red")
LABELS = ["ant", "bee"] * 3


def saved(image: Image.Image, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


def prepared(folder: Path, **asked: Any) -> Dataset:
    return prepare(ImageDataConfig(uri=str(folder / "in"), **asked), Store.open(str(folder / "out")), use_ray=False)


def test_the_endings_are_those_that_pillow_has_for_the_formats() -> None:
    Image.init()
    known = Image.registered_extensions()
    assert set(ENDINGS) == {ending for ending, form in known.items() if form in FORMATS}
    assert set(SENT_FORMATS) < set(FORMATS)


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_is_known_by_its_beginning(form: str) -> None:
    for mode in ("1", *MODES.values()):
        try:
            data = saved(Image.new(mode, (3, 3)), form)
        except (OSError, KeyError):  # no such pixels in this format
            continue
        assert BEGINNING.match(data[:16]), mode


def test_a_folder_is_read_whole_but_for_what_is_named(tmp_path: Path) -> None:
    """Pictures whose names have no ending, or begin with _, are data; hidden files and what systems leave are not."""
    for place, name in enumerate(["_first.png", "hash", "photo.JFIF", "x.jpe"]):
        for folder in ("_ant", "bee"):
            (tmp_path / "in" / folder).mkdir(parents=True, exist_ok=True)
            (tmp_path / "in" / folder / name).write_bytes(saved(COLOUR, "PNG" if place < 2 else "JPEG"))
    for litter in (".hidden.png", "Thumbs.db", ".DS_Store", "bee/desktop.ini", "bee/Thumbs.db"):
        (tmp_path / "in" / litter).write_bytes(saved(COLOUR))
    for other in ("README", "labels.csv", "bee/a.heic", "bee/b.txt", "bee/c.xml"):
        (tmp_path / "in" / other).write_text("no picture")
    dataset = prepared(tmp_path)
    assert dataset.class_names == ("_ant", "bee")
    assert sum(split.num_rows for split in dataset.splits.values()) == 8
    assert ("left out: 5 files that are no pictures (README, bee/a.heic, bee/b.txt, bee/c.xml, labels.csv)"
            in lines_of(dataset))
    (tmp_path / "in/zip.zip").touch()
    assert any(line.startswith("left out: 6 files") and line.endswith("labels.csv …)")
               for line in lines_of(prepared(tmp_path)))


def test_a_folder_of_names_without_an_ending_is_one_of_pictures(tmp_path: Path) -> None:
    for place, label in enumerate(LABELS):
        (tmp_path / "in" / label).mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / label / str(place)).write_bytes(saved(COLOUR))
    assert prepared(tmp_path).class_names == ("ant", "bee")


# ── which folder is the class ──
def write_folders(folder: Path, *paths: str) -> None:
    for place, path in enumerate(paths):
        for i in range(4):
            (folder / "in" / path).mkdir(parents=True, exist_ok=True)
            (folder / "in" / path / f"{i}.pgm").write_bytes(b"P5 2 2 255\n" + bytes([place, i, 9, 9]))


def test_a_folder_that_all_training_pictures_share_is_no_class(tmp_path: Path) -> None:
    """As archives of data sets have it: seg_train/seg_train/CLASS, and another for the test rows."""
    write_folders(tmp_path, *(f"seg_{split}/seg_{split}/{name}" for split in ("train", "test") for name in "ab"))
    dataset = prepared(tmp_path)
    assert dataset.class_names == ("a", "b")
    assert dataset.splits["test"].num_rows == 8


def test_the_same_folders_below_each_folder_are_refused_with_both_readings(tmp_path: Path) -> None:
    write_folders(tmp_path, "left/cat", "left/dog", "right/cat", "right/dog")
    with pytest.raises(DataError, match=r"folders left, right each hold the folders cat, dog. Pass --data.class-fol"):
        prepared(tmp_path)
    assert prepared(tmp_path, class_folder="inner").class_names == ("cat", "dog")
    assert prepared(tmp_path, class_folder="outer").class_names == ("left", "right")


def test_different_folders_below_the_classes_are_parts_of_them(tmp_path: Path) -> None:
    write_folders(tmp_path, "cat/black", "cat/white", "dog/white", "dog/brown")
    assert prepared(tmp_path).class_names == ("cat", "dog")
