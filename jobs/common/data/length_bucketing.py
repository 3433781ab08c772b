"""Rows of like length in one batch, as a part of the order: still a pure function of (seed, epoch, step, shard),
and of the data.

The order of `order.py` is cut into groups of some steps. A group's rows are sorted by length within their shard, cut
into micro-batches again, and these are put in an order that is the same for all shards: so a step's micro-batches have
like lengths on all workers, and none waits long for another.
Where a length is the same the rows stay in their shuffled order.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from jobs.common.data.counter_rng import IntArray, Purpose, raw_bits
from jobs.common.data.sampling import SamplingOrder


@dataclass(frozen=True)
class LengthGroups:
    """An order whose windows are groups of `steps` steps, arranged by length.

    It offers what a data loader asks of `SamplingOrder`.
    """

    order: SamplingOrder
    steps: int

    @property
    def micro_batch_size(self) -> int:
        return self.order.micro_batch_size

    @property
    def steps_per_epoch(self) -> int:
        return self.order.steps_per_epoch

    def window_at(self, epoch: int, shard: int, row: int) -> int:
        """Which group holds a row of a shard's stream."""
        return row // (self.steps * self.micro_batch_size)

    def window_bounds(self, epoch: int, shard: int, window: int) -> tuple[int, int]:
        """First row of a group in its shard's stream, and the row after its last;
        the epoch's last group may have fewer steps."""
        first, last = window * self.steps, min((window + 1) * self.steps, self.steps_per_epoch)
        return first * self.micro_batch_size, last * self.micro_batch_size

    def window(self, epoch: int, shard: int, window: int) -> IntArray:
        """Positions of a group's rows, not arranged yet: their lengths are known when they have been read."""
        return self.order.slice(epoch, shard, *self.window_bounds(epoch, shard, window))

    def arrange(self, epoch: int, window: int, lengths: npt.NDArray[np.integer]) -> IntArray:
        """Which row of the group comes at each place. lengths: (rows,), in the order of `window`."""
        batches = np.argsort(lengths, kind="stable").reshape(-1, self.micro_batch_size)
        keys = raw_bits(Purpose.LENGTH_GROUPS, self.order.seed, window, 0, epoch, len(batches))
        return batches[np.argsort(keys, kind="stable")].reshape(-1)
