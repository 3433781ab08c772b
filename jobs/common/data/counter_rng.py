"""Random numbers that are functions of what they are for, never of a process's history.

Philox raw bits (Salmon et al. 2011; NumPy's `Philox.random_raw`, whose stream is fixed) give sort keys and seeds; a
Feistel network gives a permutation of any size in O(1) memory, forwards and backwards; splitmix64 (Steele et al.
2014) hashes rows.
"""

import enum
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
KeyArray = npt.NDArray[np.uint64]
FloatArray = npt.NDArray[np.float64]

_ROUNDS = 6
_MASK = 2**64 - 1


class Purpose(enum.IntEnum):
    """What a stream of random bits is for: streams of different purposes never share bits.
    The values are fixed for ever."""

    DEAL = 1
    CHUNKS = 2
    ROWS = 3
    MICRO_BATCH = 4
    AUGMENT = 5
    INIT = 6
    LENGTH_GROUPS = 7
    TYPOS = 8
    ROBUSTNESS = 9
    ATTACK = 10
    NOISE = 11
    SPLIT = 12


def raw_bits(purpose: Purpose, seed: int, a: int, b: int, c: int, count: int) -> KeyArray:
    """`count` uint64 values, a function of (purpose, seed, a, b, c)."""
    return np.random.Philox(counter=[0, a, b, c], key=[seed & _MASK, int(purpose)]).random_raw(count)


def micro_batch_seed(seed: int, epoch: int, step: int, shard: int, part: int = 0) -> int:
    """Seed, in [0, 2^63), for what a model draws in one forward pass (dropout)."""
    return int(raw_bits(Purpose.MICRO_BATCH, seed, step, (shard << 32) | part, epoch, 1)[0] >> 1)


def row_uniforms(purpose: Purpose, seed: int, epoch: int, rows: IntArray, count: int) -> FloatArray:
    """(rows, count) numbers in [0, 1), a function of (purpose, seed, epoch, row id)."""
    base = raw_bits(purpose, seed, epoch, 0, 0, count)
    hashed = _splitmix64(_splitmix64(rows.astype(np.uint64))[:, None] ^ base[None, :])
    return (hashed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _splitmix64(values: KeyArray) -> KeyArray:
    with np.errstate(over="ignore"):
        z = values + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


@dataclass(frozen=True)
class Permutation:
    """A permutation of 0 … size-1 in O(1) memory:
    a balanced Feistel network with cycle walking (Black & Rogaway 2002)."""

    size: int
    keys: tuple[int, ...]

    @staticmethod
    def of(size: int, purpose: Purpose, seed: int, a: int = 0, b: int = 0) -> "Permutation":
        return Permutation(size, tuple(int(k) for k in raw_bits(purpose, seed, a, b, 0, _ROUNDS)))

    def forward(self, items: IntArray) -> IntArray:
        """Where each item goes. items: values in [0, size)."""
        return self._walk(items, inverse=False)

    def inverse(self, places: IntArray) -> IntArray:
        """Which item is at each place."""
        return self._walk(places, inverse=True)

    def _walk(self, values: IntArray, *, inverse: bool) -> IntArray:
        out = values.astype(np.uint64)
        todo = np.ones(out.shape, dtype=bool)
        while todo.any():
            out[todo] = self._network(out[todo], inverse=inverse)
            todo = out >= np.uint64(self.size)
        return out.astype(np.int64)

    def _network(self, values: KeyArray, *, inverse: bool) -> KeyArray:
        half = np.uint64(max(1, ((self.size - 1).bit_length() + 1) // 2))
        mask = (np.uint64(1) << half) - np.uint64(1)
        left, right = values >> half, values & mask
        for key in reversed(self.keys) if inverse else self.keys:
            if inverse:
                left, right = right ^ (_splitmix64(left ^ np.uint64(key)) & mask), left
            else:
                left, right = right, left ^ (_splitmix64(right ^ np.uint64(key)) & mask)
        return (left << half) | right
