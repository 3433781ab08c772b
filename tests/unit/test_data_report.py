"""data.html: what it says of images, tables and text, what it finds that was planted, and that no data can spoil it."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false

import csv
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from markupsafe import escape

from cluster.core.storage import Store
from jobs.common.config import from_dict
from jobs.common.data.dataset import Dataset, Split
from jobs.common.data.found.near_duplicates import alike, nearest_pairs
from jobs.common.data.found.row_sample import RowSample, spread
from jobs.common.report.data_report import DATA_FILE, cut, render, write_data_report
from jobs.common.tables.data_report import Cells, odd_values
from jobs.common.training.job import Job
from jobs.common.vision.data_report import odd_pictures, pooled
from jobs.mlp.job import JOB as IMAGES
from jobs.tabular.job import JOB as TABLES
from jobs.transformer.job import JOB as TEXT
from jobs.transformer.text.data_report import stretches_of

EVIL = "<script>alert('x')</script>\"&$_{%"


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def prepared(job: Job, folder: Path, uri: object, **groups: Any) -> tuple[Any, Dataset]:
    groups["data"] = groups.get("data", {}) | {"uri": str(uri), "cache_dir": str(folder / "cache")}
    config = from_dict(job.config_type, groups)
    return config, job.prepare(config, Store.open(str(folder / "storage")), use_ray=False, say=lambda _: None)


def page(job: Job, config: Any, dataset: Dataset) -> str:
    assert job.data_sections
    html = render(EVIL, dataset, job.data_sections(config, dataset), config.data.uri)
    assert "<script" not in html and str(escape(EVIL)) in html
    return html


def section(html: str, title: str) -> str:
    """Its text."""
    found = re.search(rf"<h2>{title}</h2>(.*?)</section>", html, re.DOTALL)
    assert found, title
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", found[1]))


def rows_named(text: str) -> set[int]:
    return {int(row) for row in re.findall(r"row (\d+), (?:train|validation|test)", text)}


def write_images(path: Path, images: np.ndarray, labels: Sequence[str]) -> Path:
    column: Any = pa.array(images.tolist(), pa.list_(pa.list_(pa.list_(pa.from_numpy_dtype(images.dtype)))))
    pq.write_table(pa.table({"image": column, "label": pa.array(labels)}), path)
    return path


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


# ── images ──
def some_images(rng: np.random.Generator, rows: int = 60, side: int = 12,
                channels: int = 3) -> tuple[np.ndarray, list[str]]:
    """Of two classes: dark on the left, or on the right."""
    images = rng.integers(0, 60, (rows, side, side, channels)).astype(np.uint8)
    images[::2, :, side // 2 :] += 150
    images[1::2, :, : side // 2] += 150
    return images, [(EVIL, "plain")[row % 2] for row in range(rows)]


def test_odd_and_nearly_equal_pictures_are_found_and_named(tmp_path: Path, rng: np.random.Generator) -> None:
    images, labels = some_images(rng)
    images[7] = images[8]  # of the other class: same content under another label
    images[20] = 90, 10, 10
    images[31] = np.rot90(images[31])
    images[40] = images[42]
    images[40, 0, 0, 0] ^= 1
    config, dataset = prepared(IMAGES, tmp_path, write_images(tmp_path / "a.parquet", images, labels))
    html = page(IMAGES, config, dataset)
    found = section(html, "What was found")
    assert "7 and 8" in found and "has another label" in found and dataset.fingerprint in found
    assert "files read" in found
    assert "plain" in section(html, "Classes") and "30" in section(html, "Classes")
    assert html.count("data:image/png") >= 12
    odd = section(html, "Odd rows")
    assert "plain" in odd and "nearly of one colour" in odd and {20, 31} <= rows_named(odd) <= {20, 31, 7, 8}
    assert {40, 42} <= rows_named(section(html, "Near-duplicates"))
    assert "12 pixels high and 12 wide, of 3 channels" in section(html, "Pixels")


@pytest.mark.parametrize(("shape", "dtype"), [((1, 1, 1), "uint8"), ((5, 3, 4), "uint8"), ((40, 90, 2), "uint8"),
                                              ((4, 4, 1), "float32"), ((100, 80, 3), "uint8")])
def test_images_of_any_shape_and_range_are_shown(tmp_path: Path, rng: np.random.Generator,
                                                 shape: tuple[int, int, int], dtype: str) -> None:
    images = rng.integers(0, 256, (24, *shape)).astype(dtype)
    if dtype == "float32":
        images[3], images[4] = 3e38, -3e38
    config, dataset = prepared(IMAGES, tmp_path, write_images(tmp_path / "a.parquet", images, ["a", EVIL] * 12))
    html = page(IMAGES, config, dataset)
    assert "Examples" in html and html.count("data:image/") >= 12
    assert "nan" not in section(html, "Pixels")


@pytest.mark.parametrize("kind", ["images", "table", "classify", "generate"])
def test_splits_without_rows_are_shown(tmp_path: Path, rng: np.random.Generator, kind: str) -> None:
    images, labels = some_images(rng, 20)
    source, table = tmp_path / "a.parquet", [[f"word {i % 7}", i / 7, ("a", EVIL)[i % 2]] for i in range(40)]
    if kind == "images":
        job, given, groups = IMAGES, write_images(source, images, labels), dict[str, Any]()
    else:
        given = write_csv(tmp_path / "a.csv", ["text", "x", "label"], table)
        job, groups = ((TABLES, {"data": {"label_column": "x"}}) if kind == "table" else
                       (TEXT, {"task": kind, "data": {**TINY, "tokenizer": "characters"}}))
    config, dataset = prepared(job, tmp_path, given, **groups)
    train = dataset.splits["train"]
    none = replace(train, num_rows=0, class_counts=tuple(0 for _ in train.class_counts), pieces=())
    html = page(job, config, replace(dataset, splits=dataset.splits | {"validation": none, "test": none}))
    assert all(said in html for said in ("What was found", "Odd rows", "Near-duplicates"))


def test_pictures_of_one_colour_are_odd_where_few_are(rng: np.random.Generator) -> None:
    images = np.zeros((10, 8, 8, 1), np.uint8)
    assert odd_pictures(pooled(images), images, np.zeros(10)) == []
    images[1:] = rng.integers(0, 256, (9, 8, 8, 1))
    assert [row for row, why in odd_pictures(pooled(images), images, np.arange(10)) if "colour" in why] == [0]


# ── tables ──
def test_what_is_odd_and_nearly_equal_in_a_table_is_found_and_named(tmp_path: Path, rng: np.random.Generator) -> None:
    rows: list[list[object]] = [[f"{x:.4f}", f"{y:.4f}", ("red", EVIL)[i % 3 == 0], f"2024-01-{1 + i % 28:02}",
                                 f"{x + y:.3f}"] for i, (x, y) in enumerate(rng.normal(size=(80, 2)))]
    rows[11][0] = 50.0
    rows[30][1] = ""
    rows[50] = [*rows[51]]
    rows[50][0] = float(str(rows[51][0])) + 0.001
    header = ["x", EVIL, "colour", "day", "y"]
    config, dataset = prepared(TABLES, tmp_path, write_csv(tmp_path / "a.csv", header, rows),
                               data={"label_column": "y"})
    html = page(TABLES, config, dataset)
    columns = section(html, "Columns")
    assert all(said in columns for said in ("category", "date", "2024-01-01", "2024-01-28", "red (", "number"))
    assert rows_named(section(html, "Odd rows")) == {11} and "50" in section(html, "Odd rows")
    near = section(html, "Near-duplicates")
    assert "row 50," in near.partition("%")[0] and "row 51," in near.partition("%")[0]
    assert "y" in section(html, "Targets") and "red" in section(html, "Rows")
    cells = Cells(dataset, RowSample.of(dataset, config.data))
    assert [field.name for _, field, _ in odd_values(cells)] == ["x"]


def test_a_table_of_categories_and_classes_alone_is_shown(tmp_path: Path) -> None:
    rows = [(("a", "b", "")[i % 3], ("yes", EVIL)[i % 2]) for i in range(40)]
    config, dataset = prepared(TABLES, tmp_path, write_csv(tmp_path / "a.csv", ["c", "y"], rows),
                               data={"label_column": "y"})
    html = page(TABLES, config, dataset)
    assert "yes" in section(html, "Classes") and "There are none" in section(html, "Odd rows")


# ── text ──
TINY: dict[str, Any] = {"max_length": 16, "vocab_size": 400}


def test_what_is_odd_and_nearly_equal_among_texts_is_found_and_named(tmp_path: Path, rng: np.random.Generator) -> None:
    words = [f"word{i:02}" for i in range(40)]
    rows = [(" ".join(rng.choice(words, 9)), ("cat", EVIL)[i % 2]) for i in range(160)]
    test = [*rows[:40], ("ωψχφ υτσς ρπξν μλκι θηζε δγβα", "cat"), (f"{EVIL} is a text", "cat")]
    train = [*rows[40:], (rows[0][0], "cat"), (f"{rows[1][0].rpartition(' ')[0]} word99", rows[1][1])]
    for name, part in (("train", train), ("test", test)):
        write_csv(tmp_path / f"{name}.csv", ["text", "label"], part)
    config, dataset = prepared(TEXT, tmp_path, tmp_path / "*.csv", data=TINY)
    html = page(TEXT, config, dataset)
    found = section(html, "What was found")
    assert "LEAK" in found and "1 test" in found and re.search(r"120 and \d+", found)
    assert "cat" in section(html, "Classes") and "cut" in section(html, "Lengths")
    assert "cat" in section(html, "Examples") and "is a text" in html
    assert "ωψχφ" in section(html, "Odd rows") and rows_named(section(html, "Odd rows")) == {162, 163}
    assert "word99" in section(html, "Near-duplicates") and "121" in section(html, "Near-duplicates")


def test_rows_to_generate_are_shown_as_text_again(tmp_path: Path, rng: np.random.Generator) -> None:
    texts = [[" ".join(rng.choice([f"word{i:02}" for i in range(40)], 30))] for _ in range(80)]
    texts[5] = [f"{EVIL} " * 5]
    config, dataset = prepared(TEXT, tmp_path, write_csv(tmp_path / "a.csv", ["text"], texts), task="generate",
                               data=TINY)
    html = page(TEXT, config, dataset)
    assert "word" in section(html, "Examples") and "bytes a token" in section(html, "Lengths")
    assert "Classes" not in html


def test_stretches_of_documents_end_where_the_next_begins() -> None:
    rows = np.array([[9, 1, 2, 9, 3], [1, 2, 3, 4, 5], [9, 9, 1, -1, -1]])
    assert stretches_of(rows, rows == 9).tolist() == [3, 2, 5, 1, 2]


# ── what they share ──
def test_rows_are_near_where_their_numbers_are_or_where_they_share_tokens(rng: np.random.Generator) -> None:
    features = rng.normal(size=(400, 30))
    features[17] = features[300] + 0.01
    features[18] = features[301]
    features[5] = 1e300
    (pair,) = nearest_pairs(features, [row.tobytes() for row in features])
    assert pair[:2] == (17, 300) and pair.value < 0.02
    codes = np.stack([np.arange(400) % 7, np.zeros(400, int)], axis=1)
    (apart,) = nearest_pairs(features, [row.tobytes() for row in features], codes)
    assert apart[:2] == (17, 300) and apart.value > pair.value
    assert nearest_pairs(features[:2], [b"a", b"b"]) == nearest_pairs(features[:5], [b"a"] * 5) == []
    tokens = rng.integers(0, 1000, (300, 20)).astype(np.int32)
    tokens[3, 15:] = -1
    tokens[9], tokens[10] = tokens[200], tokens[201]
    tokens[9, -1] = 1
    found, same = alike(tokens)
    assert [each[:2] for each in found] == [(9, 200)] and same == 1
    assert alike(np.full((3, 2), 5, np.int32)) == ([], 2) and alike(np.zeros((0, 9), np.int32)) == ([], 0)


@pytest.mark.parametrize(("rows", "block_rows"), [(0, 10), (1, 10), (2000, 10), (50_000, 2000), (10**10, 400)])
def test_what_is_looked_at_is_few_rows_of_few_blocks_whatever_the_size(rows: int, block_rows: int) -> None:
    split = Split(rows, block_rows)
    positions = spread(split, 2000)
    assert min(rows, 2000) <= len(positions) <= 2016 and np.array_equal(positions, np.unique(positions))
    assert not rows or (positions[0], positions[-1]) == (0, rows - 1)
    assert rows <= 2000 or len(np.unique(split.layout.locate(positions)[0])) <= 96


def test_a_text_is_cut_to_one_line_of_what_can_be_printed() -> None:
    assert cut("a\nb\tc\x00\u202e") == "a b c··"
    assert cut("long " * 100, 20) == "long long long long…"


def test_of_many_classes_those_with_the_most_and_the_fewest_rows_are_shown(tmp_path: Path) -> None:
    _, dataset = prepared(IMAGES, tmp_path, "digits")
    counts = {name: replace(split, class_counts=tuple(range(1, 101))) for name, split in dataset.splits.items()}
    dataset = replace(dataset, splits=counts, class_names=tuple(f"kind {k}" for k in range(100)))
    html = render("run", dataset, (), "digits")
    shown = [int(kind) for kind in re.findall(r"<th scope=row>kind (\d+)</th>", html)]
    assert shown == [*range(99, 84, -1), *range(14, -1, -1)]
    assert "Of 100 classes the 15 with the most rows" in section(html, "Classes")


def test_it_is_one_file_of_a_run(tmp_path: Path) -> None:
    config, dataset = prepared(IMAGES, tmp_path, "digits")
    write_data_report(Store.open(str(tmp_path / "run")), "run", dataset, IMAGES.data_sections(config, dataset),  # type: ignore[misc]
                      "digits")
    html = (tmp_path / "run" / DATA_FILE).read_text()
    assert 20_000 < len(html) < 400_000 and 'href="report.html"' in html
