"""Receiver operating characteristic curves, exact and fast enough for a thousand classes.

scikit-learn's `roc_curve` argsorts every score of every class (7 s for 50,000 rows of 1,000 classes); sorting the bare
values and looking the positive ones up gives the same curve in a fifth of the time.
The tests hold it to scikit-learn's.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating]
Floats = NDArray[np.float64]
IntArray = NDArray[np.integer]


@dataclass(frozen=True, kw_only=True)
class RocCurve:
    """One classifier against the rest. The area is that of the full curve; the points are thinned out for drawing."""

    false_positive_rate: FloatArray
    """(points,), from 0 to 1, never falling."""
    true_positive_rate: FloatArray
    """(points,), from 0 to 1, never falling."""
    area: float
    """Area under the curve, in [0, 1]."""


def roc_curve(positives: FloatArray, others: FloatArray, max_points: int = 200) -> RocCurve | None:
    """The curve of `score >= threshold` over all thresholds; ties count half, as in the Mann-Whitney statistic.

    positives, others: (n,) scores of the rows that are of the class, and of those that are not.
    None if either is empty.
    """
    if not len(positives) or not len(others):
        return None
    positives, others = np.sort(positives), np.sort(others)
    thresholds = np.unique(positives)[::-1]
    # Between two thresholds held by positive rows only others enter, so the curve turns just above and at each of them.
    false = _counts_at(thresholds, others) / len(others)
    true = _counts_at(thresholds, positives) / len(positives)
    return _thin(np.concatenate([[0.0], false, [1.0]]), np.concatenate([[0.0], true, [1.0]]), max_points)


def mean_curve(curves: list[RocCurve], max_points: int = 200) -> RocCurve | None:
    """The macro average: mean true-positive rate at each false-positive rate; its area is the mean of the areas."""
    if not curves:
        return None
    grid = np.linspace(0.0, 1.0, max_points - 1) ** 2  # finer where good curves bend
    heights = [np.interp(grid, c.false_positive_rate, c.true_positive_rate) for c in curves]
    area = float(np.mean([curve.area for curve in curves]))
    true = np.concatenate([[0.0], np.mean(heights, axis=0)])
    return RocCurve(false_positive_rate=np.concatenate([[0.0], grid]), true_positive_rate=true, area=area)


def _counts_at(thresholds: FloatArray, scores: FloatArray) -> IntArray:
    """(2 * thresholds,): how many of the sorted scores are above, and then at or above, each threshold."""
    above = len(scores) - np.searchsorted(scores, thresholds, side="right")
    at = len(scores) - np.searchsorted(scores, thresholds, side="left")
    return np.stack([above, at], axis=1).ravel()


def _thin(false: Floats, true: Floats, max_points: int) -> RocCurve:
    """Measures the area, then keeps vertices at even distances along the curve, its ends among them."""
    area = float(np.trapezoid(true, false))
    if len(false) > max_points:
        marks: Floats = np.linspace(0.0, 2.0, max_points // 2)
        after = np.searchsorted(false + true, marks)  # and the one before, so that no corner is cut
        kept = np.unique(np.concatenate([np.maximum(after - 1, 0), after]))
        false, true = false[kept], true[kept]
    return RocCurve(false_positive_rate=false, true_positive_rate=true, area=area)
