"""Preparing: exact splits, a fingerprint of the content, found again at once, and safe when two do it;
reading it back."""

import concurrent.futures
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.core.errors import DataError
from cluster.core.storage import Store
from jobs.common.data.arrow import arrow_column
from jobs.common.data.blocks import Moments, SplitWriter
from jobs.common.data.cache import BlockCache
from jobs.common.data.dataset import SPLITS, Column, Columns, Dataset
from jobs.common.data.reader import Reader
from jobs.common.data.splits import TEST, TRAIN, VALIDATION, assign, keyed_hash
from jobs.common.vision.config import ImageDataConfig
from jobs.common.vision.dataset import ImageFacts
from jobs.common.vision.prepare import prepare
from jobs.common.vision.sources.digits import DigitsFragment
from tests.s3 import BUCKET, s3_server

ROWS = 20_000
IMAGES = np.random.default_rng(0).integers(0, 256, (ROWS, 28, 28, 1), np.uint8)
LABELS = np.random.default_rng(1).integers(0, 7, ROWS)
DIGITS_FINGERPRINT = "a4f60c3475272d063b1784e6a91f4875b0c47838e787376e3d87cc5f8cd37d44"
KEPT_FINGERPRINT = "6a17f516c1a28c237ab7e9096b20d2a85cb5b4639887bcfc5c602a217fb7ce99"


def _write(path: Path, images: np.ndarray = IMAGES, labels: Any = LABELS, **options: Any) -> str:
    flat = pa.FixedSizeListArray.from_arrays(pa.array(images.reshape(-1)), images[0].size)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": flat, "label": labels}), path, **options)
    return str(path)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return _write(tmp_path_factory.mktemp("source") / "a.parquet", row_group_size=3000)


@pytest.fixture(scope="module")
def dataset(source: str, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    storage = Store.open(str(tmp_path_factory.mktemp("storage")))
    return prepare(ImageDataConfig(uri=source), storage, use_ray=False)


@pytest.fixture
def train(dataset: Dataset, tmp_path: Path) -> Iterator[Reader]:
    reader = Reader(dataset, "train", BlockCache(tmp_path, 50_000_000))
    yield reader
    reader.close()


def test_the_splits_are_stratified_exactly_and_hold_every_row_once(dataset: Dataset, tmp_path: Path) -> None:
    seen: list[int] = []
    for split in SPLITS:
        rows = Reader(dataset, split, BlockCache(tmp_path, 50_000_000)).rows(0, dataset.splits[split].num_rows)
        np.testing.assert_array_equal(rows["image"], IMAGES[rows["row_id"]])
        np.testing.assert_array_equal(rows["label"], LABELS[rows["row_id"]])
        assert (np.diff(rows["row_id"]) > 0).all()
        assert dataset.splits[split].class_counts == tuple(np.bincount(rows["label"], minlength=7))
        seen += rows["row_id"].tolist()
    assert sorted(seen) == list(range(ROWS))
    for count, test, validation in zip(np.bincount(LABELS),
                                       *(dataset.splits[s].class_counts for s in ("test", "validation")),
                                       strict=True):
        assert abs(test - 0.2 * count) <= 0.5
        assert abs(validation - 0.16 * count) <= 0.5


def test_the_hash_that_splits_rows_never_changes() -> None:
    assert keyed_hash(0, np.arange(3)).tolist() == [1712497762203052719, 6671131416473621201, 8548096008419523636]
    assert keyed_hash(7, np.array([2**40])).tolist() == [12266678277669087089]
    many = keyed_hash(3, np.arange(100_000))
    assert len(np.unique(many)) == 100_000
    assert abs((many >> np.uint64(63)).mean() - 0.5) < 0.01


def test_another_split_seed_is_another_split_of_the_same_size() -> None:
    codes = np.repeat(np.arange(3, dtype=np.int32), 100)
    one, two = (assign(codes, "abc", ["train"], [300], seed) for seed in (0, 1))
    assert np.bincount(one).tolist() == np.bincount(two).tolist() == [192, 48, 60]
    assert (one != two).any()


def test_what_is_given_is_used_as_it_is_and_only_the_rest_is_split_off() -> None:
    codes = np.tile(np.arange(2, dtype=np.int32), 60)
    split = assign(codes, "ab", ["train", "test"], [100, 20], 0)
    assert (split[100:] == TEST).all()
    assert np.bincount(split[:100], minlength=3).tolist() == [84, 16, 0]
    both = assign(codes, "ab", ["train", "validation", "test"], [80, 20, 20], 0)
    assert both.tolist() == [TRAIN] * 80 + [VALIDATION] * 20 + [TEST] * 20


def test_the_smallest_class_that_can_be_split_is_in_every_split() -> None:
    split = assign(np.array([0, 0, 0, 1, 1, 1], np.int32), "ab", ["train"], [6], 0)
    assert sorted(split[:3]) == sorted(split[3:]) == [0, 1, 2]


def test_the_statistics_are_of_the_training_pixels(dataset: Dataset, train: Reader) -> None:
    pixels = train.rows(0, train.num_rows)["image"].astype(np.float64)
    assert ImageFacts.of(dataset).mean == pytest.approx([pixels.mean()], rel=1e-11)
    assert ImageFacts.of(dataset).std == pytest.approx([pixels.std()], rel=1e-11)


def test_statistics_are_per_channel_exact_far_from_zero_and_never_zero() -> None:
    rng = np.random.default_rng(0)
    images = (rng.normal(size=(37, 3, 5, 3)) * [1, 5, 0] + [1e6, -3, 2]).astype(np.float32)
    moments = Moments.of(images[:20]).merged(Moments.of(images[20:]))
    expected = images.reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(moments.mean, expected.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.std, [*expected.std(axis=0)[:2], 1.0], rtol=1e-9)


def test_the_fingerprint_does_not_depend_on_blocks_but_on_every_value(tmp_path: Path) -> None:
    columns = (Column("image", "uint8", (28, 28, 1)), Column("label", "int32"), Column("row_id", "int64"))
    rows: Columns = {"image": IMAGES[:500], "label": LABELS[:500].astype(np.int32), "row_id": np.arange(500)}

    def digest(rows: Columns, block_rows: int, cut: int) -> str:
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            writer = SplitWriter(Store.open(str(tmp_path)), "x", columns, 7, pool)
            writer.block_rows = block_rows
            writer.append({name: column[:cut] for name, column in rows.items()})
            writer.append({name: column[cut:] for name, column in rows.items()})
            writer.finish()
        return writer.digest()

    same = {digest(rows, block_rows, cut) for block_rows, cut in ((7, 3), (500, 100), (100, 450), (5000, 0))}
    assert len(same) == 1
    for name, column in rows.items():
        changed = column.copy()
        changed[-1] = changed[-1] ^ 1
        assert digest({**rows, name: changed}, 100, 100) not in same


def test_row_groups_compression_and_file_cuts_do_not_change_the_fingerprint(dataset: Dataset, tmp_path: Path) -> None:
    _write(tmp_path / "in/1.parquet", IMAGES[:7777], LABELS[:7777], compression="zstd", row_group_size=512)
    _write(tmp_path / "in/2.parquet", IMAGES[7777:], LABELS[7777:], use_dictionary=False)
    again = prepare(ImageDataConfig(uri=str(tmp_path / "in")), Store.open(str(tmp_path / "out")), use_ray=False)
    assert again.fingerprint == dataset.fingerprint
    assert {name: again.details[name] for name in ("shape", "dtype", "mean", "std")} == {
        name: dataset.details[name] for name in ("shape", "dtype", "mean", "std")}
    assert again.splits != dataset.splits, "it is cut otherwise"
    assert [replace(split, pieces=()) for split in again.splits.values()] == [
        replace(split, pieces=()) for split in dataset.splits.values()]
    cache = BlockCache(tmp_path, 10**9)
    for split in SPLITS:
        rows, others = (Reader(each, split, cache).rows(0, each.splits[split].num_rows) for each in (dataset, again))
        assert all(np.array_equal(rows[name], others[name]) for name in rows), "neither gets the other's blocks"


def test_a_changed_pixel_label_or_seed_changes_the_fingerprint(tmp_path: Path) -> None:
    images, labels = IMAGES[:300].copy(), LABELS[:300].copy()
    prints = []
    for change in range(4):
        images[5, 5, 5] ^= change == 1
        labels[5] = (labels[5] + (change == 2)) % 7
        config = ImageDataConfig(uri=_write(tmp_path / f"{change}.parquet", images, labels),
                                 split_seed=int(change == 3))
        prints.append(prepare(config, Store.open(str(tmp_path / "out")), use_ray=False).fingerprint)
    assert len(set(prints)) == 4


def test_what_is_prepared_is_found_again_until_the_source_changes(tmp_path: Path) -> None:
    config = ImageDataConfig(uri=_write(tmp_path / "a.parquet", IMAGES[:300], LABELS[:300]))
    storage, said = Store.open(str(tmp_path / "out")), list[str]()
    first = prepare(config, storage, use_ray=False, say=said.append)
    assert said == [f"preparing 300 rows of {tmp_path}/a.parquet"]
    assert prepare(config, storage, use_ray=False, say=said.append) == first
    assert len(said) == 1
    os.utime(tmp_path / "a.parquet", (1, 1))
    assert prepare(config, storage, use_ray=False, say=said.append).fingerprint == first.fingerprint
    assert len(said) == 2


def _prepare_when_told(uri: str, storage: str, start: Any) -> str:
    start.wait()
    dataset = prepare(ImageDataConfig(uri=uri), Store.open(storage), use_ray=False)
    cache = Path(storage, "cache")
    cache.mkdir(exist_ok=True)
    rows = Reader(dataset, "train", BlockCache(cache, 10**8)).rows(0, dataset.splits["train"].num_rows)
    assert (rows["image"] == IMAGES[rows["row_id"]]).all()
    return dataset.fingerprint


def test_two_processes_that_prepare_the_same_data_at_once_do_no_harm(source: str, dataset: Dataset,
                                                                     tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Manager() as manager:
        start = manager.Barrier(2)
        with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
            both = [pool.submit(_prepare_when_told, source, str(tmp_path), start) for _ in range(2)]
            assert [task.result() for task in both] == [dataset.fingerprint] * 2
    assert len(list(tmp_path.glob("data/*/dataset.json"))) == 1
    assert not list(tmp_path.glob("**/*.partial"))


def test_leftovers_that_vanish_under_the_sweep_cost_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: Any) -> float:
        raise FileNotFoundError("another process removed it just now")

    monkeypatch.setattr("jobs.common.data.prepared._last_written", gone)
    storage, config = Store.open(str(tmp_path)), ImageDataConfig()
    first = prepare(config, storage, use_ray=False)
    assert Dataset.load(first.store) == first
    assert list(first.store.local_path(first.blocks).rglob("*.parquet")), "what was committed is there"


def test_an_error_in_the_middle_leaves_nothing_but_what_was_there(tmp_path: Path) -> None:
    labels, images = pa.array(LABELS[:12_000]), IMAGES[:12_000].astype(np.float32)
    good = prepare(ImageDataConfig(), Store.open(str(tmp_path / "out")), use_ray=False)
    before = sorted((tmp_path / "out").rglob("*"))
    images[-1, 0, 0] = np.nan
    config = ImageDataConfig(uri=_write(tmp_path / "a.parquet", images, labels), image_shape="28x28")
    with pytest.raises(DataError, match=r"row 11999 .*NaN"):
        prepare(config, Store.open(str(tmp_path / "out")), use_ray=False)
    assert sorted((tmp_path / "out").rglob("*")) == before
    assert Dataset.load(good.store) == good


def test_what_a_killed_process_left_is_swept_a_day_later(tmp_path: Path) -> None:
    config = ImageDataConfig()
    key = prepare(config, Store.open(str(tmp_path)), use_ray=False).store.local_path()
    (key / "dataset.json").unlink()
    (killed,) = key.iterdir()
    again = prepare(config, Store.open(str(tmp_path)), use_ray=False)
    assert killed.exists()  # it may still be at work
    for path in (*killed.rglob("*"), killed):
        os.utime(path, (1, 1))
    beginning = key / "blocks-of-another" / "train"  # one that has finished no file yet
    beginning.mkdir(parents=True)
    (beginning / "00000000.parquet.ab.partial").touch()
    (key / "dataset.json").unlink()
    newest = prepare(config, Store.open(str(tmp_path)), use_ray=False)
    assert sorted(path.name
                  for path in key.iterdir()) == sorted([again.blocks, newest.blocks, "blocks-of-another",
                                                        "dataset.json"])


def test_take_gives_any_rows_in_any_order_with_repeats(train: Reader) -> None:
    everything = train.rows(0, train.num_rows)
    positions = np.random.default_rng(0).integers(0, train.num_rows, 4000)
    taken = train.take(positions)
    assert {name: (column.dtype.name, column.shape[1:]) for name, column in taken.items()} == {
        "image": ("uint8", (28, 28, 1)), "label": ("int64", ()), "row_id": ("int64", ())}
    for name, column in taken.items():
        np.testing.assert_array_equal(column, everything[name][positions])
    out = {name: np.zeros_like(column) for name, column in everything.items()}
    part = train.take(positions[:10], out)
    assert all(np.shares_memory(part[name], out[name]) for name in out)
    np.testing.assert_array_equal(part["row_id"], everything["row_id"][positions[:10]])
    assert len(train.take(positions[:0])["label"]) == 0
    for wrong in (-1, train.num_rows):
        with pytest.raises(IndexError):
            train.take(np.array([wrong]))


def test_prefetch_brings_blocks_into_the_cache_in_the_background(train: Reader, tmp_path: Path) -> None:
    train.prefetch(np.arange(train.num_rows))
    deadline = time.monotonic() + 20
    while len(list(tmp_path.glob("*.arrow"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(list(tmp_path.glob("*.arrow"))) == 3
    np.testing.assert_array_equal(train.rows(100, 200)["image"], IMAGES[train.rows(100, 200)["row_id"]])


def test_a_damaged_or_missing_block_in_storage_is_named(source: str, tmp_path: Path) -> None:
    dataset = prepare(ImageDataConfig(uri=source), Store.open(str(tmp_path / "out")), use_ray=False)
    path = dataset.store.local_path(f"{dataset.blocks}/train/{dataset.splits['train'].layout.path(1)}")
    (tmp_path / "cache").mkdir()
    reader = Reader(dataset, "train", BlockCache(tmp_path / "cache", 10**8))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    for _ in range(2):
        with pytest.raises(DataError, match=r"00000001\.parquet is missing or damaged .*: delete the folder"):
            reader.rows(0, reader.num_rows)
        path.unlink(missing_ok=True)
    assert len(reader.rows(0, 5)["label"]) == 5


def test_data_whose_description_is_damaged_is_named_and_prepared_again(tmp_path: Path,
                                                                       caplog: pytest.LogCaptureFixture) -> None:
    dataset = prepare(ImageDataConfig(), Store.open(str(tmp_path)), use_ray=False)
    for text in ("", "[]", json.dumps({"version": 2})):
        dataset.store.write_text("dataset.json", text)
        caplog.clear()
        with pytest.raises(DataError, match=r"dataset\.json is damaged .*prepared again"):
            Dataset.load(dataset.store)
        again = prepare(ImageDataConfig(), Store.open(str(tmp_path)), use_ray=False)
        assert again.fingerprint == Dataset.load(dataset.store).fingerprint == dataset.fingerprint
        assert caplog.text.count("dataset.json is damaged") == 2, "it is looked for before and after"


def test_the_digits_are_scikit_learns_and_always_the_same(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    dataset = prepare(ImageDataConfig(), Store.open(str(tmp_path)), use_ray=False)
    assert dataset.fingerprint == DIGITS_FINGERPRINT
    assert dataset.has(KEPT_FINGERPRINT), "what older artifacts know it by"
    assert sum(split.num_rows for split in dataset.splits.values()) == 1797
    original = load_digits()
    fragment = DigitsFragment()
    np.testing.assert_array_equal(fragment.labels().to_pylist(), original.target)
    (images,) = (part.pixels for part in fragment.decode(fragment.spec()))
    from PIL import Image

    for enlarged, scan in zip(images[:50, ..., 0], original.images[:50], strict=True):
        expected = np.asarray(Image.fromarray((scan * 255 / 16).astype(np.float32)).resize((28, 28),
                                                                                           Image.Resampling.BILINEAR))
        np.testing.assert_allclose(enlarged, expected, atol=0.51)


def test_relative_paths_keep_their_meaning_in_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path / "in/a.parquet", IMAGES[:300], LABELS[:300])
    monkeypatch.chdir(tmp_path)
    dataset = prepare(ImageDataConfig(uri="in"), Store.open("out"), use_ray=False)
    assert prepare(ImageDataConfig(uri="./in"), Store.open(str(tmp_path / "out")), use_ray=False) == dataset
    monkeypatch.chdir("/")
    moved = pickle.loads(pickle.dumps(dataset))
    assert moved == dataset
    assert len(Reader(moved, "train", BlockCache(tmp_path, 10**7)).rows(0, 100)["label"]) == 100


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_preparing_takes_no_more_memory_for_more_data(tmp_path: Path) -> None:
    code = (
        "import sys; from cluster.core.storage import Store; from jobs.common.vision.prepare import prepare\n"
        "from jobs.common.vision.config import ImageDataConfig\n"
        "prepare(ImageDataConfig(uri=sys.argv[1]), Store.open(sys.argv[2]), use_ray=False)\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    peaks: list[int] = []
    for copies in (2, 20):
        flat = pa.chunked_array([pa.FixedSizeListArray.from_arrays(pa.array(IMAGES.reshape(-1)), 784)] * copies)
        table = pa.table({"image": flat, "label": np.tile(LABELS, copies)})
        pq.write_table(table, tmp_path / f"{copies}.parquet", row_group_size=10**9, compression="none")
        command = [sys.executable, "-c", code, str(tmp_path / f"{copies}.parquet"), str(tmp_path / "out")]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, timeout=120,
                                        check=True).stdout) // 1024)
    assert peaks[1] < peaks[0] + 120, f"peak MiB for 31 and 314 MB in one row group: {peaks}"


def test_a_cached_set_needs_no_heavy_library(tmp_path: Path) -> None:
    code = (
        "import sys; from cluster.core.storage import Store; from jobs.common.vision.prepare import prepare\n"
        "from jobs.common.vision.config import ImageDataConfig; from jobs.common.data.reader import Reader\n"
        "from jobs.common.data.cache import BlockCache\n"
        "dataset = prepare(ImageDataConfig(), Store.open(sys.argv[1]), use_ray=True)\n"
        "Reader(dataset, 'train', BlockCache.open(sys.argv[1] + '/cache', 1)).rows(0, 64)\n"
        "print(sorted({'sklearn', 'pandas', 'ray', 'PIL', 'torch', 'scipy'} & set(sys.modules)))"
    )
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60,
                              check=True)
        assert (done.stdout, done.stderr) == ("[]\n", "")


def test_from_s3_to_s3_and_back(dataset: Dataset, source: str, tmp_path: Path) -> None:
    with s3_server():
        storage = Store.open(f"s3://{BUCKET}")
        storage.write_bytes("raw/sub/a.parquet", Path(source).read_bytes())
        prepared = prepare(ImageDataConfig(uri=f"s3://{BUCKET}/raw"), storage, use_ray=False)
        assert prepared.fingerprint == dataset.fingerprint
        assert Dataset.load(prepared.store) == prepared
        rows = Reader(prepared, "validation", BlockCache(tmp_path, 10**8)).rows(0, 100)
        np.testing.assert_array_equal(rows["image"], IMAGES[rows["row_id"]])
        single = ImageDataConfig(uri=f"s3://{BUCKET}/raw/sub/*.parquet", label_column="nolabel")
        with pytest.raises(DataError,
                           match=r"no column 'nolabel' in s3://trainyard/raw/sub/a\.parquet, which has image, label"):
            prepare(single, storage, use_ray=False)
        with pytest.raises(DataError, match=r"no files in s3://trainyard/none"):
            prepare(ImageDataConfig(uri=f"s3://{BUCKET}/none"), storage, use_ray=False)
        images = IMAGES[:12_000].astype(np.float32)
        images[-1] = np.inf
        storage.write_bytes("raw/b.parquet", Path(_write(tmp_path / "b.parquet", images, LABELS[:12_000])).read_bytes())
        before = storage.files()
        with pytest.raises(DataError, match=r"row 11999 .*infinite"):
            prepare(ImageDataConfig(uri=f"s3://{BUCKET}/raw/b.parquet", image_shape="28x28"), storage, use_ray=False)
        assert storage.files() == before


def test_arrow_values_of_labels_survive_wide_classes(tmp_path: Path) -> None:
    labels = arrow_column(np.arange(3000) % 1000)
    uri = _write(tmp_path / "a.parquet", np.zeros((3000, 1, 1, 1), np.uint8), labels)
    dataset = prepare(ImageDataConfig(uri=uri), Store.open(str(tmp_path / "out")), use_ray=False)
    assert len(dataset.class_names) == 1000
    assert dataset.splits["test"].class_counts == (1,) * 1000
