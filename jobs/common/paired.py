"""Whether the difference of two models on the same rows is real: the tests, by what is predicted.

    classes    McNemar's exact test: of the rows that one gets right and the other wrong, would so uneven a split happen
               by chance?
    else       a paired bootstrap: the same rows are drawn again for both, some 4,000 times; how often is the difference
               of their figures on the other side of nothing? (Efron & Tibshirani 1993, chapter 16)
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from jobs.common.arrays import Array
from jobs.common.declared_metrics import figure
from jobs.common.evaluation.regression import MOST_GROUPS
from jobs.common.training.predictions import Predictions

SIGNIFICANT = 0.05
DRAWS = 4000
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Two classifiers on the same rows."""

    first: str
    second: str
    both: int
    """Rows that both got right."""
    only_first: int
    only_second: int
    neither: int
    p_value: float
    """McNemar's exact test, two-sided."""

    @property
    def difference(self) -> tuple[float, float, float]:
        """Accuracy of the second less that of the first, and the ends of its 95% interval (Agresti & Min 2005: half a
        row is added to each of the four counts)."""
        rows = self.both + self.only_first + self.only_second + self.neither
        b, c, n = self.only_second + 0.5, self.only_first + 0.5, rows + 2
        middle, half = (b - c) / n, 1.959964 * math.sqrt(b + c - (b - c) ** 2 / n) / n
        return (self.only_second - self.only_first) / rows, max(-1.0, middle - half), min(1.0, middle + half)

    @property
    def numbers(self) -> str:
        gap, low, high = (100 * each for each in self.difference)
        return f"difference {gap:+.2f} points, 95% interval {low:+.2f} to {high:+.2f}"

    @property
    def is_better(self) -> bool:
        """Whether the second is."""
        return self.difference[0] > 0


@dataclass(frozen=True, kw_only=True)
class PairedErrors:
    """Two models of numbers, or of text, on the same rows."""

    first: str
    second: str
    label: str
    """What the figure is called, of which less is better: `RMSE`."""
    difference: tuple[float, float, float]
    """The second's figure less that of the first, and the ends of its 95% interval."""
    p_value: float
    """Of the paired bootstrap, two-sided."""

    @property
    def numbers(self) -> str:
        gap, low, high = (f"{'+' if each > 0 else ''}{figure(each)}" for each in self.difference)
        return f"difference of the {self.label} {gap}, 95% interval {low} to {high}"

    @property
    def is_better(self) -> bool:
        """Whether the second is."""
        return self.difference[0] < 0


Pair = Paired | PairedErrors


def sentence(pair: Pair) -> str:
    """What a pair's numbers mean."""
    numbers = f"({pair.numbers}; p = {pair.p_value:.2g})"
    if pair.p_value >= SIGNIFICANT:
        return f"{pair.second} against {pair.first}: no real difference is shown {numbers}"
    return f"{pair.second} is {'better' if pair.is_better else 'worse'} than {pair.first} {numbers}"


def paired_classes(first: str, second: str, right: tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]) -> Paired:
    """right: (rows,) each, which rows each gets right."""
    a, b = right
    only_a, only_b = int((a & ~b).sum()), int((~a & b).sum())
    return Paired(first=first, second=second, both=int((a & b).sum()), only_first=only_a, only_second=only_b,
                  neither=int((~a & ~b).sum()), p_value=mcnemar(only_a, only_b))


def paired_numbers(first: str, second: str, tests: tuple[Predictions, Predictions]) -> PairedErrors:
    """By RMSE, of several targets the mean of theirs. The middle of several predictions of a target is the one."""
    squared = [(_middle(test) - _columns(test.labels)) ** 2 for test in tests]
    rows = np.ones((len(squared[0]), 1))
    difference, p_value = _bootstrap((squared[0], squared[1]), (rows, rows), root=True)
    return PairedErrors(first=first, second=second, label="RMSE", difference=difference, p_value=p_value)


def paired_tokens(first: str, second: str, tests: tuple[Predictions, Predictions]) -> PairedErrors:
    """By the loss a token. Of each row there is its loss, and how many tokens it is of."""
    losses = tests[0].probabilities.astype(np.float64), tests[1].probabilities.astype(np.float64)
    counts = tests[0].labels[:, None].astype(np.float64), tests[1].labels[:, None].astype(np.float64)
    difference, p_value = _bootstrap(losses, counts, root=False)
    return PairedErrors(first=first, second=second, label="loss, in nats a token", difference=difference,
                        p_value=p_value)


def _middle(test: Predictions) -> Array:
    predicted = _columns(test.probabilities)
    quantiles = predicted.shape[1] // _columns(test.labels).shape[1]
    return predicted[:, quantiles // 2 :: quantiles]


def _columns(values: Array) -> Floats:
    """(rows, columns)."""
    return values.reshape(len(values), -1).astype(np.float64)


def improvement(first: Array, second: Array, *, confidence: float, root: bool) -> tuple[float, float]:
    """How much less the second model's mean error is than the first's, and what it is at least in a share `confidence`
    of the draws. first, second: (rows, columns) of the same rows. root: of the mean's root, as for RMSE."""
    rows = np.ones((len(first), 1))
    gap, drawn = _differences((_columns(first), _columns(second)), (rows, rows), root=root)
    return -gap, float(np.quantile(-drawn, 1 - confidence))


def _bootstrap(errors: tuple[Floats, Floats], counts: tuple[Floats, Floats], *, root: bool) \
        -> tuple[tuple[float, float, float], float]:
    """As `_differences`, with the interval and the p-value."""
    gap, drawn = _differences(errors, counts, root=root)
    low, high = np.quantile(drawn, [0.025, 0.975])
    fewer = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return (gap, float(low), float(high)), min(1.0, 2 * (fewer + 1) / (len(drawn) + 1))


def _differences(errors: tuple[Floats, Floats], counts: tuple[Floats, Floats], *, root: bool) -> tuple[float, Floats]:
    """The difference of sums(errors) / sums(counts), of their roots where asked for: of the rows, and of each draw.

    errors: (rows, columns), of which the mean over columns is taken. counts: (rows, 1). Of many rows, groups are drawn.
    """
    starts = np.linspace(0, len(errors[0]), min(MOST_GROUPS, len(errors[0])), endpoint=False).astype(np.int64)
    summed = ([tuple(np.add.reduceat(part, starts, axis=0) for part in pair) for pair in zip(errors, counts,
                                                                                             strict=True)])
    groups, rng = len(starts), np.random.default_rng(0)

    def differences(weights: Floats) -> Floats:
        figures = [(weights @ error) / (weights @ count) for error, count in summed]
        first, second = (np.sqrt(each) if root else each for each in figures)
        return (second - first).mean(axis=1)

    drawn = np.concatenate([differences(rng.multinomial(groups, np.full(groups, 1 / groups), size=500).astype(float))
                            for _ in range(DRAWS // 500)])
    return float(differences(np.ones((1, groups)))[0]), drawn


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p-value of McNemar's exact test:
    a fair coin thrown for each row that one alone got right (McNemar 1947)."""
    from scipy.stats import binomtest

    rows = only_first + only_second
    return float(binomtest(only_first, rows).pvalue) if rows else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values of several tests, adjusted so that none of them is likely to be small by chance (Holm 1979)."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = highest
    return adjusted
