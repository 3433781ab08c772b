"""Some rows of a prepared set that stand for all: few in number, bytes and blocks read, and always the same ones."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from jobs.common.config import DataConfig
from jobs.common.data.dataset import SPLITS, Columns, Dataset, Split, SplitName
from jobs.common.data.reader import Reader

MOST_ROWS, MOST_BYTES = 2000, 32 << 20
"""Of the training split; of each other one a quarter."""
_RUNS = 48
"""In how many places a split is looked at that is too large to be read all over."""


@dataclass(frozen=True)
class RowSample:
    """Rows of all splits, one after the other; each array has one value a row."""

    splits: tuple[SplitName, ...]
    columns: Columns

    @staticmethod
    def of(dataset: Dataset, data: DataConfig) -> "RowSample":
        """At most 2,000 training rows, or 32 MB of them, and a quarter of that of each other split."""
        most = max(4, min(MOST_ROWS, MOST_BYTES // max(1, dataset.row_bytes)))
        splits: list[SplitName] = []
        parts: list[Columns] = []
        for name in SPLITS:
            parts.append(_read(dataset, data, name, most if name == "train" else most // 4))
            splits.extend(itertools.repeat(name, len(parts[-1]["row_id"])))
        return RowSample(tuple(splits), {column.name: np.concatenate([part[column.name] for part in parts])
                                         for column in dataset.columns})

    def __len__(self) -> int:
        return len(self.splits)

    @property
    def row_ids(self) -> npt.NDArray[np.int64]:
        return self.columns["row_id"]

    def of_split(self, name: SplitName) -> npt.NDArray[np.int64]:
        """Indices of a split's rows."""
        return np.array([i for i, split in enumerate(self.splits) if split == name], np.int64)

    def name(self, row: int) -> str:
        """What to call a row: `row 17, test`."""
        return f"row {self.row_ids[row]}, {self.splits[row]}"

    def counted(self, dataset: Dataset) -> str:
        """How many there are: `all rows`, or `2,000 train, 288 validation and 359 test rows, spread over the data`."""
        if len(self) == sum(split.num_rows for split in dataset.splits.values()):
            return "all rows"
        first, second, third = (f"{len(self.of_split(name)):,} {name}" for name in SPLITS)
        return f"{first}, {second} and {third} rows, spread over the data"

    def by_class(self, most: int) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
        """Of each class that has rows here, at most so many of them, evenly spread."""
        labels = self.columns["label"]
        for code in np.unique(labels).tolist():
            rows = np.flatnonzero(labels == code)
            yield code, rows[np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int))]


def spread(split: Split, most: int) -> npt.NDArray[np.int64]:
    """Positions of at most so many rows: evenly spread, or where that would touch more than a few dozen blocks, in
    short runs that are."""
    rows = split.num_rows
    if rows <= most or rows <= _RUNS * split.block_rows:
        return np.unique(np.linspace(0, rows - 1, min(most, rows)).astype(np.int64)) if rows else np.empty(0, np.int64)
    length = -(-most // _RUNS)
    starts = np.linspace(0, rows - length, min(_RUNS, most)).astype(np.int64)
    return np.unique(starts[:, None] + np.arange(length))


def _read(dataset: Dataset, data: DataConfig, name: SplitName, most: int) -> Columns:
    reader = Reader.open(dataset, name, data)
    try:
        return reader.take(spread(dataset.splits[name], most))
    finally:
        reader.close()
