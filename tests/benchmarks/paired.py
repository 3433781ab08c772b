"""Whether a difference between two models over the same splits is real."""

import math
from collections.abc import Sequence

import numpy as np


def paired_interval(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean of a - b over the same splits, and the ends of its Student t interval.

    a, b: one accuracy a split, in the same order, two splits or more. Raises: ValueError if their lengths differ.
    """
    from scipy.special import stdtrit

    if len(a) != len(b) or len(a) < 2:
        raise ValueError(f"paired_interval needs two lists of the same length, 2 or more: got {len(a)} and {len(b)}")
    gaps = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    spread = float(stdtrit(len(gaps) - 1, 0.5 + confidence / 2)) * float(gaps.std(ddof=1)) / math.sqrt(len(gaps))
    mean = float(gaps.mean())
    return mean, mean - spread, mean + spread
