"""Contract 2, reading: a prepared data set, and rows of it at any positions, through the node-local cache.

A prepared set is a folder of storage: `dataset.json`, and Parquet blocks of rows for each split (block_layout.py). A
row's `position` is its index in its split; its `row_id` is its index over all sources sorted by path, which no split
changes. A block's columns are what the kind of data needs, such as an image or tokens (fixed_size_binary, the raw
little-endian values: the same bytes as a list of numbers, read from Parquet 15 times as fast),
and row_id int64 at the end.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import json
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.core.documents import JsonObject, check_version, parse_json
from cluster.core.errors import DataError
from cluster.core.storage import Store
from jobs.common.arrays import Array
from jobs.common.config import DataConfig
from jobs.common.data.arrow import RecordBatch, numpy_column
from jobs.common.data.block_layout import BlockLayout
from jobs.common.data.cache import BlockCache

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
INDEX_FILE = "dataset.json"
VERSION = 3
"""The format of that file; what version 2 made, which had no pieces, is read. What is older is prepared again."""
Columns = dict[str, Array]

_OPEN_BLOCKS = 8
_PREFETCH_BLOCKS = 64
_PREFETCH_THREADS = 2


@dataclass(frozen=True)
class Column:
    """One column of a data set: a number a row (`shape` is empty; read as int64), or an array of one size."""

    name: str
    dtype: str
    shape: tuple[int, ...] = ()

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize

    def empty(self, rows: int) -> Array:
        """Room for rows of it in memory."""
        return np.empty((rows, *self.shape), self.dtype if self.shape else np.int64)


@dataclass(frozen=True)
class Split:
    """Rows of one split; all blocks of a piece have `block_rows` rows but the last, which may have fewer."""

    num_rows: int
    block_rows: int
    class_counts: tuple[int, ...] = ()
    """Rows of each class; empty where there are no classes."""
    pieces: tuple[int, ...] = ()
    """Rows of each piece that was written for itself; empty where one writer wrote all."""

    @property
    def layout(self) -> BlockLayout:
        """Where its rows lie."""
        return BlockLayout(self.num_rows, self.block_rows, self.pieces)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A prepared data set, as `dataset.json` describes it."""

    store: Store
    """The folder of the prepared set."""
    blocks: str
    """Folder of the blocks, inside it: one for each time the set was built."""
    fingerprint: str
    """SHA-256 of the content: columns, details, classes, and each split's rows."""
    splits: dict[SplitName, Split]
    columns: tuple[Column, ...]
    class_names: tuple[str, ...] = ()
    details: JsonObject = field(default_factory=JsonObject)
    """What the kind of data adds, as plain JSON values: of images their shape and statistics, of text its tokenizer.
    What begins with `_` is for programs alone: `describe` leaves it out."""

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return sum(column.row_bytes for column in self.columns)

    def has(self, fingerprint: str) -> bool:
        """Whether its content has this fingerprint, perhaps as an earlier version computed it."""
        return fingerprint in (self.fingerprint, self.details.get("_older_fingerprint"))

    @staticmethod
    def load(store: Store) -> "Dataset":
        """The set in a folder.

        Raises: FileNotFoundError if there is none, DataError if its description is damaged, NewerVersionError.
        """
        text = store.read_text(INDEX_FILE)
        try:
            version = parse_json(text, _Version).version
            check_version(store.location(INDEX_FILE), version, VERSION,
                          "pass another --run.storage to prepare it again")
            return _from_json(store, parse_json(text, _Stored))
        except ValueError as error:
            raise DataError(f"{store.location(INDEX_FILE)} is damaged ({error}): the data is prepared again by the "
                            "next run that needs it") from error

    def to_json(self) -> str:
        """The text of `dataset.json`."""
        fields = {key: value for key, value in vars(self).items() if key not in ("store", "splits", "columns")}
        splits = {name: asdict(split) for name, split in self.splits.items()}
        columns = [asdict(column) for column in self.columns]
        return json.dumps({"version": VERSION, **fields, "columns": columns, "splits": splits})

    def describe(self) -> JsonObject:
        """For run.json, the artifact and the report: what the data is, without where it lies."""
        shown = {name: value for name, value in self.details.items() if not name.startswith("_")}
        known: JsonObject = {"fingerprint": self.fingerprint, **shown,
                                 "rows": {name: split.num_rows for name, split in self.splits.items()}}
        if self.class_names:
            known |= {"classes": list(self.class_names),
                      "class_counts": {name: list(split.class_counts) for name, split in self.splits.items()}}
        return known

    def reader(self, split: SplitName, data: DataConfig) -> "Reader":
        """A reader of one split, through the node-local cache that the config asks for."""
        return Reader(self, split, BlockCache.open(data.cache_dir, data.cache_gb))

    def block_path(self, split: SplitName, index: int) -> str:
        """A block's path inside `store`."""
        return f"{self.blocks}/{split}/{self.splits[split].layout.path(index)}"


class Reader:
    """Rows of one split at any positions. At most a few blocks are held open, all of them memory-mapped.

    Not for several threads at once. `close` ends its prefetching.
    """

    def __init__(self, dataset: Dataset, split: SplitName, cache: BlockCache) -> None:
        self.dataset, self.cache = dataset, cache
        self.split: SplitName = split
        self.num_rows = dataset.splits[split].num_rows
        self._block_rows = dataset.splits[split].block_rows
        self._layout = dataset.splits[split].layout
        self._open: OrderedDict[int, Columns] = OrderedDict()
        self._pool: ThreadPoolExecutor | None = None
        self._pending: dict[int, Future[None]] = {}

    def take(self, positions: npt.NDArray[np.int64], out: Columns | None = None) -> Columns:
        """Rows in the order of `positions` (n,), each in [0, num_rows), repeats allowed.

        Returns each column by name: arrays (n, …) of its dtype, numbers (n,) int64, among them "row_id"; written into
        `out` where it is given (arrays of at least n rows; views of their first n are returned). Raises: DataError if a
        block in storage is missing or damaged; what the cache raises.
        """
        rows = self._allocated(len(positions), out)
        if not len(positions):
            return rows
        self._check(positions)
        blocks, offsets = self._layout.locate(positions)
        order = np.argsort(blocks, kind="stable")
        starts = np.flatnonzero(np.diff(blocks[order], prepend=-1))
        for lines in np.split(order, starts[1:]):
            columns = self._block(int(blocks[lines[0]]))
            for name, column in columns.items():
                _gather(rows[name], lines, column, offsets[lines])
        return rows

    def rows(self, start: int, stop: int) -> Columns:
        """Rows [start, stop) of the split, as `take`."""
        return self.take(np.arange(start, stop, dtype=np.int64))

    def prefetch(self, positions: npt.NDArray[np.int64]) -> None:
        """Starts bringing the blocks that hold `positions` into the cache, in the background, and returns at once.

        At most 64 blocks, and a quarter of the cache, wait at a time;
        the rest is read when it is asked for, and an error is raised then, too.
        """
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_PREFETCH_THREADS, thread_name_prefix="prefetch")
        self._pending = {block: task for block, task in self._pending.items() if not task.done()}
        wanted = np.unique(self._layout.locate(np.asarray(positions))[0])
        most = min(_PREFETCH_BLOCKS, self.cache.cap_bytes // (4 * self._block_rows * self.dataset.row_bytes))
        for block in (int(b) for b in wanted):
            if len(self._pending) >= most:
                return
            if block not in self._pending and block not in self._open:
                self._pending[block] = self._pool.submit(self._ensure, block)

    def close(self) -> None:
        """Ends the prefetching and lets the open blocks go."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = None
        self._pending.clear()
        self._open.clear()

    def _allocated(self, n: int, out: Columns | None) -> Columns:
        if out is not None:
            return {column.name: out[column.name][:n] for column in self.dataset.columns}
        return {column.name: column.empty(n) for column in self.dataset.columns}

    def _check(self, positions: npt.NDArray[np.int64]) -> None:
        low, high = int(positions.min()), int(positions.max())
        if low < 0 or high >= self.num_rows:
            raise IndexError(f"positions {low} to {high} of the {self.num_rows} {self.split} rows")

    def _block(self, index: int) -> Columns:
        if index in self._open:
            self._open.move_to_end(index)
            return self._open[index]
        task = self._pending.pop(index, None)
        if task is not None and not task.cancel():
            task.exception()  # wait for it; if it failed, the next line says why
        batch = self.cache.get(self._cache_name(index), lambda: self._fetch(index))
        self._open[index] = self._views(batch)
        if len(self._open) > _OPEN_BLOCKS:
            self._open.popitem(last=False)
        return self._open[index]

    def _ensure(self, index: int) -> None:
        self.cache.ensure(self._cache_name(index), lambda: self._fetch(index))

    def _cache_name(self, index: int) -> str:
        return f"{self.dataset.fingerprint[:32]}-{self._block_rows}-{self.split}-{index}.arrow"

    def _fetch(self, index: int) -> RecordBatch:
        import pyarrow.parquet as pq

        path = f"{self.dataset.blocks}/{self.split}/{self._layout.path(index)}"
        try:
            with self.dataset.store.reading(path) as file:
                raw = file.read()
            table = pq.ParquetFile(pa.BufferReader(raw), page_checksum_verification=True).read(use_threads=False)
            rows = self._layout.rows(index)
            if table.num_rows != rows:
                raise pa.ArrowInvalid(f"{table.num_rows} rows and not {rows}")
        except (OSError, pa.ArrowException) as error:
            store = self.dataset.store
            raise DataError(f"prepared data {store.location(path)} is missing or damaged ({error}): delete the folder "
                            f"{store.location()}, and the data is prepared again") from error
        return table.combine_chunks().to_batches()[0]

    def _views(self, batch: RecordBatch) -> Columns:
        """NumPy views of a block."""
        return {column.name: numpy_column(batch.column(column.name), column.dtype).reshape(-1, *column.shape)
                if column.shape
                else numpy_column(batch.column(column.name)) for column in self.dataset.columns}


@dataclass(frozen=True, kw_only=True)
class _Version:
    version: int


@dataclass(frozen=True, kw_only=True)
class _Stored(_Version):
    """The fields of dataset.json."""

    splits: dict[SplitName, Split]
    columns: tuple[Column, ...]
    class_names: tuple[str, ...]
    blocks: str
    fingerprint: str
    details: JsonObject


def _from_json(store: Store, stored: _Stored) -> Dataset:
    """Raises: ValueError."""
    if set(stored.splits) != set(SPLITS):
        raise ValueError(f"it has the splits {', '.join(stored.splits)}, not {', '.join(SPLITS)}")
    return Dataset(store=store, splits=stored.splits, columns=stored.columns, class_names=stored.class_names,
                   blocks=stored.blocks, fingerprint=stored.fingerprint, details=stored.details)


def _gather(target: Array, lines: Array, column: Array, rows: Array) -> None:
    """target[lines] = column[rows], with one copy where the lines are a whole range."""
    if lines[-1] - lines[0] + 1 == len(lines):
        part = target[lines[0]:lines[-1] + 1]
        if rows[-1] - rows[0] + 1 == len(rows) and bool(np.all(np.diff(rows) == 1)):
            part[...] = column[rows[0]:rows[-1] + 1]
        elif part.dtype == column.dtype:
            np.take(column, rows, axis=0, out=part, mode="clip")
        else:
            part[...] = column[rows]
    else:
        target[lines] = column[rows]
