"""Every accepted form of images gives the same pixels, labels and row ids."""

import gzip
import io
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cluster.core.storage import Store
from jobs.common.data.arrow import arrow_column, numpy_column
from jobs.common.data.cache import BlockCache
from jobs.common.data.dataset import SPLITS, Dataset
from jobs.common.data.reader import Reader
from jobs.common.picture import FORMATS, decode_picture
from jobs.common.picture_rule import PictureRule
from jobs.common.vision.config import ImageDataConfig
from jobs.common.vision.dataset import ImageFacts
from jobs.common.vision.prepare import prepare

ROWS, HEIGHT, WIDTH = 30, 4, 5
RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (ROWS, HEIGHT, WIDTH, 1), np.uint8)
COLOUR = RNG.integers(0, 256, (ROWS, HEIGHT, WIDTH, 3), np.uint8)
LABELS = np.arange(ROWS) % 3


def _all_rows(dataset: Dataset, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of all splits together, in the order of row ids."""
    parts = [Reader(dataset, split, BlockCache(folder, 10**8)).rows(0, dataset.splits[split].num_rows)
             for split in SPLITS]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in ("image", "label", "row_id")}
    order = np.argsort(joined["row_id"])
    assert joined["row_id"][order].tolist() == list(range(len(order)))
    return joined["image"][order], joined["label"][order]


def _check(tmp_path: Path, images: np.ndarray, uri: Path | str | None = None, **options: str) -> Dataset:
    (tmp_path / "cache").mkdir(exist_ok=True)
    config = ImageDataConfig(uri=str(uri or tmp_path / "in"), **options)
    dataset = prepare(config, Store.open(str(tmp_path / "out")), use_ray=False)
    found, labels = _all_rows(dataset, tmp_path / "cache")
    assert found.dtype == images.dtype
    np.testing.assert_array_equal(found, images)
    np.testing.assert_array_equal(labels, LABELS)
    return dataset


def _encode(image: np.ndarray, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(image.squeeze()).save(file, form)
    return file.getvalue()


def _parquet(path: Path, images: pa.Array, labels: pa.Array | None = None, **options: int) -> None:
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"image": images, "label": pa.array(LABELS) if labels is None else labels}), path,
                   **options)


def _idx(path: Path, values: np.ndarray, code: int, dtype: str) -> None:
    path.parent.mkdir(exist_ok=True)
    data = struct.pack(f">BBBB{values.ndim}I", 0, 0, code, values.ndim, *values.shape) + values.astype(dtype).tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


NESTED = {
    "lists": pa.array(COLOUR.tolist(), pa.list_(pa.list_(pa.list_(pa.uint8())))),
    "lists of int64": pa.array(COLOUR.tolist()),
    "large lists": pa.array(COLOUR.tolist(), pa.large_list(pa.large_list(pa.large_list(pa.int16())))),
    "fixed-size lists": pa.array(COLOUR.tolist(), pa.list_(pa.list_(pa.list_(pa.uint8(), 3), WIDTH), HEIGHT)),
    "fixed in variable": pa.array(COLOUR.tolist(), pa.list_(pa.list_(pa.list_(pa.int32(), 3)))),
    "tensor": pa.FixedShapeTensorArray.from_numpy_ndarray(COLOUR),
}


@pytest.mark.parametrize("form", NESTED)
def test_nested_lists_of_any_arrow_kind_are_the_same_pixels(tmp_path: Path, form: str) -> None:
    _parquet(tmp_path / "in/a.parquet", NESTED[form], row_group_size=7)
    _check(tmp_path, COLOUR)


def test_two_levels_of_lists_are_gray_images(tmp_path: Path) -> None:
    _parquet(tmp_path / "in/a.parquet", pa.array(GRAY[..., 0].tolist(), pa.list_(pa.list_(pa.uint8()))))
    _check(tmp_path, GRAY)


def test_flat_lists_take_the_shape_that_is_named_or_are_square(tmp_path: Path) -> None:
    _parquet(tmp_path / "in/a.parquet", pa.array(COLOUR.reshape(ROWS, -1).tolist()))
    _check(tmp_path, COLOUR, image_shape="4x5x3")
    _parquet(tmp_path / "square/a.parquet", pa.array(GRAY[:, :, :4].reshape(ROWS, -1).tolist()))
    _check(tmp_path, GRAY[:, :, :4], tmp_path / "square")


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()])
def test_floating_pixels_become_float32(tmp_path: Path, kind: pa.DataType) -> None:
    values = (GRAY / 256 - 0.5).astype(np.float32)
    flat = pa.array(values.reshape(-1), pa.float32()).cast(kind)
    _parquet(tmp_path / "in/a.parquet", pa.FixedSizeListArray.from_arrays(flat, HEIGHT * WIDTH), row_group_size=4)
    dataset = _check(tmp_path, values, image_shape="4x5")
    assert ImageFacts.of(dataset).dtype == "float32"


def test_booleans_are_pixels_of_0_and_1(tmp_path: Path) -> None:
    _parquet(tmp_path / "in/a.parquet", pa.array((GRAY[..., 0] > 127).tolist()))
    _check(tmp_path, (GRAY > 127).astype(np.uint8))


@pytest.mark.parametrize("form", ["bytes", "large bytes", "struct"])
def test_encoded_images_in_parquet(tmp_path: Path, form: str) -> None:
    data = [_encode(image) for image in COLOUR]
    column = {"bytes": pa.array(data), "large bytes": pa.array(data, pa.large_binary()),
              "struct": pa.array([{"bytes": item, "path": None} for item in data],
                                 pa.struct([("bytes", pa.binary()), ("path", pa.string())]))}[form]
    _parquet(tmp_path / "in/a.parquet", column, row_group_size=8)
    _check(tmp_path, COLOUR)


def test_jpeg_is_decoded_as_pillow_does(tmp_path: Path) -> None:
    data = [_encode(image, "JPEG") for image in GRAY]
    _parquet(tmp_path / "in/a.parquet", pa.array(data))
    _check(tmp_path, np.stack([np.asarray(Image.open(io.BytesIO(item)))[..., None] for item in data]))


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_that_is_named_is_decoded(form: str) -> None:
    options = {"lossless": True} if form == "WEBP" else {"quality": 100} if form == "JPEG" else {}
    file = io.BytesIO()
    Image.new("RGB", (5, 4), (10, 20, 30)).save(file, form, **options)
    assert np.abs(decode_picture(file.getvalue(), PictureRule()).astype(int)[..., :3] - (10, 20, 30)).max() <= 2


def test_column_names_are_options(tmp_path: Path) -> None:
    table = pa.table({"pixels": pa.array(GRAY[..., 0].tolist()), "digit": pa.array(LABELS), "note": ["x"] * ROWS})
    pq.write_table(table, tmp_path / "one.parquet")
    _check(tmp_path, GRAY, tmp_path / "one.parquet", image_column="pixels", label_column="digit")


TEXT = pa.array([f"class {'xyz'[n]}" for n in LABELS])


@pytest.mark.parametrize("labels", [
    TEXT, TEXT.dictionary_encode(), TEXT.cast(pa.large_string()), pa.array(LABELS.astype(float)),
    pa.array(LABELS.astype(np.uint8)),
], ids=["text", "dictionary", "large text", "whole floats", "uint8"])
def test_labels_may_be_text_or_whole_numbers(tmp_path: Path, labels: pa.Array) -> None:
    _parquet(tmp_path / "in/a.parquet", pa.array(GRAY[..., 0].tolist()), labels, row_group_size=9)
    dataset = _check(tmp_path, GRAY)
    assert [name[-1] for name in dataset.class_names] in (["x", "y", "z"], ["0", "1", "2"])


def test_a_folder_and_a_pattern_read_files_in_the_order_of_their_paths(tmp_path: Path) -> None:
    for i, name in enumerate(["a.parquet", "b/a.parquet", "c.parquet"]):
        part = slice(i * 10, i * 10 + 10)
        (tmp_path / "in/b").mkdir(parents=True, exist_ok=True)
        _parquet(tmp_path / "in" / name, pa.array(GRAY[part, ..., 0].tolist()), pa.array(LABELS[part]))
    _parquet(tmp_path / "in/_hidden/a.parquet" if (tmp_path / "in/_hidden").mkdir() else tmp_path / "in/.b.parquet",
             pa.array(GRAY[..., 0].tolist()))
    whole = _check(tmp_path, GRAY)
    (tmp_path / "in/b/a.parquet").rename(tmp_path / "in/b.parquet")
    assert _check(tmp_path, GRAY, f"{tmp_path}/in/[abc].par*").fingerprint == whole.fingerprint


def test_the_content_decides_the_fingerprint_not_its_encoding(tmp_path: Path) -> None:
    prints: set[str] = set()
    for form, options in (("lists", {"row_group_size": 3}), ("fixed-size lists", {"compression": "zstd"}),
                          ("tensor", {})):
        _parquet(tmp_path / form.replace(" ", "") / "a.parquet", NESTED[form], **options)
        prints.add(_check(tmp_path, COLOUR, tmp_path / form.replace(" ", "")).fingerprint)
    assert len(prints) == 1


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize(("code", "dtype"), [(0x08, ">u1"), (0x0B, ">i2"), (0x0C, ">i4")])
def test_idx_files_are_read_plain_and_gzipped(tmp_path: Path, ending: str, code: int, dtype: str) -> None:
    _idx(tmp_path / f"in/train-images-idx3-ubyte{ending}", GRAY[..., 0], code, dtype)
    _idx(tmp_path / f"in/train-labels-idx1-ubyte{ending}", LABELS, 0x08, ">u1")
    _check(tmp_path, GRAY)
    _check(tmp_path, GRAY, tmp_path / f"in/train-images-idx3-ubyte{ending}")


def test_idx_files_of_floats_and_of_colour(tmp_path: Path) -> None:
    values = COLOUR.astype(np.float32) / 7
    _idx(tmp_path / "in/images-idx4-float", values, 0x0D, ">f4")
    _idx(tmp_path / "in/labels-idx1-ubyte.gz", LABELS, 0x08, ">u1")
    _check(tmp_path, values)


def test_the_second_pair_of_mnist_is_its_test_split(tmp_path: Path) -> None:
    for name, rows in (("train", slice(0, 21)), ("t10k", slice(21, 30))):
        _idx(tmp_path / f"in/{name}-images-idx3-ubyte.gz", GRAY[rows, ..., 0], 8, ">u1")
        _idx(tmp_path / f"in/{name}-labels-idx1-ubyte.gz", LABELS[rows], 8, ">u1")
    dataset = _check(tmp_path, GRAY)
    test = Reader(dataset, "test", BlockCache(tmp_path / "cache", 10**8)).rows(0, 9)
    assert test["row_id"].tolist() == list(range(21, 30))
    assert dataset.splits["validation"].class_counts == (1, 1, 1)


def test_a_folder_of_images_has_one_class_a_sub_folder(tmp_path: Path) -> None:
    order = np.argsort(LABELS, kind="stable")
    for place, row in enumerate(order):
        path = tmp_path / f"in/{['ant', 'bee', 'cat'][LABELS[row]]}/deep/{place:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_encode(COLOUR[row]))
    (tmp_path / "in/README.txt").write_text("no image")
    for name, target in {"ant/loop": "../..", "bee/loop": "../cat"}.items():  # every image is taken once, where it is
        (tmp_path / "in" / name).symlink_to(target)
    dataset = prepare(ImageDataConfig(uri=str(tmp_path / "in")), Store.open(str(tmp_path / "out")), use_ray=False)
    (tmp_path / "cache").mkdir()
    images, labels = _all_rows(dataset, tmp_path / "cache")
    np.testing.assert_array_equal(images, COLOUR[order])
    np.testing.assert_array_equal(labels, LABELS[order])
    assert dataset.class_names == ("ant", "bee", "cat")


def test_folders_named_after_splits_are_these_splits(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        for row in range(6):
            path = tmp_path / f"in/{split}/{row % 2}/{row}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_encode(GRAY[row]))
    dataset = prepare(ImageDataConfig(uri=str(tmp_path / "in")), Store.open(str(tmp_path / "out")), use_ray=False)
    assert [dataset.splits[split].num_rows for split in SPLITS] == [6, 6, 6]
    assert dataset.class_names == ("0", "1")


def test_files_named_after_splits_are_these_splits(tmp_path: Path) -> None:
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        _parquet(tmp_path / f"in/{name}.parquet", pa.array(GRAY[..., 0].tolist()))
    dataset = prepare(ImageDataConfig(uri=str(tmp_path / "in")), Store.open(str(tmp_path / "out")), use_ray=False)
    assert dataset.splits["test"].num_rows == ROWS
    assert dataset.splits["train"].num_rows + dataset.splits["validation"].num_rows == 2 * ROWS


def test_paletted_and_black_and_white_images_are_understood(tmp_path: Path) -> None:
    gray = Image.fromarray(GRAY[0, ..., 0])
    for name, image in (("a", gray.convert("P")), ("b", gray.convert("1"))):
        for row in range(3):
            for label in "01":
                (tmp_path / name / label).mkdir(parents=True, exist_ok=True)
                image.save(tmp_path / name / label / f"{row}.png")
    storage = Store.open(str(tmp_path / "out"))
    assert ImageFacts.of(prepare(ImageDataConfig(uri=str(tmp_path / "a")), storage,
                                 use_ray=False)).shape == (HEIGHT, WIDTH, 3)
    assert ImageFacts.of(prepare(ImageDataConfig(uri=str(tmp_path / "b")), storage,
                                 use_ray=False)).shape == (HEIGHT, WIDTH, 1)


def test_arrow_columns_go_both_ways_also_when_sliced() -> None:
    for dtype in (np.uint8, np.int64, np.float16, np.float32, np.float64):
        values = np.arange(10).astype(dtype)
        np.testing.assert_array_equal(numpy_column(arrow_column(values).slice(3, 4)), values[3:7])
