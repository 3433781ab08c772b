"""The way of a row from the node's cache into a micro-batch: whole shuffled windows are gathered ahead, then sliced.

One background thread fills the next window of each shard while the current one is used, so a micro-batch is a view into
memory and waiting for data is the exception. Held: two windows a shard, see `order.resolve_window_rows`.
"""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from jobs.common.arrays import Array
from jobs.common.data.dataset import Columns
from jobs.common.data.length_bucketing import LengthGroups
from jobs.common.data.reader import Reader
from jobs.common.data.sampling import SamplingOrder

MicroBatches = dict[int, Columns]
"""shard → each column of the data set by name, (m, …); views, valid until the next step is taken."""


def cut(columns: Columns, max_rows: int | None) -> Iterator[Columns]:
    """A micro-batch, cut where one forward pass may not take all its rows."""
    rows = len(columns["row_id"])
    size = max_rows or rows
    for start in range(0, rows, size):
        yield {name: column[start : start + size] for name, column in columns.items()}


class DataLoader:
    """Micro-batches of the shards that one worker owns. `wait_s`: seconds spent waiting for data so far."""

    def __init__(self, order: SamplingOrder | LengthGroups, reader: Reader, shards: tuple[int, ...]) -> None:
        self.order, self.shards, self.wait_s = order, shards, 0.0
        self._reader = reader
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="trainyard-loader")
        self._ahead: dict[int, tuple[tuple[int, int], Future[Columns]]] = {}

    def epoch(self, epoch: int, start_step: int = 0, at_once: int = 1) -> Iterator[tuple[int, MicroBatches]]:
        """(step within the epoch, micro-batches) from a step to the epoch's end, reached directly.

        at_once: how many steps' micro-batches are handed out together, one after the other in each shard's rows.
        """
        if start_step >= self.order.steps_per_epoch:
            return  # stopped after an epoch's last step: no row of it is left
        size = self.order.micro_batch_size
        streams = {shard: _Stream(self, epoch, shard, start_step * size) for shard in self.shards}
        for step in range(start_step, self.order.steps_per_epoch, at_once):
            rows = min(at_once, self.order.steps_per_epoch - step) * size
            yield step, {shard: stream.take(rows) for shard, stream in streams.items()}

    @property
    def steps_per_epoch(self) -> int:
        return self.order.steps_per_epoch

    def steps(self, epoch: int, start_step: int, left_out: frozenset[int]) -> Iterator[MicroBatches]:
        """The micro-batches of one step after the other, from a step within the epoch to its end,
        without those in `left_out`."""
        return (micro_batches for step, micro_batches in self.epoch(epoch, start_step) if step not in left_out)

    def window(self, epoch: int, shard: int, window: int) -> Columns:
        """The rows of a window, shuffled; begins to load the window after it."""
        began = time.perf_counter()
        rows = self._started(epoch, shard, window).result()
        self.wait_s += time.perf_counter() - began
        self._ahead[shard] = self._next(epoch, shard, window)
        return rows

    def close(self) -> None:
        """Ends the background thread."""
        self._loader.shutdown(wait=True, cancel_futures=True)
        self._reader.close()

    def _started(self, epoch: int, shard: int, window: int) -> Future[Columns]:
        key, future = self._ahead.pop(shard, ((-1, -1), None))
        if future is not None and key == (epoch, window):
            return future
        return self._loader.submit(self._load, epoch, shard, window)

    def _next(self, epoch: int, shard: int, window: int) -> tuple[tuple[int, int], Future[Columns]]:
        used = self.order.steps_per_epoch * self.order.micro_batch_size
        last = self.order.window_bounds(epoch, shard, window)[1]
        after = (epoch, window + 1) if last < used else (epoch + 1, 0)
        return after, self._loader.submit(self._load, after[0], shard, after[1])

    def _load(self, epoch: int, shard: int, window: int) -> Columns:
        positions = self.order.window(epoch, shard, window)
        self._reader.prefetch(positions)
        rows = self._reader.take(positions)
        if isinstance(self.order, SamplingOrder):
            return rows
        arranged = self.order.arrange(epoch, window, rows["length"])
        return {name: column[arranged] for name, column in rows.items()}


class _Stream:
    """One shard's rows in one epoch, from a row on."""

    def __init__(self, loader: DataLoader, epoch: int, shard: int, row: int) -> None:
        self._owner, self._epoch, self._shard, self._row = loader, epoch, shard, row
        self._window = loader.order.window_at(epoch, shard, row)
        self._first = self._last = -1
        self._rows: Columns = {}

    def take(self, size: int) -> Columns:
        pieces: list[Columns] = []
        while size:
            if not self._first <= self._row < self._last:
                self._open()
            stop = min(self._row + size, self._last)
            pieces.append({k: v[self._row - self._first : stop - self._first] for k, v in self._rows.items()})
            size -= stop - self._row
            self._row = stop
        return pieces[0] if len(pieces) == 1 else _joined(pieces)

    def _open(self) -> None:
        self._window += 1 if self._last >= 0 else 0
        self._first, self._last = self._owner.order.window_bounds(self._epoch, self._shard, self._window)
        self._rows = self._owner.window(self._epoch, self._shard, self._window)


def _joined(pieces: list[Columns]) -> Columns:
    joined: dict[str, Array] = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    return joined
