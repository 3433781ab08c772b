"""Contract 2, reading: a prepared data set, as its description says (rows of it: reader.py).

A prepared set is a folder of storage: `dataset.json`, and Parquet blocks of rows for each split (block_layout.py). A
row's `position` is its index in its split; its `row_id` is its index over all sources sorted by path, which no split
changes. A block's columns are what the kind of data needs, such as an image or tokens (fixed_size_binary, the raw
little-endian values: the same bytes as a list of numbers, read from Parquet 15 times as fast),
and row_id int64 at the end.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import json
from dataclasses import asdict, dataclass, field
from typing import Literal

import numpy as np

from cluster.core.documents import JsonObject, check_version, parse_json
from cluster.core.errors import DataError
from cluster.core.storage import Store
from jobs.common.arrays import Array
from jobs.common.data.block_layout import BlockLayout

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
INDEX_FILE = "dataset.json"
VERSION = 3
"""The format of that file; what version 2 made, which had no pieces, is read. What is older is prepared again."""
Columns = dict[str, Array]


@dataclass(frozen=True)
class Column:
    """One column of a data set: a number a row (`shape` is empty; read as int64), or an array of one size."""

    name: str
    dtype: str
    shape: tuple[int, ...] = ()
    encoded: bool = False
    """Whether a picture file is kept of each row, which gives the array whenever the row is read."""

    @property
    def row_bytes(self) -> int:
        """Of a row in memory."""
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
