"""Finds rows that are nearly the same, among a few thousand: by the distance of their numbers, or by common tokens."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from jobs.common.arrays import Array
from jobs.common.data.found.shingles import Shingles, candidates, common

MOST_PAIRS = 6
SHINGLE = 3
"""Tokens in a row that are compared as one."""
_CANDIDATES = 100
NEAR, ALIKE = 0.3, 0.5
"""At most of the usual distance; at least in common."""
_LIMIT = 1e6
_ROWS_AT_ONCE = 256
Rows = npt.NDArray[np.int64]


class Pair(NamedTuple):
    """Two rows, by their indices, and how near they are."""

    first: int
    second: int
    value: float
    """Their distance as a share of the usual one of two rows; or the share of what they have in common."""


def nearest_pairs(features: Array, contents: Sequence[bytes], codes: Array | None = None) -> list[Pair]:
    """Rows that are each other's nearest, the nearest first, unless their contents are the same; none that are further
    apart than 0.3 times the usual distance.

    features: (n, D), scaled. codes: (n, C) categories, of which each that differs counts as a distance of 1.
    """
    rows = _distinct(contents)
    numbers = np.clip(np.nan_to_num(np.asarray(features, np.float64)[rows]), -_LIMIT, _LIMIT)
    categories = np.zeros((len(rows), 0), np.int64) if codes is None else codes[rows]
    if len(rows) < 3:
        return []
    nearest, usual = _nearest(numbers.astype(np.float32), categories)
    found = sorted(Pair(int(rows[i]), int(rows[k]), _distance(numbers, categories, i, k) / usual) for i, k in nearest)
    return sorted((pair for pair in found if pair.value < NEAR), key=lambda pair: pair.value)[:MOST_PAIRS]


def _distinct(contents: Sequence[bytes]) -> Rows:
    """The first row of each content."""
    firsts: dict[bytes, int] = {}
    for row, content in enumerate(contents):
        firsts.setdefault(content, row)
    return np.array(sorted(firsts.values()), np.int64)


def _nearest(numbers: Array, codes: Array) -> tuple[list[tuple[int, int]], float]:
    """Each row with the one nearest to it, of those the nearest hundred; and the median distance of two rows."""
    squares = np.square(numbers).sum(axis=1)
    best, least, some = np.zeros(len(numbers), np.int64), np.zeros(len(numbers)), list[Array]()
    for start in range(0, len(numbers), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        apart = np.maximum(squares[part, None] + squares[None] - 2 * numbers[part] @ numbers.T, 0)
        for column in codes.T:
            apart += column[part, None] != column[None]
        some.append(apart[:, ::7].ravel())
        apart[np.arange(len(apart)), np.arange(start, start + len(apart))] = np.inf
        best[part], least[part] = apart.argmin(axis=1), apart.min(axis=1)
    order = np.argsort(least, kind="stable")[:2 * _CANDIDATES].tolist()
    pairs = {(min(i, int(best[i])), max(i, int(best[i]))) for i in order}
    return sorted(pairs), float(np.sqrt(np.median(np.concatenate(some)))) or 1.0


def _distance(numbers: Array, codes: Array, first: int, second: int) -> float:
    return float(np.sqrt(np.square(numbers[first] - numbers[second]).sum() + (codes[first] != codes[second]).sum()))


def alike(tokens: npt.NDArray[np.int32]) -> tuple[list[Pair], int]:
    """Rows (n, L) of tokens that have most of their triples of tokens in common (shingles.py), the most alike first;
    and how many rows have all tokens of an earlier one, which are not among them. -1 is no token."""
    distinct = _distinct([row.tobytes() for row in tokens])
    rows = tokens[distinct]
    runs = Shingles.of(rows[rows >= 0], (rows >= 0).sum(axis=1), SHINGLE)
    pairs = [Pair(int(distinct[first]), int(distinct[second]), common(runs.least(first), runs.least(second)))
             for first, second in candidates(*runs.keys(ALIKE)).tolist()]
    near = [pair for pair in pairs if pair.value >= ALIKE]
    return sorted(near, key=lambda pair: (-pair.value, pair))[:MOST_PAIRS], len(tokens) - len(distinct)
