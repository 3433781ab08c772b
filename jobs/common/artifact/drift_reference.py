"""Whether what a model is asked, and what it answers, still looks like the rows that it was judged on.

    columns = {**image_features(images, mean), **answer_features({"probabilities": probabilities})}
    reference = Reference.of(columns, classes)                              # when it is trained: kept in its artifact
    reference.psi(counts)                                                   # when it serves: a figure for each feature

The population stability index of a feature is the sum over its bins of (a - e) ln(a / e), with e the share of the
reference's rows in a bin and a the share of those seen since: 0 for equal shares, and the same in both directions
(Siddiqi 2006, *Credit Risk Scorecards*; as a divergence: Jeffreys 1946).
By custom, below 0.1 nothing has changed, and above 0.25 much has (Siddiqi, too).

Each share is counted with half a row more in each bin (Krichevsky and Trofimov 1981), so an empty bin gives a finite
figure. Where nothing has changed, the mean of the index is about (B - 1)(1 / n + 1 / m), of B bins and n and m rows
(Yurdakul and Naranjo 2020): there are as few bins as keep the reference's part of that below 0.03,
and `noise` says the whole of it.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cluster.core.documents import parse_json
from jobs.common.arrays import Array
from jobs.common.data.counter_rng import IntArray

STABLE, DRIFTED = 0.1, 0.25
BINS = 10
MOST_CLASS_BINS = 51
ROWS_A_BIN = 35
"""Of the reference, at the least, for each bin but one."""
_SMOOTHING = 0.5
Floats = npt.NDArray[np.floating]
Columns = Mapping[str, Array]


@dataclass(frozen=True)
class Histogram:
    """How often a feature's values fell into each of B bins.

    edges: (B - 1,) float32, rising: bin i holds what is at most edge i and above the one before. counts: (B,).
    """

    edges: npt.NDArray[np.float32]
    counts: IntArray

    @staticmethod
    def of(values: Array, edges: npt.NDArray[np.float32]) -> "Histogram":
        return Histogram(edges, np.bincount(_places(values, edges), minlength=len(edges) + 1))

    def places(self, values: Array) -> IntArray:
        """The bin of each value; NaN is in the last."""
        return _places(values, self.edges)

    def psi(self, counts: IntArray) -> float:
        """counts: (B,) of the rows seen. See the module."""
        expected, found = _shares(self.counts), _shares(counts)
        return float(((found - expected) * np.log(found / expected)).sum())

    def noise(self, rows: int) -> float:
        """What `psi` is in the mean if nothing has changed."""
        return len(self.edges) * (1 / max(1, int(self.counts.sum())) + 1 / max(1, rows))


@dataclass(frozen=True)
class Reference:
    """The features of the test split's rows, as the model was handed over."""

    features: Mapping[str, Histogram]

    @staticmethod
    def of(columns: Columns, classes: int) -> "Reference | None":
        """Of rows that the model was not trained on: it is too sure of those that it was. None where they are too few.

        columns: features of inputs, and of answers, each (rows,). classes: how many the answers tell apart; 0: none.
        """
        if len(next(iter(columns.values()))) < ROWS_A_BIN:
            return None
        edges = {name: quantile_edges(column, BINS) for name, column in columns.items()}
        if classes:
            edges["predicted_class"] = class_edges(columns["predicted_class"], classes)
        return Reference({name: Histogram.of(column, edges[name]) for name, column in columns.items()})

    def only(self, names: Collection[str]) -> "Reference":
        return Reference({name: each for name, each in self.features.items() if name in names})

    def to_json(self) -> dict[str, object]:
        return {name: {"edges": [float(str(edge)) for edge in each.edges], "counts": each.counts.tolist()}
                for name, each in self.features.items()}

    @staticmethod
    def from_json(data: bytes) -> "Reference":
        """Of what `to_json` gave. Raises: ValueError."""
        stored = parse_json(data, dict[str, _Stored])
        return Reference({name: each.histogram() for name, each in stored.items()})


@dataclass(frozen=True)
class _Stored:
    edges: tuple[float, ...]
    counts: tuple[int, ...]

    def histogram(self) -> Histogram:
        edges, counts = np.array(self.edges, np.float32), np.array(self.counts, np.int64)
        if len(counts) != len(edges) + 1 or (counts < 0).any() or not (np.diff(edges) > 0).all():
            raise ValueError("counts do not fit the bins' edges")
        return Histogram(edges, counts)


def answer_features(outputs: Columns) -> dict[str, Array]:
    """Of a model's answers by tensor: see `prediction_features`; or of numbers that are predicted, (rows, targets)
    each, these."""
    if "probabilities" in outputs:
        return prediction_features(outputs["probabilities"])
    return {f"{name} {place}" if values.shape[1] > 1 else name: values[:, place] for name, values in outputs.items()
            if values.ndim == 2 for place in range(values.shape[1])}


def prediction_features(probabilities: Floats) -> dict[str, Array]:
    """Of answers (rows, classes): the class, how sure of it, and the entropy in nats.

    To four digits, as machines round otherwise: that is no drift.
    """
    p = probabilities.astype(np.float64)
    entropy = -(p * np.log(np.maximum(p, 1e-30))).sum(1)
    return {"predicted_class": p.argmax(1), "confidence": p.max(1).round(4), "entropy": entropy.round(4)}


def quantile_edges(values: Array, most_bins: int) -> npt.NDArray[np.float32]:
    """Of bins with like numbers of rows. A value that fills a bin alone, such as 0 of many, gets one of its own."""
    count = min(most_bins, 1 + len(values) // ROWS_A_BIN)
    cuts = np.quantile(values.astype(np.float32), np.arange(1, count) / count, method="inverted_cdf")
    found, times = np.unique(cuts, return_counts=True)
    below = np.nextafter(found[times > 1], np.float32(-np.inf))
    return np.unique(np.concatenate([found, below])).astype(np.float32)


def class_edges(values: Array, classes: int) -> npt.NDArray[np.float32]:
    """A bin for each class, or for neighbouring ones together where there are too many for the rows."""
    if classes <= min(MOST_CLASS_BINS, 1 + len(values) // ROWS_A_BIN):
        return np.arange(classes - 1, dtype=np.float32)
    return quantile_edges(values, MOST_CLASS_BINS)


def _places(values: Array, edges: npt.NDArray[np.float32]) -> IntArray:
    return np.searchsorted(edges, values.astype(np.float32), side="left")


def _shares(counts: IntArray) -> Floats:
    return (counts + _SMOOTHING) / (counts.sum() + _SMOOTHING * len(counts))
