"""The rows of an evaluation split by parts, and figures of them added up over all workers."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from jobs.common.data.dataset import Columns, SplitName
from jobs.common.training.context import TrainContext

Floats = npt.NDArray[np.float64]


def batches_of_parts(context: TrainContext, split: SplitName, size: int) -> Iterator[tuple[int, Columns]]:
    """(part, rows) of this worker's share of a split, of at most `size` rows."""
    reader = context.reader(split)
    for part in context.parts:
        rows = context.part_range(split, part)
        for start in rows[::size]:
            yield part, reader.rows(start, min(rows.stop, start + size))


class PartSums:
    """Sums by part of a split (`TrainContext.parts`), so that the order in which they are added up depends on the parts
    alone, and not on who has judged which."""

    def __init__(self, context: TrainContext, size: int) -> None:
        """size: how many figures there are."""
        self._sums = np.zeros((context.num_parts, size))

    def add(self, part: int, figures: Sequence[float] | Floats) -> None:
        """Adds those of a batch."""
        self._sums[part] += figures

    def total(self, total: Callable[[Floats], Floats]) -> Floats:
        """(size,), over all parts. total: the sum over all workers of an array; each adds nothing to others' parts."""
        return total(self._sums.ravel()).reshape(self._sums.shape).sum(axis=0)
