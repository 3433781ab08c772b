"""Images to train on, of any amount: noise around one picture a class, so that there is something to learn."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.core.storage import Store
from jobs.common.data.dataset import SPLITS
from jobs.common.data.reader import Reader
from jobs.common.vision.augmentation import warps
from jobs.common.vision.config import AugmentConfig, ImageDataConfig
from jobs.common.vision.prepare import prepare

SIDE = 28
CLASSES = 10
_GROUP_ROWS = 20_000


def batches(rows: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(images (n, 784) uint8, labels (n,) int64) up to `rows` rows, one row group at a time."""
    pictures = np.random.default_rng(12345).integers(0, 100, (CLASSES, SIDE * SIDE), dtype=np.uint8)
    rng = np.random.default_rng(seed)
    for start in range(0, rows, _GROUP_ROWS):
        count = min(_GROUP_ROWS, rows - start)
        labels = rng.integers(0, CLASSES, count)
        yield pictures[labels] + rng.integers(0, 156, (count, SIDE * SIDE), dtype=np.uint8), labels


def write(path: Path, rows: int, seed: int = 0) -> None:
    """A Parquet file with columns image (a flat list) and label, written as a stream."""
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = pa.schema([("image", pa.list_(pa.uint8(), SIDE * SIDE)), ("label", pa.int64())])
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for images, labels in batches(rows, seed):
            column = pa.FixedSizeListArray.from_arrays(pa.array(images.reshape(-1)), SIDE * SIDE)
            writer.write_table(pa.Table.from_arrays([column, pa.array(labels)], schema=schema))


def write_splits(folder: Path, train_rows: int, other_rows: int, files: int = 1) -> Path:
    """Training rows in so many files (train-0.parquet, …), and smaller validation.parquet and test.parquet."""
    for number in range(files):
        rows = train_rows * (number + 1) // files - train_rows * number // files
        write(folder / f"train-{number}.parquet", rows, seed=number)
    for seed, name in enumerate(("validation", "test"), start=1000):
        write(folder / f"{name}.parquet", other_rows, seed)
    return folder


def write_digits(folder: Path, rows: int) -> Path:
    """The embedded digits: so many training rows, each changed in a way of its own; the other splits as they are."""
    from scipy.ndimage import affine_transform

    folder.mkdir(parents=True, exist_ok=True)
    config = ImageDataConfig()
    digits = prepare(config, Store.open(str(folder.parent / "digits-prepared")), use_ray=False)
    for split in SPLITS:
        reader = Reader.open(digits, split, config)
        known = reader.rows(0, digits.splits[split].num_rows)
        reader.close()
        images, labels = known["image"][..., 0], known["label"]
        if split == "train":
            from_row = np.arange(rows) % len(labels)
            maps = warps(np.arange(rows), AugmentConfig(), 0, 0)[:, ::-1, [1, 0, 2]]  # (y, x) instead of (x, y)
            middle = (SIDE - 1) / 2
            offsets = maps[:, :, 2] + middle - maps[:, :, :2].sum(2) * middle
            images = np.stack([affine_transform(images[at], matrix[:, :2], offset, order=1)
                               for at, matrix, offset in zip(from_row, maps, offsets, strict=True)])
            labels = labels[from_row]
        column = pa.FixedSizeListArray.from_arrays(pa.array(images.reshape(-1)), SIDE * SIDE)
        name = "train-0" if split == "train" else split
        pq.write_table(pa.table({"image": column, "label": labels}), folder / f"{name}.parquet")
    return folder


def prepared(folder: Path, storage: Path) -> Path:
    """The same folder, once its data is prepared in that storage."""
    prepare(ImageDataConfig(uri=str(folder)), Store.open(str(storage)), use_ray=False)
    return folder
