"""Finds rows with the same content: twice in a split, in two splits (a leak), or under two labels.

Each piece of a prepared set leaves a hash of every row beside its blocks, sorted; then the hashes are compared, one
range of their values at a time, in tasks: so nobody ever holds more than a few million.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import functools
import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.core.documents import JsonObject
from cluster.core.errors import DataError
from cluster.core.storage import Store
from jobs.common.arrays import Array
from jobs.common.config import DataConfig
from jobs.common.data.arrow import arrow_column, numpy_column
from jobs.common.data.dataset import SPLITS, Dataset, SplitName
from jobs.common.data.pieces import HASHES_FOLDER, for_each, part_file
from jobs.common.data.prepared import DONE_FOLDER

Ids = npt.NDArray[np.int64]
EXAMPLES = 5
_ROWS_AT_ONCE = 1 << 22
_GROUP_ROWS = 1 << 16
_SUM = 1 << 256
_NAMES = ("low", "high", "split", "label", "row_id")


@dataclass(frozen=True)
class Repeats:
    """How many rows have the content of another, by split; `examples` are pairs of row ids."""

    duplicates: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    """Rows whose content an earlier row of the split has."""
    leaks: dict[str, int] = field(default_factory=dict[str, int])
    """Rows of validation and of test whose content a training row has; of test, also one of validation."""
    contradictions: int = 0
    """Rows whose content another row has under another label."""
    examples: dict[str, list[tuple[int, int]]] = field(default_factory=dict[str, list[tuple[int, int]]])
    near: bool = False
    """Whether it is nearly the same content (near_texts.py)."""

    def merged(self, other: "Repeats") -> "Repeats":
        names = ("duplicates", "leaks", "contradictions")
        return Repeats(
            {name: self.duplicates[name] + other.duplicates[name] for name in SPLITS},
            {name: self.leaks.get(name, 0) + other.leaks.get(name, 0) for name in {**self.leaks, **other.leaks}},
            self.contradictions + other.contradictions,
            {name: [*self.examples.get(name, []), *other.examples.get(name, [])][:EXAMPLES] for name in names})

    def lines(self) -> list[str]:
        """What to say of them; nothing where there are none."""
        said, like = list[str](), self.like
        if twice := [f"{count:,} of {name}" for name, count in self.duplicates.items() if count]:
            said.append(f"rows with {like} of an earlier one of their split: {', '.join(twice)}")
        if leaked := [f"{count:,} of {name}" for name, count in sorted(self.leaks.items()) if count]:
            where = "with nearly the content of one in another split" if self.near else (
                "whose content is in another split, too")
            said.append(f"LEAK: rows {where}: {', '.join(leaked)}: scores on them are too good")
        if self.contradictions:
            said.append(f"{self.contradictions:,} rows have {like} of another row that has another label")
        return said

    @property
    def like(self) -> str:
        """What they have of others."""
        return "nearly the content" if self.near else "the content"


def content_hashes(contents: Iterable[bytes | memoryview]) -> bytes:
    """16 bytes for each."""
    return b"".join(hashlib.blake2b(content, digest_size=16).digest() for content in contents)


def row_sums(hashes: bytes, splits: Array, *about: Array) -> dict[str, str]:
    """Of each split the sum of its rows' hashes (AdHash: Bellare & Micciancio 1997), so that neither pieces nor their
    order matter. hashes: as `content_hashes` gives them. about: (rows,) or (rows, k) numbers of 64 bits beside them."""
    beside = np.concatenate([each.reshape(len(splits), -1).view(np.int64) for each in about], axis=1)
    width = beside.shape[1] * 8
    packed = beside.tobytes()
    sums = dict.fromkeys(range(-1, len(SPLITS)), 0)
    for row, split in enumerate(splits.tolist()):
        of_row = hashlib.blake2b(hashes[16 * row : 16 * row + 16] + packed[width * row : width * row + width],
                                 digest_size=32)
        sums[split] += int.from_bytes(of_row.digest(), "little")
    return {name: f"{sums[code] % _SUM:x}" for code, name in enumerate(SPLITS)}


def digests_of(sums: Sequence[Mapping[str, str]]) -> dict[SplitName, str]:
    """Of each split, of what `row_sums` gave for each piece."""
    return {split: f"{sum(int(each[split], 16) for each in sums) % _SUM:x}" for split in SPLITS}


def write_hashes(store: Store, blocks: str, part: int, digests: bytes, splits: Array, labels: Array | None,
                 row_ids: Array) -> None:
    """Of a part of a set's rows, as `content_hashes` gives them."""
    hashes = np.frombuffer(digests, np.uint64).reshape(-1, 2)
    chosen = np.flatnonzero(splits >= 0)
    order = chosen[np.argsort(hashes[chosen, 0], kind="stable")]
    codes = np.zeros(len(splits), np.int32) if labels is None else labels.astype(np.int32)
    columns = (hashes[order, 0], hashes[order, 1], splits[order].astype(np.int8), codes[order], row_ids[order])
    write_sorted(store, part_file(blocks, HASHES_FOLDER, part), _NAMES, columns)


def write_sorted(store: Store, path: str, names: Sequence[str], columns: Sequence[Array]) -> None:
    """A file of numbers for `read_between`. columns: sorted by the first of them."""
    with store.writing(path) as sink:
        pq.write_table(pa.Table.from_arrays([arrow_column(column) for column in columns], names=list(names)), sink,
                       compression="none", use_dictionary=False, row_group_size=_GROUP_ROWS)


def count_shared(new: Dataset, trained: Dataset) -> int | None:
    """How many rows of a set have the content of a training row of another; None where that was prepared by a version
    that left no hashes."""
    kept = [hashes[splits == 0] for hashes, splits in _hashes_of(trained)]
    if not kept:
        return None
    known = np.unique(np.concatenate(kept))
    return sum(int(np.isin(hashes, known).sum()) for hashes, _ in _hashes_of(new))


def _hashes_of(dataset: Dataset) -> Iterable[tuple[Array, Array]]:
    """Of each piece the first 8 bytes of its rows' hashes, and their splits."""
    for file in dataset.store.files(f"{dataset.blocks}/{HASHES_FOLDER}"):
        with dataset.store.reading(file.path) as stream:
            table = pq.read_table(stream, columns=["low", "split"])
        low, splits = (numpy_column(table.column(name).combine_chunks()) for name in ("low", "split"))
        yield low, splits


def find_repeats(data: DataConfig, store: Store, blocks: str, parts: int, rows: int, *,
                 use_ray: bool) -> tuple[Repeats, Ids]:
    """Of all parts together, and the ids of the rows that are to be dropped.

    Raises: DataError where there are leaks, and the config refuses them.
    """
    work = functools.partial(_repeats_between, store, blocks, parts, data.duplicates == "drop", data.leaks == "drop")
    repeats, dropped = Repeats(), list[int]()
    for answer in for_each(in_ranges(rows), work, use_ray=use_ray):
        repeats = repeats.merged(Repeats(**answer["counted"]))
        dropped += answer["dropped"]
    if data.leaks == "refuse" and any(repeats.leaks.values()):
        pairs = ", ".join(f"{first} and {other}" for first, other in repeats.examples["leaks"])
        raise DataError(f"data {data.uri!r} has the same content in two splits: "
                        f"{', '.join(f'{count:,} rows of {name}' for name, count in repeats.leaks.items() if count)} "
                        f"(row ids {pairs}): mend it, or pass --data.leaks drop or report")
    return repeats, np.sort(np.array(dropped, np.int64))


def in_ranges(count: int) -> list[tuple[int, int]]:
    """So many 64-bit hashes in ranges of their values, both ends included, with about four million in each."""
    ranges = max(1, -(-count // _ROWS_AT_ONCE))
    ends = [(1 << 64) * place // ranges for place in range(ranges + 1)]
    return [(first, end - 1) for first, end in itertools.pairwise(ends)]


def forget(store: Store, blocks: str) -> None:
    """Takes away what was written, before it is written again without some rows."""
    for folder in (*SPLITS, HASHES_FOLDER, DONE_FOLDER):
        store.delete_folder(f"{blocks}/{folder}")


def _repeats_between(store: Store, blocks: str, parts: int, drop_duplicates: bool, drop_leaks: bool,
                     bounds: tuple[int, int]) -> JsonObject:
    """Runs in a task: of the rows whose hash lies in a range."""
    columns = [np.concatenate(each) for each in zip(*(
        read_between(store, part_file(blocks, HASHES_FOLDER, part), _NAMES, bounds) for part in range(parts)),
        strict=True)]
    low, high, split, _, row = columns
    order = np.lexsort((row, split, high, low))
    low, high, split, label, row = (column[order] for column in columns)
    first = np.ones(len(low), bool)
    first[1:] = (low[1:] != low[:-1]) | (high[1:] != high[:-1])
    group = np.cumsum(first) - 1
    dropped = np.zeros(len(low), bool)
    if drop_duplicates:
        dropped[1:] |= ~first[1:] & (split[1:] == split[:-1])
    if drop_leaks and len(low):
        highest = np.maximum.reduceat(split, np.flatnonzero(first))
        dropped |= split < highest[group]
    return {"counted": asdict(count_repeats(group, split, label, row)), "dropped": row[dropped].tolist()}


def read_between(store: Store, path: str, names: Sequence[str], bounds: tuple[int, int]) -> list[Array]:
    """Columns of a file of numbers that is sorted by the first of them, of the rows where that is within the bounds;
    row groups without any are not read."""
    with store.reading(path) as stream:
        file = pq.ParquetFile(stream, pre_buffer=False)
        limits: list[Any] = [file.metadata.row_group(i).column(0).statistics for i in range(file.num_row_groups)]
        groups = [i for i, of in enumerate(limits) if of is not None and of.min <= bounds[1] and of.max >= bounds[0]]
        table: Any = file.read_row_groups(groups, columns=list(names), use_threads=False).combine_chunks()
    columns = [numpy_column(table.column(name).chunk(0)) if table.num_rows
               else np.empty(0, table.schema.field(name).type.to_pandas_dtype()) for name in names]
    inside = (columns[0] >= bounds[0]) & (columns[0] <= bounds[1])
    return [column[inside] for column in columns]


def count_repeats(group: Array, split: Array, label: Array, row: Array) -> Repeats:
    """Of rows in the order of their content (`group`, whatever numbers), then of splits, then of ids."""
    same = np.zeros(len(group), bool)
    same[1:] = group[1:] == group[:-1]
    twice = same.copy()
    twice[1:] &= split[1:] == split[:-1]
    starts = np.flatnonzero(~same)
    first_of = starts[np.cumsum(~same) - 1]
    leaked = split > split[first_of]
    unlike = same & (label != label[first_of])
    in_conflict = np.isin(group, group[unlike])
    pairs = {"duplicates": (np.flatnonzero(twice) - 1, np.flatnonzero(twice)),
             "leaks": (first_of[leaked], np.flatnonzero(leaked)), "contradictions": (first_of[unlike],
                                                                                     np.flatnonzero(unlike))}
    return Repeats({name: int((twice & (split == code)).sum()) for code, name in enumerate(SPLITS)},
                   {name: int((leaked & (split == code)).sum()) for code, name in enumerate(SPLITS) if code},
                   int(in_conflict.sum()), {name: _pairs(row, *places) for name, places in pairs.items()})


def _pairs(row: Array, firsts: Array, others: Array) -> list[tuple[int, int]]:
    chosen: Sequence[int] = range(min(EXAMPLES, len(others)))
    return [(int(row[firsts[i]]), int(row[others[i]])) for i in chosen]
