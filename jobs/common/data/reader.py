"""Rows of a prepared split at any positions, through the node-local cache."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import os
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.core.errors import DataError
from jobs.common.arrays import Array
from jobs.common.config import DataConfig
from jobs.common.data.arrow import RecordBatch, buffers_of, numpy_column
from jobs.common.data.cache import BlockCache
from jobs.common.data.dataset import Columns, Dataset, SplitName
from jobs.common.picture import decode_picture
from jobs.common.picture_rule import PictureRule

_OPEN_BLOCKS = 72
"""As many as the rows of a window of 128 MiB lie in; each is a memory-mapped file of about 4 MB."""
_WIDE_ROW_BYTES = 4096
_PREFETCH_BLOCKS = 64
_PREFETCH_THREADS = 2
_DECODING_THREADS = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4)


class Reader:
    """Rows of one split at any positions. At most 72 blocks are held open, all of them memory-mapped.

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
        self._decoders: ThreadPoolExecutor | None = None
        self._pending: dict[int, Future[None]] = {}

    @staticmethod
    def open(dataset: Dataset, split: SplitName, data: DataConfig) -> "Reader":
        """A reader of one split, through the node-local cache that the config asks for."""
        return Reader(dataset, split, BlockCache.open(data.cache_dir, data.cache_gb))

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
        files: dict[str, list[tuple[int, object]]] = {}
        for lines in np.split(order, starts[1:]):
            columns = self._block(int(blocks[lines[0]]))
            for name, column in columns.items():
                if column.dtype == object:
                    files.setdefault(name, []).extend(zip(lines.tolist(), column[offsets[lines]], strict=True))
                else:
                    _gather(rows[name], lines, column, offsets[lines])
        for name, of_rows in files.items():
            self._decode(of_rows, rows[name])
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
        blocks = self._layout.locate(np.asarray(positions))[0]
        wanted = np.flatnonzero(np.bincount(blocks))  # `np.unique` would import `numpy.ma`
        most = min(_PREFETCH_BLOCKS, self.cache.cap_bytes // (4 * self._block_rows * self.dataset.row_bytes))
        for block in (int(b) for b in wanted):
            if len(self._pending) >= most:
                return
            if block not in self._pending and block not in self._open:
                self._pending[block] = self._pool.submit(self.cache.ensure, self._cache_name(block),
                                                         partial(self._fetch, block))

    def close(self) -> None:
        """Ends the prefetching and lets the open blocks go."""
        for pool in (self._pool, self._decoders):
            if pool is not None:
                pool.shutdown(wait=True, cancel_futures=True)
        self._pool = self._decoders = None
        self._pending.clear()
        self._open.clear()

    def _decode(self, files: Sequence[tuple[int, Any]], out: Array) -> None:
        """Puts the pixels of each (row of `out`, picture file) there, many at a time."""
        rule = PictureRule.from_dict(self.dataset.details["picture"])

        def decode(part: Sequence[tuple[int, Any]]) -> None:
            for row, file in part:
                out[row] = decode_picture(file.to_pybytes(), rule)

        if self._decoders is None:
            self._decoders = ThreadPoolExecutor(_DECODING_THREADS, thread_name_prefix="decode")
        for _ in self._decoders.map(decode, (files[first::_DECODING_THREADS] for first in range(_DECODING_THREADS))):
            pass

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
        batch = self.cache.get(self._cache_name(index), partial(self._fetch, index))
        self._open[index] = self._views(batch)
        if len(self._open) > _OPEN_BLOCKS:
            self._open.popitem(last=False)
        return self._open[index]

    def _cache_name(self, index: int) -> str:
        """Of its content: sets of one fingerprint may differ in how they are cut, and in what is kept of pictures."""
        first, end = self._layout.bounds(index)
        kept = "-files" if any(column.encoded for column in self.dataset.columns) else ""
        return f"{self.dataset.fingerprint[:32]}{kept}-{self.split}-{first}-{end}.arrow"

    def _fetch(self, index: int) -> RecordBatch:
        import pyarrow.parquet as pq

        path = f"{self.dataset.blocks}/{self.split}/{self._layout.path(index)}"
        try:
            with self.dataset.store.reading(path) as file:
                raw = file.read()
            table = pq.ParquetFile(pa.BufferReader(raw), page_checksum_verification=True).read(use_threads=False)
            first, end = self._layout.bounds(index)
            if table.num_rows != end - first:
                raise pa.ArrowInvalid(f"{table.num_rows} rows and not {end - first}")
        except (OSError, pa.ArrowException) as error:
            store = self.dataset.store
            raise DataError(f"prepared data {store.location(path)} is missing or damaged ({error}): delete the folder "
                            f"{store.location()}, and the data is prepared again") from error
        return table.combine_chunks().to_batches()[0]

    def _views(self, batch: RecordBatch) -> Columns:
        """NumPy views of a block; of a column of files, their bytes as Arrow buffers."""
        return {column.name: buffers_of(batch.column(column.name)) if column.encoded
                else numpy_column(batch.column(column.name), column.dtype).reshape(-1, *column.shape) if column.shape
                else numpy_column(batch.column(column.name)) for column in self.dataset.columns}


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
    elif column.nbytes >= _WIDE_ROW_BYTES * len(column):
        for line, row in zip(lines.tolist(), rows.tolist(), strict=True):
            target[line] = column[row]  # `column[rows]` would copy them twice, the first time into new pages
    else:
        target[lines] = column[rows]
