"""Whether all workers hold the same weights: each makes a number of its own, and the numbers are compared.

Data-parallel workers that begin alike and add the same sums stay alike, bit for bit. One whose memory, processor or
network is at fault, or whose code does not do the same on every rank, goes its own way without a word;
its gradients corrupt everybody's.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from jobs.common.arrays import Array

PIECE = 2**18
"""Integers that are hashed at once: what they need meanwhile is bounded, and near the processor."""
# what a float64 holds exactly: the numbers travel as the sum of arrays in which each rank fills its own place
_BITS = 52


def digest_of_arrays(arrays: Iterable[Array]) -> int:
    """A number below 2^52: arrays in which one element differs have another one,
    and of others the same once in 2^52."""
    return digest(bits_of(array) for array in arrays)


def bits_of(array: Array) -> int:
    """The sum, modulo 2^64, over an array's bytes taken as integers x, of x + 2x²: each x has its own value of that,
    and differences in several of them do not cancel as those of a plain sum do."""
    flat = np.ascontiguousarray(array).reshape(-1)
    whole = flat.view(f"i{8 if flat.nbytes % 8 == 0 else flat.itemsize}")
    pieces = (whole[start : start + PIECE] for start in range(0, len(whole), PIECE))
    return sum(int((x * (2 * x + 1)).sum(dtype=np.int64)) for x in pieces)


def digest(sums: Iterable[int]) -> int:
    """Of one such sum for each array, in their order."""
    mixed = hashlib.blake2b(b"".join((value % 2**64).to_bytes(8, "little") for value in sums), digest_size=8).digest()
    return int.from_bytes(mixed, "little") >> (64 - _BITS)


def placed(value: int, rank: int, world_size: int) -> npt.NDArray[np.float64]:
    """What a rank adds to the sum from which all read the numbers of all."""
    return np.where(np.arange(world_size) == rank, float(value), 0.0)


def mismatched_ranks(digests: Sequence[float]) -> list[int]:
    """The ranks whose number is not that of most; where no number has a majority, all of them."""
    [(value, count), *_] = Counter(digests).most_common(1)
    if count == len(digests):
        return []
    return [rank for rank, found in enumerate(digests) if found != value or 2 * count <= len(digests)]
