"""Classes and splits, from the labels alone: pure functions of labels, row ids and `data.split_seed`.

Strings become classes in sorted order; integers must be 0 to C-1 already. What a source does not split by itself is
split off from its training rows: 20% test and 16% validation of each class, exactly (to a rounding),
by a keyed hash of row ids.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.core.errors import DataError
from jobs.common.arrays import Array
from jobs.common.data.arrow import ArrowArray, arrow_column, numpy_column
from jobs.common.data.dataset import SPLITS, SplitName

TRAIN, VALIDATION, TEST = range(3)
PERCENT = {VALIDATION: 16, TEST: 20}
Codes = npt.NDArray[np.int32]
Splits = npt.NDArray[np.int8]
Columns = Sequence[ArrowArray]


class Fragment(Protocol):
    """Rows of a source that can be named in a message."""

    def describe(self, row: int) -> str: ...


def encode_labels(fragments: Sequence[Fragment], labels: Columns, column: str) -> tuple[Codes, tuple[str, ...]]:
    """Class codes (rows,) int32 of all fragments' label arrays in order, and the names of the classes.

    Raises: DataError for nulls, fractions, negative or non-contiguous integers, a single class, or another type.
    """
    encoded = [_dictionary(fragment, array, column) for fragment, array in zip(fragments, labels, strict=True)]
    kinds = {("text" if pa.types.is_string(e.dictionary.type) else "number") for e in encoded}
    if len(kinds) > 1:
        raise DataError(f"column {column!r} holds text in one file and numbers in another: use one of them everywhere")
    values = sorted({value for e in encoded for value in e.dictionary.to_pylist()})
    if kinds == {"number"}:
        _require_contiguous(values, fragments, encoded, column)
    if len(values) < 2:
        raise DataError(f"column {column!r} holds one class only ({values[0]!r}): there is nothing to tell apart")
    place = {value: code for code, value in enumerate(values)}
    codes = [np.array([place[v] for v in e.dictionary.to_pylist()], np.int32)[numpy_column(e.indices)] for e in encoded]
    return np.concatenate(codes), tuple(str(value) for value in values)


def assign(codes: Codes, names: Sequence[str], given: Sequence[SplitName], rows: Sequence[int], seed: int) -> Splits:
    """Which split (0 train, 1 validation, 2 test) each row is in.
    `given` and `rows`: each fragment's own split and rows.

    Raises: DataError if a class has too few training rows to be in every split that is split off.
    """
    split = np.repeat(np.array([SPLITS.index(name) for name in given], np.int8), rows)
    missing = [s for s in (TEST, VALIDATION) if SPLITS[s] not in given]
    rows_left = np.flatnonzero(split == TRAIN)
    counts = np.bincount(codes[rows_left], minlength=len(names))
    _require_enough(counts, names, missing)
    if missing:
        shuffled = rows_left[np.lexsort((keyed_hash(seed, rows_left), codes[rows_left]))]
        for members in np.split(shuffled, np.cumsum(counts)[:-1]):
            start = 0
            for s in missing:
                stop = start + max(1, (len(members) * PERCENT[s] + 50) // 100)
                split[members[start:stop]] = s
                start = stop
    return split


def keyed_hash(seed: int, row_ids: Array) -> npt.NDArray[np.uint64]:
    """A bijection of 64-bit row ids that depends on the seed: splitmix64's finaliser (Steele et al. 2014), twice."""
    start = (seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) & 0xFFFFFFFFFFFFFFFF
    return _mix(_mix(row_ids.astype(np.uint64) + np.uint64(start)) ^ np.uint64(start))


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _dictionary(fragment: Fragment, labels: ArrowArray, column: str) -> ArrowArray:
    """Labels as a dictionary array of strings or int64."""
    kind = labels.type
    if pa.types.is_dictionary(kind):
        labels = labels.cast(kind.value_type)
        kind = labels.type
    if labels.null_count:
        row = int(np.flatnonzero(labels.is_null().to_numpy(zero_copy_only=False))[0])
        raise DataError(f"column {column!r} is empty (null) in {fragment.describe(row)}: remove the row or label it")
    if pa.types.is_floating(kind):
        labels = _whole(fragment, labels, column)
    elif pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        labels = labels.cast(pa.int64())
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        labels = labels.cast(pa.string())
    else:
        raise DataError(f"column {column!r} of {fragment.describe(0)} is of type {kind}: labels must be integers 0 to "
                        "C-1 or text; name another column with --data.label-column")
    return labels.dictionary_encode()


def _whole(fragment: Fragment, labels: ArrowArray, column: str) -> ArrowArray:
    values = labels.to_numpy(zero_copy_only=False).astype(np.float64)
    wrong = ~(np.isfinite(values) & (values == np.floor(values)))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise DataError(f"column {column!r} is {values[row]} in {fragment.describe(row)}: labels must be the integers "
                        "0 to C-1 or text; name another column with --data.label-column")
    return arrow_column(values.astype(np.int64))


def _require_contiguous(values: list[int], fragments: Sequence[Fragment], encoded: Columns, column: str) -> None:
    remedy = ("integer labels must be 0 to C-1 with none left out: renumber them, or store names (text), which become "
              "classes")
    if values[0] < 0:
        where = _first(values[0], fragments, encoded)
        raise DataError(f"column {column!r} is {values[0]} in {where}: {remedy}")
    for expected, value in enumerate(values):
        if value != expected:
            where = _first(value, fragments, encoded)
            raise DataError(f"column {column!r} goes up to {values[-1]} but never is {expected} (the next, {value}, is "
                            f"first seen in {where}): {remedy}")


def _first(value: int, fragments: Sequence[Fragment], encoded: Columns) -> str:
    for fragment, e in zip(fragments, encoded, strict=True):
        index = e.dictionary.to_pylist().index(value) if value in e.dictionary.to_pylist() else None
        if index is not None:
            return fragment.describe(int(np.flatnonzero(numpy_column(e.indices) == index)[0]))
    raise AssertionError(value)


def _require_enough(counts: npt.NDArray[np.int64], names: Sequence[str], missing: Sequence[int]) -> None:
    """`counts`: training rows of each class, before any is split off."""
    least = 1 + len(missing)
    if counts.min() >= least:
        return
    code = int(np.argmax(counts < least))
    count, name = int(counts[code]), names[code]
    if not count:
        raise DataError(f"class {name!r} has no training rows, only validation or test rows: add some, or remove the "
                        "class")
    parts = " and ".join(SPLITS[s] for s in missing)
    rows = "1 row" if count == 1 else f"{count} rows"
    raise DataError(f"class {name!r} has {rows}, too few to be in training, {parts} at once: it needs at least "
                    f"{least}; add rows, remove the class, or give the other splits with --data.val-uri and "
                    "--data.test-uri")
