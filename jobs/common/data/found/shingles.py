"""What rows of tokens have in common, by the runs of successive tokens that they hold (shingles; Broder 1997).

    runs = Shingles.of(tokens, lengths, 5)
    pairs = candidates(*runs.keys(0.8))               # rows that may share 80% of their runs: MinHash, in bands
    near = [pair for pair in pairs if common(runs.least(pair[0]), runs.least(pair[1])) >= 0.8]

A row's key of a band is made of the least values of a few hash functions of its runs; two rows have the same least
value with the probability that is their share of common runs (Jaccard). All is a function of the tokens alone.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from jobs.common.arrays import Array

FUNCTIONS = 128
FOUND = 0.99
"""At least, of the pairs that have just the share in common that is looked for; of others more."""
MOST_COMPARED = 256
"""Runs of a row that are compared, those with the least hashes: a longer row's share is an estimate, within about 0.03
(Broder 1997, section 3)."""
_MOST_IN_BAND = 16
_AT_ONCE = 1 << 16
Hashes = npt.NDArray[np.uint64]
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Shingles:
    """The different runs of some rows, as hashes; those of a row lie together, in ascending order."""

    hashes: Hashes
    ends: Ids
    """Where each row's begin, and the last one's end."""

    @staticmethod
    def of(tokens: Array, lengths: Array, size: int) -> "Shingles":
        """tokens: (n,) non-negative integers, row after row. size: tokens of a run; a shorter row is one run."""
        padded = np.where(lengths > 0, np.maximum(lengths, size), 0)
        row_starts = np.cumsum(lengths) - lengths
        places = np.arange(len(tokens)) + np.repeat(np.cumsum(padded) - padded - row_starts, lengths)
        line = np.zeros(int(padded.sum()), np.uint64)
        line[places] = tokens.astype(np.uint64) + np.uint64(1)
        counts = np.where(lengths > 0, padded - size + 1, 0)
        owners = np.repeat(np.arange(len(lengths)), counts)
        begins = np.arange(len(owners)) + np.repeat(np.cumsum(padded) - padded - (np.cumsum(counts) - counts), counts)
        hashes = np.zeros(len(owners), np.uint64)
        for shift in range(size):
            hashes = _mixed(hashes ^ line[begins + shift])
        order = np.lexsort((hashes, owners))
        hashes, owners = hashes[order], owners[order]
        new = np.ones(len(hashes), bool)
        new[1:] = (hashes[1:] != hashes[:-1]) | (owners[1:] != owners[:-1])
        hashes, owners = hashes[new], owners[new]
        return Shingles(hashes, np.searchsorted(owners, np.arange(len(lengths) + 1)))

    def least(self, row: int) -> Hashes:
        """What is compared of a row."""
        return self.hashes[self.ends[row] : min(self.ends[row + 1], self.ends[row] + MOST_COMPARED)]

    def keys(self, share: float) -> tuple[Hashes, Ids]:
        """Keys, and the row that each is of: rows that have so large a share in common likely have a key in common.
        Rows without a run have none."""
        in_band = functions_in_band(share)
        rows = np.flatnonzero(np.diff(self.ends))
        keys = np.empty((len(rows), FUNCTIONS // in_band), np.uint64)
        start = 0
        while start < len(rows):
            first = self.ends[rows[start]]
            stop = max(start + 1, int(np.searchsorted(self.ends[rows], first + _AT_ONCE)))
            part = self.hashes[first : self.ends[rows[stop - 1] + 1]]
            keys[start:stop] = _keys(part, self.ends[rows[start:stop]] - first, in_band)
            start = stop
        return keys.ravel(), np.repeat(rows, keys.shape[1])


def functions_in_band(share: float) -> int:
    """As many as let no more than 1% of the pairs pass unseen that have the share in common."""
    return max((count for count in range(1, _MOST_IN_BAND + 1)
                if 1 - (1 - share**count) ** (FUNCTIONS // count) >= FOUND), default=1)


def candidates(keys: Hashes, rows: Ids) -> Ids:
    """(m, 2) rows, the lower first, in order: of all that have a key in common each with the first, and with the one
    before it. Whatever the order of the keys."""
    order = np.lexsort((rows, keys))
    keys, rows = keys[order], rows[order]
    same = np.zeros(len(keys), bool)
    same[1:] = keys[1:] == keys[:-1]
    places = np.flatnonzero(same)
    firsts = np.maximum.accumulate(np.where(same, 0, np.arange(len(keys))))[places]
    pairs = np.concatenate([np.stack([rows[of], rows[places]], axis=1) for of in (firsts, places - 1)])
    return np.unique(pairs, axis=0)


def common(one: Hashes, other: Hashes) -> float:
    """The share of all runs of two rows that both have (Jaccard), of what `least` gives of each."""
    both = np.sort(np.concatenate([one, other]))
    twice = both[1:] == both[:-1]
    most = max(len(one), len(other))
    total = len(both) - int(twice.sum())
    if most < MOST_COMPARED:
        return int(twice.sum()) / max(1, total)
    last = np.unique(both)[: MOST_COMPARED][-1]
    return int((twice & (both[1:] <= last)).sum()) / min(total, MOST_COMPARED)


def _mixed(values: Hashes) -> Hashes:
    """Stafford's mixer, a bijection."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _keys(hashes: Hashes, starts: Ids, in_band: int) -> Hashes:
    """(rows, bands); function k is `factor * hash + constant`, modulo 2^64."""
    drawn = _mixed(np.arange(1, 2 * FUNCTIONS + 1, dtype=np.uint64))
    factors, constants = drawn[:FUNCTIONS] | np.uint64(1), drawn[FUNCTIONS:]
    keys = np.empty((FUNCTIONS // in_band, len(starts)), np.uint64)
    for band in range(len(keys)):
        keys[band] = np.uint64(band + 1)
        for function in range(band * in_band, (band + 1) * in_band):
            least = np.minimum.reduceat(hashes * factors[function] + constants[function], starts)
            keys[band] = _mixed(keys[band] ^ least)
    return keys.T
