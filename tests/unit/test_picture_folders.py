"""Which files of a folder are pictures, and what is said of those that are left out."""

import io
from pathlib import Path

import pytest
from PIL import Image

from cluster.core.storage import Store
from jobs.common.data.dataset import Dataset
from jobs.common.data.prepared import Say
from jobs.common.vision.config import ImageDataConfig
from jobs.common.vision.picture import BEGINNING, ENDINGS, FORMATS, MODES, SENT_FORMATS
from jobs.common.vision.prepare import prepare

COLOUR = Image.new("RGB", (3, 2), "red")
LABELS = ["ant", "bee"] * 3


def saved(image: Image.Image, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


def prepared(folder: Path, say: Say | None = None) -> Dataset:
    return prepare(ImageDataConfig(uri=str(folder / "in")), Store.open(str(folder / "out")), use_ray=False, say=say)


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
    said: list[str] = []
    for place, name in enumerate(["_first.png", "hash", "photo.JFIF", "x.jpe"]):
        for folder in ("_ant", "bee"):
            (tmp_path / "in" / folder).mkdir(parents=True, exist_ok=True)
            (tmp_path / "in" / folder / name).write_bytes(saved(COLOUR, "PNG" if place < 2 else "JPEG"))
    for litter in (".hidden.png", "Thumbs.db", ".DS_Store", "bee/desktop.ini", "bee/Thumbs.db"):
        (tmp_path / "in" / litter).write_bytes(saved(COLOUR))
    for other in ("README", "labels.csv", "bee/a.heic", "bee/b.txt", "bee/c.xml"):
        (tmp_path / "in" / other).write_text("no picture")
    dataset = prepared(tmp_path, said.append)
    assert dataset.class_names == ("_ant", "bee")
    assert sum(split.num_rows for split in dataset.splits.values()) == 8
    assert said[0] == (f"{tmp_path}/in: 5 of 13 files are no pictures that are read, and left out: README, "
                       "bee/a.heic, bee/b.txt, bee/c.xml, labels.csv")
    (tmp_path / "in/zip.zip").touch()
    prepared(tmp_path, said.append)
    assert "6 of 14 files" in said[2] and said[2].endswith("labels.csv, …")


def test_a_folder_of_names_without_an_ending_is_one_of_pictures(tmp_path: Path) -> None:
    for place, label in enumerate(LABELS):
        (tmp_path / "in" / label).mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / label / str(place)).write_bytes(saved(COLOUR))
    assert prepared(tmp_path).class_names == ("ant", "bee")
