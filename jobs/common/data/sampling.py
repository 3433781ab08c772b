"""Contract 2: in which order rows are seen, as a pure function of (seed, epoch, step, shard).

Words. A *position* is a row's index in the training split. Blocks of `block_rows` positions are dealt, in a fixed
random order, to V *shards* of equal size (within one row). In each epoch a shard's *chunks* (the pieces of blocks that
it owns) are permuted and grouped into *windows* of about `window_rows` rows; rows are shuffled inside a window. A
*micro-batch* is the next `micro_batch_size` rows of one shard; a global step is the micro-batches of all V shards.
Nothing depends on a rank, on the number of workers, or on what ran before, so any (epoch, step) is reached directly,
in O(window) memory.

    positions ──deal──► shard 0: │chunk 4│chunk 0│chunk 7│ …   windows ──shuffle──► micro-batch of step 0, 1, 2, …
                        shard 1: │chunk 1│chunk 6│ …
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from jobs.common.data.counter_rng import IntArray, Permutation, Purpose, raw_bits


def shards_of(rank: int, world_size: int, num_shards: int) -> tuple[int, ...]:
    """The shards that a worker owns: ceil(V/W) at most."""
    return tuple(range(rank, num_shards, world_size))


@dataclass(frozen=True, kw_only=True)
class SamplingOrder:
    """The order of one run's training rows."""

    num_rows: int
    num_shards: int
    global_batch_size: int
    block_rows: int
    window_rows: int
    seed: int

    @property
    def micro_batch_size(self) -> int:
        return self.global_batch_size // self.num_shards

    @property
    def steps_per_epoch(self) -> int:
        """Global steps in an epoch: the last, partial global batch is dropped."""
        return self.num_rows // self.global_batch_size

    def positions(self, epoch: int, step: int, shard: int) -> IntArray:
        """(micro_batch_size,) positions of one shard's micro-batch at a step of an epoch."""
        start = step * self.micro_batch_size
        return self.slice(epoch, shard, start, start + self.micro_batch_size)

    def slice(self, epoch: int, shard: int, start: int, stop: int) -> IntArray:
        """Positions of rows start … stop-1 of a shard's stream in an epoch."""
        pieces: list[IntArray] = []
        while start < stop:
            window = self.window_at(epoch, shard, start)
            first, last = self.window_bounds(epoch, shard, window)
            pieces.append(self.window(epoch, shard, window)[start - first : min(stop, last) - first])
            start = min(stop, last)
        return np.concatenate(pieces)

    def window_at(self, epoch: int, shard: int, row: int) -> int:
        """Which window holds a row of a shard's stream."""
        chunks = self._chunks(epoch, shard)
        assert 0 <= row < chunks.stop - chunks.start, f"row {row} of a shard of {chunks.stop - chunks.start}"
        # Chunks are full but for two at most, so the window lies at or up to two windows after the naive one.
        window = row // (self._chunks_per_window * self.block_rows)
        while chunks.offset((window + 1) * self._chunks_per_window) <= row:
            window += 1
        return window

    def window_bounds(self, epoch: int, shard: int, window: int) -> tuple[int, int]:
        """First row of a window in its shard's stream, and the row after its last."""
        chunks = self._chunks(epoch, shard)
        return chunks.offset(window * self._chunks_per_window), chunks.offset((window + 1) * self._chunks_per_window)

    def window(self, epoch: int, shard: int, window: int) -> IntArray:
        """Positions of a window's rows, shuffled."""
        chunks = self._chunks(epoch, shard)
        first = window * self._chunks_per_window
        places = np.arange(first, min(first + self._chunks_per_window, chunks.count), dtype=np.int64)
        rows = np.concatenate([np.arange(*chunks.bounds(chunk), dtype=np.int64) for chunk in chunks.at(places)])
        keys = raw_bits(Purpose.ROWS, self.seed, window, shard, epoch, len(rows))
        return self._undeal(rows[np.argsort(keys, kind="stable")])

    @cached_property
    def _chunks_per_window(self) -> int:
        return max(1, self.window_rows // self.block_rows)

    @cached_property
    def _deal(self) -> Permutation:
        return Permutation.of(self.num_rows // self.block_rows, Purpose.DEAL, self.seed)

    def _undeal(self, dealt: IntArray) -> IntArray:
        """From the dealt order of rows to positions; the last block, if it is short, stays where it is."""
        blocks, within = dealt // self.block_rows, dealt % self.block_rows
        full = blocks < self._deal.size
        blocks[full] = self._deal.inverse(blocks[full])
        return blocks * self.block_rows + within

    def _chunks(self, epoch: int, shard: int) -> "_Chunks":
        start = self.num_rows * shard // self.num_shards
        stop = self.num_rows * (shard + 1) // self.num_shards
        return _chunks(start, stop, self.block_rows, self.seed, epoch, shard)


@dataclass(frozen=True)
class _Chunks:
    """The chunks of one shard in one epoch.
    The first and the last may be shorter than a block, all others are whole."""

    start: int
    stop: int
    block_rows: int
    permutation: Permutation
    first_place: int
    last_place: int

    @property
    def count(self) -> int:
        return self.permutation.size

    def bounds(self, chunk: int) -> tuple[int, int]:
        """A chunk's first row in the dealt order, and the row after its last."""
        block = self.start // self.block_rows + int(chunk)
        return max(self.start, block * self.block_rows), min(self.stop, (block + 1) * self.block_rows)

    def at(self, places: IntArray) -> IntArray:
        """The chunks at these places of the epoch's permutation."""
        return self.permutation.inverse(places)

    def offset(self, place: int) -> int:
        """How many rows of the shard's stream come before a place."""
        if place >= self.count:
            return self.stop - self.start
        rows = place * self.block_rows
        for chunk, at in ((0, self.first_place), (self.count - 1, self.last_place)):
            if at < place and (chunk == 0 or self.count > 1):
                first, last = self.bounds(chunk)
                rows -= self.block_rows - (last - first)
        return rows


@lru_cache(maxsize=4096)
def _chunks(start: int, stop: int, block_rows: int, seed: int, epoch: int, shard: int) -> _Chunks:
    count = max(1, -(-stop // block_rows) - start // block_rows)
    permutation = Permutation.of(count, Purpose.CHUNKS, seed, epoch, shard)
    ends = permutation.forward(np.array([0, count - 1], dtype=np.int64))
    return _Chunks(start, stop, block_rows, permutation, int(ends[0]), int(ends[1]))


def resolve_window_rows(wanted: int, num_shards: int, row_bytes: int, block_rows: int) -> int:
    """The window that is used: as wanted, but no more than 128 MiB over all shards, and at least one block.

    A function of V, never of the number of workers, so that the order is not.
    """
    return max(block_rows, min(wanted, (128 << 20) // num_shards // max(1, row_bytes)))
