"""Classes and splits, from the labels alone: pure functions of labels, row ids and `data.split_seed`.

Strings become classes in sorted order; integers must be 0 to C-1 already. What a source does not split by itself is
split off from its training rows: 20% test and 16% validation of each class, exactly (to a rounding): by a keyed hash
of row ids where all labels are in one place (`assign`), else by a keyed permutation of a row's rank within its class,
which whoever has some of the rows knows of them alone (`RankSplit`).
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.core.errors import DataError
from jobs.common.arrays import Array
from jobs.common.config import require
from jobs.common.data.arrow import ArrowArray, arrow_column, numpy_column
from jobs.common.data.counter_rng import Permutation, Purpose
from jobs.common.data.dataset import SPLITS, SplitName

TRAIN, VALIDATION, TEST = range(3)
PERCENT = {VALIDATION: 16, TEST: 20}
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?")
_SHOWN = 10
_TRUTH = {"true": 1.0, "false": 0.0}
Codes = npt.NDArray[np.int32]
Splits = npt.NDArray[np.int8]
Columns = Sequence[ArrowArray]


class Fragment(Protocol):
    """Rows of a source that can be named in a message."""

    def describe(self, row: int) -> str: ...


Label = str | int


@dataclass
class LabelCounts:
    """The labels of some rows: how many rows have each, and what to call the first of them in a message."""

    rows: dict[Label, int]
    first: dict[Label, str]


def encode_labels(fragments: Sequence[Fragment], labels: Columns, column: str) -> tuple[Codes, tuple[str, ...]]:
    """Class codes (rows,) int32 of all fragments' label arrays in order, and the names of the classes.

    Raises: DataError for nulls, fractions, negative or non-contiguous integers, a single class, or another type.
    """
    encoded = [_dictionary(fragment, array, column) for fragment, array in zip(fragments, labels, strict=True)]
    values = classes_of([_counted(fragment, each) for fragment, each in zip(fragments, encoded, strict=True)], column)
    return np.concatenate([_codes(each, values) for each in encoded]), tuple(str(value) for value in values)


def count_labels(fragment: Fragment, labels: ArrowArray, column: str) -> LabelCounts:
    """Those of one fragment, (rows,). Raises: DataError, as `encode_labels`, for what a row alone has wrong."""
    return _counted(fragment, _dictionary(fragment, labels, column))


def _counted(fragment: Fragment, encoded: ArrowArray) -> LabelCounts:
    values, indices = encoded.dictionary.to_pylist(), numpy_column(encoded.indices)
    _, first = np.unique(indices, return_index=True)
    counts = np.bincount(indices, minlength=len(values)).tolist()
    return LabelCounts(dict(zip(values, counts, strict=True)),
                       {value: fragment.describe(int(row)) for value, row in zip(values, first, strict=True)})


def classes_of(seen: Sequence[LabelCounts], column: str) -> list[Label]:
    """The classes of all that was seen, in order: a code is an index. Raises: DataError as `encode_labels`."""
    first: dict[Label, str] = {}
    for part in seen:
        first = part.first | first
    if len({type(value) for value in first}) > 1:
        raise DataError(f"column {column!r} holds text in one file and numbers in another: use one of them everywhere")
    values = sorted(first)
    if values and not isinstance(values[0], str):
        _require_contiguous(cast(list[int], values), first, column)
    else:
        _require_one_spelling(cast(dict[str, str], first), column)
    if len(values) < 2:
        raise DataError(f"column {column!r} holds one class only ({values[0]!r}): there is nothing to tell apart")
    return values


def codes_of(fragment: Fragment, labels: ArrowArray, values: Sequence[Label], column: str) -> Codes:
    """Class codes (rows,) int32 of one fragment's labels. values: all classes in order."""
    return _codes(_dictionary(fragment, labels, column), values)


def _codes(encoded: ArrowArray, values: Sequence[Label]) -> Codes:
    place = {value: code for code, value in enumerate(values)}
    return np.array([place[value] for value in encoded.dictionary.to_pylist()], np.int32)[numpy_column(encoded.indices)]


@dataclass(frozen=True)
class RankSplit:
    """How the training rows of each class are split: a row's rank among them, permuted, says which split it is in."""

    seed: int
    missing: tuple[int, ...]
    """Splits that are to be split off."""
    counts: tuple[int, ...]
    """Training rows of each class, before any is split off."""
    names: tuple[str, ...]
    most: int | None = None
    """How many training rows are kept, in equal shares of the classes; None: all."""

    def __post_init__(self) -> None:
        _require_enough(np.array(self.counts), self.names, self.missing)

    def of(self, codes: Codes, first: Sequence[int]) -> Splits:
        """Of successive training rows: 0 train, 1 validation, 2 test, -1 left out. first: how many of each class come
        before them."""
        split, kept = np.zeros(len(codes), np.int8), self._kept()
        for code in np.unique(codes):
            rows, size = np.flatnonzero(codes == code), self.counts[code]
            place = Permutation.of(size, Purpose.SPLIT, self.seed, int(code)).forward(
                first[code] + np.arange(len(rows)))
            start = 0
            for s in self.missing:
                stop = start + _share(size, s)
                split[rows[(start <= place) & (place < stop)]] = s
                start = stop
            split[rows[place >= start + kept[code]]] = -1
        return split

    def _kept(self) -> list[int]:
        """Training rows of each class that are kept: shares of `most` by their number, rounded so that they add up."""
        left = [count - sum(_share(count, s) for s in self.missing) for count in self.counts]
        if self.most is None or self.most >= sum(left):
            return left
        ends = np.cumsum(left) * self.most // sum(left)
        return np.diff(ends, prepend=0).tolist()


def _share(count: int, split: int) -> int:
    """Rows of a class that a split takes."""
    return max(1, (count * PERCENT[split] + 50) // 100)


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
                stop = start + _share(len(members), s)
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


def _require_contiguous(values: list[int], first: Mapping[Label, str], column: str) -> None:
    remedy = ("integer labels must be 0 to C-1 with none left out: renumber them, or store names (text), which become "
              "classes")
    if values[0] < 0:
        raise DataError(f"column {column!r} is {values[0]} in {first[values[0]]}: {remedy}")
    for expected, value in enumerate(values):
        if value != expected:
            raise DataError(f"column {column!r} goes up to {values[-1]} but never is {expected} (the next, {value}, is "
                            f"first seen in {first[value]}): {remedy}")


def _require_one_spelling(first: Mapping[str, str], column: str) -> None:
    """The number 1 may be written 1, 1.0 or true, and is one class all the same."""
    numbers: dict[float, str] = {}
    for name in sorted(first):
        if _NUMBER.fullmatch(name) or (name.lower() in _TRUTH and any(map(_NUMBER.fullmatch, first))):
            value = _TRUTH.get(name.lower(), float(name) if _NUMBER.fullmatch(name) else 0.0)
            other = numbers.setdefault(value, name)
            if other != name:
                raise DataError(f"column {column!r} holds {other!r} ({first[other]}) and {name!r} ({first[name]}), "
                                "which are the same number: write each class in one way")


def renamed(names: Sequence[str], given: str | None) -> tuple[str, ...]:
    """Classes by the names that `--data.label-names` gives them. Raises: ConfigError."""
    pairs = [pair.partition("=") for pair in (given or "").split(",") if pair.strip()]
    new = {old.strip(): name.strip() for old, _, name in pairs}
    for old, name in new.items():
        require(old in names and bool(name), "data.label_names", given,
                f"{old!r} is given no name" if old in names else f"there is no class {old!r}: there are "
                f"{', '.join(names[:_SHOWN])}{' …' * (len(names) > _SHOWN)}")
    found = tuple(new.get(name, name) for name in names)
    require(len(set(found)) == len(found), "data.label_names", given, "two classes would have one name")
    return found


def alike(names: Sequence[str]) -> list[list[str]]:
    """Classes whose names differ by case, spaces or what joins words only."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(re.sub(r"[\s_-]+", " ", name).strip().casefold(), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


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
