"""How good predictions of numbers are: errors in the target's own unit, each with a 95% interval.

    regression(true, predicted)        # {"rmse": 54.1, "rmse_low": 49.6, …} of arrays (rows,) in the target's unit

RMSE, MAE and R² have intervals of a bootstrap over the rows, corrected for bias and acceleration (Efron 1987), without
which those of few rows are too narrow; where there are very many rows, over a few thousand groups of them, which are
as good as rows where their order says nothing. The median's interval is that of order statistics, which needs no
bootstrap (Conover 1999, section 3.2).
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from jobs.common.arrays import Array

Floats = npt.NDArray[np.float64]
MOST_GROUPS = 2000


def regression(true: Array, predicted: Array, samples: int = 1000, seed: int = 0) -> dict[str, float]:
    """RMSE, MAE, median absolute error and R² with their intervals.

    true, predicted: (rows,) or (rows, targets); of several targets the figures are means over them. Raises: ValueError
    if there are no rows, or the shapes differ.
    """
    true, predicted = np.asarray(true, np.float64), np.asarray(predicted, np.float64)
    if true.shape != predicted.shape or not true.size:
        raise ValueError(f"needs as many predictions as true values, 1 or more: got {true.shape} and {predicted.shape}")
    columns = true.reshape(len(true), -1), predicted.reshape(len(true), -1)
    sums = _sums(*columns)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=samples).astype(np.float64)
    total = sums.sum(axis=0, keepdims=True)
    whole, drawn = _figures(total), _figures(np.einsum("sg,gkt->skt", weights, sums))
    without_one = _figures(total - sums) if len(sums) > 2 else whole
    found: dict[str, float] = {}
    for name, values in whole.items():
        low, high = _interval(float(values[0]), drawn[name], without_one[name])
        found |= {name: float(values[0]), f"{name}_low": low, f"{name}_high": high}
    found |= median_error(np.abs(columns[0] - columns[1]))
    return {name: value for name, value in found.items() if math.isfinite(value)}


def median_error(errors: Floats) -> dict[str, float]:
    """The median absolute error, and its interval. errors: (rows, targets), of which the mean over targets is taken."""
    ordered, rows = np.sort(errors, axis=0), len(errors)
    half = 1.959964 * math.sqrt(rows) / 2
    low, high = max(0, math.floor(rows / 2 - half)), min(rows - 1, math.ceil(rows / 2 + half))
    return {"median_error": float(np.median(ordered, axis=0).mean()),
            "median_error_low": float(ordered[low].mean()), "median_error_high": float(ordered[high].mean())}


def _interval(value: float, drawn: Floats, without_one: Floats) -> tuple[float, float]:
    """Ends of the 95% interval (BCa). drawn: the figure of each resampling. without_one: of all rows but one, each."""
    from scipy.special import ndtr, ndtri

    drawn, left_out = drawn[np.isfinite(drawn)], without_one[np.isfinite(without_one)]
    if not len(drawn) or not math.isfinite(value):
        return math.nan, math.nan
    below = (np.sum(drawn < value) + np.sum(drawn <= value)) / (2 * len(drawn))
    bias = float(ndtri(np.clip(below, 0.5 / len(drawn), 1 - 0.5 / len(drawn))))
    gaps = left_out.mean() - left_out
    spread = float((gaps**2).sum()) ** 1.5
    acceleration = float((gaps**3).sum()) / (6 * spread) if spread else 0.0
    ends = [bias + z for z in (-1.959964, 1.959964)]
    levels = [float(ndtr(bias + end / (1 - acceleration * end))) for end in ends]
    low, high = np.quantile(drawn, levels)
    return float(low), float(high)


def _sums(true: Floats, predicted: Floats) -> Floats:
    """(groups, 5, targets): rows, squared errors, absolute errors, true values, and their squares, added up by group.

    The values are taken less their mean, which changes no figure and loses no digits.
    """
    errors, values = predicted - true, true - true.mean(axis=0)
    each = np.stack([np.ones_like(errors), errors**2, np.abs(errors), values, values**2], axis=1)
    if len(each) <= MOST_GROUPS:
        return each
    starts = np.linspace(0, len(each), MOST_GROUPS, endpoint=False).astype(np.int64)
    return np.add.reduceat(each, starts, axis=0)


def _figures(sums: Floats) -> Mapping[str, Floats]:
    """Of sums (samples, 5, targets), (samples,) each: means over the targets."""
    rows, squared, absolute, values, squares = np.moveaxis(sums, 1, 0)
    spread = squares - values**2 / rows
    with np.errstate(divide="ignore", invalid="ignore"):
        r2 = np.where(spread > 1e-12 * squares, 1 - squared / spread, np.nan)
    return {"rmse": np.sqrt(squared / rows).mean(axis=1), "mae": (absolute / rows).mean(axis=1), "r2": r2.mean(axis=1)}
