"""Writing a prepared split: blocks of a fixed number of rows as Parquet, with the content's hash and statistics.

Blocks are encoded and written by a few threads while the next ones fill;
the hash depends on the rows alone, not on how they are cut into blocks.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import functools
import hashlib
import math
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.core.documents import JsonObject
from cluster.core.storage import Store
from jobs.common.arrays import Array
from jobs.common.data.arrow import arrow_column
from jobs.common.data.block_layout import BlockLayout
from jobs.common.data.dataset import Column, Columns, Split

BLOCK_BYTES = 4_000_000
"""Of the arrays of a block's rows, however they are kept."""
FILES = "files"
"""Beside the columns that a writer takes: the picture file of each row, where they are what is kept."""
Measure = Callable[[Columns], "Moments"]
_WRITES_AT_ONCE = 4
_MOST_LINES = 1 << 16
"""Of pixels, whose squares are summed in 32 bits."""


@dataclass(frozen=True)
class Moments:
    """Rows x pixels seen so far of each channel, their mean, and the sum of squared distances from it."""

    count: int
    mean: npt.NDArray[np.float64]
    squares: npt.NDArray[np.float64]

    @staticmethod
    def of(images: Array) -> "Moments":
        """Of (n, H, W, C), n > 0, in float64, or exactly of bytes; an eighth at a time, which bounds the memory."""
        step = max(1, min(-(-len(images) // 8), _MOST_LINES // images.shape[1]))
        exact = images.dtype == np.uint8 and images.shape[1] <= _MOST_LINES
        of_part = Moments._of_bytes if exact else Moments._of
        return functools.reduce(Moments.merged, (of_part(images[i:i + step]) for i in range(0, len(images), step)))

    @staticmethod
    def _of_bytes(images: Array) -> "Moments":
        """In whole numbers, many times as fast."""
        channels = images.shape[-1]
        lines = images.reshape(-1, images.shape[-2] * channels)
        count = lines.size // channels
        sums = lines.sum(axis=0, dtype=np.uint32).reshape(-1, channels).sum(axis=0, dtype=np.int64)
        squares = np.square(lines, dtype=np.uint16).sum(axis=0, dtype=np.uint32)
        squares = squares.reshape(-1, channels).sum(axis=0, dtype=np.int64)
        around = [(count * of_squares - of_sum**2) / count
                  for of_sum, of_squares in zip(sums.tolist(), squares.tolist(), strict=True)]
        return Moments(count, sums / count, np.array(around))

    @staticmethod
    def _of(images: Array) -> "Moments":
        pixels = images.reshape(-1, images.shape[-1]).astype(np.float64)
        mean = pixels.mean(axis=0)
        pixels -= mean
        return Moments(len(pixels), mean, np.square(pixels, out=pixels).sum(axis=0))

    def merged(self, other: "Moments") -> "Moments":
        """Both together (Chan et al. 1979)."""
        count = self.count + other.count
        delta = other.mean - self.mean
        squares = self.squares + other.squares + np.square(delta) * (self.count * other.count / count)
        return Moments(count, self.mean + delta * (other.count / count), squares)

    def to_json(self) -> JsonObject:
        """Plain values that give the same again."""
        return {"count": self.count, "mean": self.mean.tolist(), "squares": self.squares.tolist()}

    @staticmethod
    def from_json(values: JsonObject) -> "Moments":
        return Moments(values["count"], np.array(values["mean"]), np.array(values["squares"]))

    @property
    def std(self) -> tuple[float, ...]:
        """1 where the channel is constant."""
        return tuple(math.sqrt(s / self.count) or 1.0 for s in self.squares)


class SplitWriter:
    """Takes rows in order and writes them to `store`/NUMBER.parquet, with at most a few blocks in memory.

    num_classes: 0 where there is no `label`.
    measure: is given each block, in a thread; `measured` has what it returned, in order. hashed: whether there is a
    `digest`.
    """

    def __init__(self, store: Store, folder: str, columns: Sequence[Column], num_classes: int, pool: ThreadPoolExecutor,
                 measure: Measure | None = None, *, hashed: bool = True) -> None:
        self.columns = tuple(columns)
        self.block_rows = max(1, BLOCK_BYTES // sum(c.row_bytes for c in columns if c.shape))
        self.num_rows = 0
        self.measured: list[Moments] = []
        self._store, self._folder, self._pool, self._measure = store, folder, pool, measure
        self._counts = np.zeros(num_classes, np.int64)
        self._hashes = {column.name: hashlib.sha256() for column in columns if hashed}
        self._kept = any(column.encoded for column in columns)
        self._writes: deque[Future[Moments | None]] = deque()
        self._blocks = self._fill = 0
        self._block = self._empty()

    def append(self, rows: Columns, chosen: npt.NDArray[np.int64] | None = None) -> None:
        """Each column's rows, in the order of row ids, or those that are chosen; of an encoded column its array, and
        under `FILES` what is written."""
        done, total = 0, len(rows["row_id"]) if chosen is None else len(chosen)
        while done < total:
            n = min(total - done, self.block_rows - self._fill)
            for name, column in self._block.items():
                place = column[self._fill:self._fill + n]
                if chosen is None:
                    place[...] = rows[name][done:done + n]
                else:
                    np.take(rows[name], chosen[done:done + n], axis=0, out=place, mode="clip")
            self._fill, done = self._fill + n, done + n
            if self._fill == self.block_rows:
                self._flush()

    def finish(self) -> Split:
        """Writes what is left and waits for all of it. Raises: what the storage raises."""
        if self._fill:
            self._flush()
        while self._writes:
            self._settle()
        return Split(self.num_rows, self.block_rows, tuple(int(n) for n in self._counts))

    def digest(self) -> str:
        """Of all rows so far, independent of blocks."""
        return "".join(h.hexdigest() for h in self._hashes.values())

    def _flush(self) -> None:
        block = {name: column[:self._fill] for name, column in self._block.items()}
        for name, of_column in self._hashes.items():
            of_column.update(block[name].data)
        if len(self._counts):
            self._counts += np.bincount(block["label"], minlength=len(self._counts))
        if len(self._writes) >= _WRITES_AT_ONCE:
            self._settle()
        self._writes.append(self._pool.submit(self._write, self._blocks, block))
        self.num_rows += self._fill
        self._blocks, self._fill, self._block = self._blocks + 1, 0, self._empty()

    def _settle(self) -> None:
        """In the order of blocks, so that the statistics never depend on which write was faster."""
        if (measured := self._writes.popleft().result()) is not None:
            self.measured.append(measured)

    def _write(self, index: int, block: Columns) -> Moments | None:
        table = _table(block, self.columns)
        codecs: Any = {column.name: _compression(column) for column in self.columns}
        with self._store.writing(f"{self._folder}/{BlockLayout.file(index)}") as sink:
            pq.write_table(table, sink, compression=codecs, use_dictionary=False, write_statistics=False,
                           write_page_checksum=True)
        return self._measure(block) if self._measure else None

    def _empty(self) -> Columns:
        files = {FILES: np.empty(self.block_rows, object)} if self._kept else {}
        return {c.name: np.empty((self.block_rows, *c.shape), c.dtype) for c in self.columns} | files


def _compression(column: Column) -> str:
    """What pays: of tokens, zstd leaves two thirds of what lz4 does, and is written as fast; of photographs no less."""
    if column.encoded:
        return "none"
    return "zstd" if np.dtype(column.dtype).itemsize > 1 else "lz4"


def _table(block: Columns, columns: Sequence[Column]) -> object:
    arrays = [_arrow(block, column) for column in columns]
    metadata = {column.name: f"{column.dtype} {'x'.join(map(str, column.shape))}" for column in columns if column.shape}
    return pa.Table.from_arrays(arrays, [column.name for column in columns], metadata=metadata)


def _arrow(block: Columns, column: Column) -> object:
    values = block[column.name]
    if column.encoded:
        return pa.array(block[FILES].tolist(), pa.large_binary())
    if column.shape:
        return pa.Array.from_buffers(pa.binary(column.row_bytes), len(values), [None, pa.py_buffer(values)])
    return arrow_column(values)
