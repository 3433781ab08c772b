"""The way of a row from the node's cache into a micro-batch: parts of shuffled windows are gathered ahead, then sliced.

One background thread fills the next part of each shard while the current one is used, so a micro-batch is a view into
memory and waiting for data is the exception. Held: two parts a shard. A part is small, so that the first micro-batch is
there soon and memory is used again while it is warm; a window's blocks are brought into the cache a window ahead.
"""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from jobs.common.arrays import Array
from jobs.common.data.dataset import Columns
from jobs.common.data.length_bucketing import LengthGroups
from jobs.common.data.reader import Reader
from jobs.common.data.sampling import SamplingOrder

PART_BYTES = 16 << 20
"""Of a part's rows. The C library gives more than 32 MiB back to the system each time, and new pages cost more than
filling them."""
MicroBatches = dict[int, Columns]
"""shard → each column of the data set by name, (m, …); views, valid until the next step is taken."""


def cut(columns: Columns, max_rows: int | None) -> Iterator[Columns]:
    """A micro-batch, cut where one forward pass may not take all its rows."""
    rows = len(columns["row_id"])
    size = max_rows or rows
    for start in range(0, rows, size):
        yield {name: column[start : start + size] for name, column in columns.items()}


@dataclass(frozen=True)
class Part:
    """Successive rows of a shard's stream: from `first` up to `last`, which is not among them."""

    first: int
    last: int
    rows: Columns


class DataLoader:
    """Micro-batches of the shards that one worker owns. `wait_s`: seconds spent waiting for data so far."""

    def __init__(self, order: SamplingOrder | LengthGroups, reader: Reader, shards: tuple[int, ...]) -> None:
        self.order, self.shards, self.wait_s = order, shards, 0.0
        self._reader = reader
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="trainyard-loader")
        self._ahead: dict[int, tuple[tuple[int, int], Future[Part]]] = {}
        self._positions: dict[int, dict[tuple[int, int], npt.NDArray[np.int64]]] = {}
        self.steps_per_epoch, size = order.steps_per_epoch, order.micro_batch_size
        self._used_rows = self.steps_per_epoch * size
        """Of each shard's stream in an epoch."""
        self._part_rows = max(1, PART_BYTES // (reader.dataset.row_bytes * size)) * size

    def epoch(self, epoch: int, start_step: int = 0, at_once: int = 1) -> Iterator[tuple[int, MicroBatches]]:
        """(step within the epoch, micro-batches) from a step to the epoch's end, reached directly.

        at_once: how many steps' micro-batches are handed out together, one after the other in each shard's rows.
        """
        if start_step >= self.steps_per_epoch:
            return  # stopped after an epoch's last step: no row of it is left
        size = self.order.micro_batch_size
        streams = {shard: _Stream(self, epoch, shard, start_step * size) for shard in self.shards}
        for step in range(start_step, self.steps_per_epoch, at_once):
            rows = min(at_once, self.steps_per_epoch - step) * size
            yield step, {shard: stream.take(rows) for shard, stream in streams.items()}

    def steps(self, epoch: int, start_step: int, left_out: frozenset[int]) -> Iterator[MicroBatches]:
        """The micro-batches of one step after the other, from a step within the epoch to its end,
        without those in `left_out`."""
        return (micro_batches for step, micro_batches in self.epoch(epoch, start_step) if step not in left_out)

    def part(self, epoch: int, shard: int, row: int) -> Part:
        """One that holds a row of a shard's stream, shuffled; begins to load the one after it."""
        began = time.perf_counter()
        part = self._started(epoch, shard, row).result()
        self.wait_s += time.perf_counter() - began
        self._ahead[shard] = self._next(epoch, shard, part.last)
        return part

    def close(self) -> None:
        """Ends the background thread."""
        self._loader.shutdown(wait=True, cancel_futures=True)
        self._reader.close()

    def _started(self, epoch: int, shard: int, row: int) -> Future[Part]:
        key, future = self._ahead.pop(shard, ((-1, -1), None))
        if future is not None and key == (epoch, row):
            return future
        return self._loader.submit(self._load, epoch, shard, row, self.order.micro_batch_size)

    def _next(self, epoch: int, shard: int, row: int) -> tuple[tuple[int, int], Future[Part]]:
        after = (epoch, row) if row < self._used_rows else (epoch + 1, 0)
        return after, self._loader.submit(self._load, after[0], shard, after[1], self._part_rows)

    def _load(self, epoch: int, shard: int, row: int, rows: int) -> Part:
        """About so many rows: one micro-batch where somebody waits for the first one."""
        window = self.order.window_at(epoch, shard, row)
        first, last = self.order.window_bounds(epoch, shard, window)
        positions = self._window(epoch, shard, window, last)
        if isinstance(self.order, SamplingOrder):
            stop = min(last, row + rows - row % self.order.micro_batch_size)
            return Part(row, stop, self._reader.take(positions[row - first : stop - first]))
        group = self._reader.take(positions)
        arranged = self.order.arrange(epoch, window, group["length"])
        return Part(first, last, {name: column[arranged] for name, column in group.items()})

    def _window(self, epoch: int, shard: int, window: int, last: int) -> npt.NDArray[np.int64]:
        """Positions of a window's rows. Has the blocks of this window and of the one after it brought into the
        cache."""
        after = (epoch, window + 1) if last < self._used_rows else (epoch + 1, 0)
        known, wanted = self._positions.get(shard, {}), ((epoch, window), after)
        if wanted[-1] not in known:
            known = {each: known[each] if each in known else self.order.window(each[0], shard, each[1])
                     for each in wanted}
            self._positions[shard] = known
            for positions in known.values():
                self._reader.prefetch(positions)
        return known[epoch, window]


class _Stream:
    """One shard's rows in one epoch, from a row on."""

    def __init__(self, loader: DataLoader, epoch: int, shard: int, row: int) -> None:
        self._owner, self._epoch, self._shard, self._row = loader, epoch, shard, row
        self._part = Part(row, row, {})

    def take(self, size: int) -> Columns:
        pieces: list[Columns] = []
        while size:
            if not self._part.first <= self._row < self._part.last:
                self._part = self._owner.part(self._epoch, self._shard, self._row)
            start, stop = self._row, min(self._row + size, self._part.last)
            first = self._part.first
            pieces.append({k: v[start - first : stop - first] for k, v in self._part.rows.items()})
            size -= stop - start
            self._row = stop
        return pieces[0] if len(pieces) == 1 else _joined(pieces)


def _joined(pieces: list[Columns]) -> Columns:
    joined: dict[str, Array] = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    return joined
