"""How good a classifier is: from class probabilities and true labels to every number and curve that a report shows.

    evaluation = evaluate(probabilities, labels, class_names, top_k=3, bootstrap_samples=1000)
    evaluation.scalars()          # {"accuracy": 0.98, …} for result.json and the registry

The predicted class is the most probable one, the first of those that tie. Averages over classes leave out a class for
which the number does not exist: one without rows has no recall, and no AUC.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportMissingTypeStubs=false
# pyright: reportUnknownArgumentType=false

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.common.arrays import Array
from jobs.common.evaluation.roc import FloatArray, IntArray, RocCurve, mean_curve, roc_curve

NUM_BINS = 15


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """One row of the per-class table; each number but the counts is a fraction, or None where it does not exist."""

    name: str
    support: int
    """Rows that are of this class."""
    predicted: int
    """Rows that were said to be of this class."""
    precision: float | None
    recall: float | None
    f1: float | None
    auc: float | None


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """The rows whose confidence lies in (low, high]: how sure the model was, and how often it was right."""

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What `evaluate` found. Arrays are small: nothing here grows with the rows."""

    num_rows: int
    class_names: tuple[str, ...]
    accuracy: float
    accuracy_low: float
    """Lower end of its 95% interval, Wilson's."""
    accuracy_high: float
    balanced_accuracy: float
    """Mean recall over the classes that have rows."""
    macro_f1: float
    """Mean F1 over the classes that have rows or were predicted."""
    macro_f1_low: float
    """Lower end of its 95% bootstrap interval; where no row is wrong, of the accuracy's."""
    macro_f1_high: float
    log_loss: float
    """Mean of -ln(probability of the true class), in nats."""
    top_k: int
    top_k_accuracy: float
    expected_calibration_error: float
    auc_macro: float | None
    auc_micro: float | None
    confusion: IntArray
    """(classes, classes): rows by true class, columns by predicted class."""
    classes: tuple[ClassScore, ...]
    reliability: tuple[ReliabilityBin, ...]
    roc_classes: tuple[RocCurve | None, ...]
    """One against the rest; None for a class without rows, or with all of them."""
    roc_macro: RocCurve | None
    roc_micro: RocCurve | None

    def scalars(self) -> dict[str, float]:
        """The single numbers by name. One that does not exist (an AUC where all rows are of one class) is left out."""
        names = ("accuracy", "accuracy_low", "accuracy_high", "balanced_accuracy", "macro_f1", "macro_f1_low",
                 "macro_f1_high", "log_loss", "auc_macro", "auc_micro", "expected_calibration_error")
        values = {name: getattr(self, name) for name in names}
        if self.top_k < len(self.class_names):
            values[f"top_{self.top_k}_accuracy"] = self.top_k_accuracy
        return {name: float(value) for name, value in values.items() if value is not None}


def evaluate(
    probabilities: FloatArray,
    labels: IntArray,
    class_names: Sequence[str],
    *,
    top_k: int,
    bootstrap_samples: int,
    seed: int = 0,
) -> Evaluation:
    """Judges a classifier on rows that it has not seen.

    probabilities: (rows, classes), each row sums to 1. labels: (rows,), 0 to classes - 1. A `top_k` larger than the
    number of classes is that number. Raises: ValueError if shapes disagree, there are no rows, a value is not finite or
    not in [0, 1], a row does not sum to 1 within 1e-3, or a label is no class.
    """
    probabilities, labels = _checked(np.asarray(probabilities), np.asarray(labels), class_names)
    predicted = probabilities.argmax(axis=1)
    accuracy = float((predicted == labels).mean())
    low, high = wilson_interval(accuracy, len(labels))
    curves = tuple(_class_curve(probabilities[:, k], labels == k) for k in range(len(class_names)))
    confusion, classes = _class_table(labels, predicted, class_names, curves)
    f1_low, f1_high = macro_f1_interval(confusion, bootstrap_samples, seed) if accuracy < 1 else (low, high)
    macro, micro = mean_curve([curve for curve in curves if curve]), _micro_curve(probabilities, labels)
    return Evaluation(
        num_rows=len(labels), class_names=tuple(class_names), accuracy=accuracy, accuracy_low=low, accuracy_high=high,
        balanced_accuracy=_mean([score.recall for score in classes]), macro_f1=_mean([score.f1 for score in classes]),
        macro_f1_low=f1_low, macro_f1_high=f1_high,
        log_loss=log_loss(probabilities, labels), top_k=min(top_k, len(class_names)),
        top_k_accuracy=top_k_accuracy(probabilities, labels, top_k),
        expected_calibration_error=expected_calibration_error(probabilities, labels),
        auc_macro=macro.area if macro else None, auc_micro=micro.area if micro else None, confusion=confusion,
        classes=classes, reliability=reliability_bins(probabilities, labels), roc_classes=curves, roc_macro=macro,
        roc_micro=micro,
    )


def log_loss(probabilities: FloatArray, labels: IntArray) -> float:
    """Mean of -ln p(true class), in nats;
    p is at least its type's epsilon, as in scikit-learn, so the mean is finite."""
    chosen = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(chosen, np.finfo(probabilities.dtype).eps), dtype=np.float64).mean())


def top_k_accuracy(probabilities: FloatArray, labels: IntArray, top_k: int) -> float:
    """Fraction of rows whose true class is among the k most probable; of equal ones the first come first."""
    chosen = probabilities[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(probabilities.shape[1]) < labels[:, None]
    ahead = (probabilities > chosen).sum(axis=1) + ((probabilities == chosen) & earlier).sum(axis=1)
    return float((ahead < top_k).mean())


def reliability_bins(probabilities: FloatArray, labels: IntArray,
                     num_bins: int = NUM_BINS) -> tuple[ReliabilityBin, ...]:
    """Confidence against accuracy in bins of equal width, as a reliability diagram draws them."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    correct = probabilities.argmax(axis=1) == labels
    place = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    counts = np.bincount(place, minlength=num_bins)
    sure = np.bincount(place, weights=confidence, minlength=num_bins)
    right = np.bincount(place, weights=correct, minlength=num_bins)
    return tuple(
        ReliabilityBin(low=i / num_bins, high=(i + 1) / num_bins, count=int(n),
                       confidence=float(sure[i] / n) if n else None, accuracy=float(right[i] / n) if n else None)
        for i, n in enumerate(counts)
    )


def expected_calibration_error(probabilities: FloatArray, labels: IntArray, num_bins: int = NUM_BINS) -> float:
    """Gap between confidence and accuracy, weighted by bin size (Guo et al. 2017, eq. 3). A fraction in [0, 1]."""
    bins = reliability_bins(probabilities, labels, num_bins)
    gaps = [b.count * abs(b.accuracy - b.confidence) for b in bins if b.accuracy is not None
            and b.confidence is not None]
    return float(sum(gaps) / len(labels))


def wilson_interval(accuracy: float, num_rows: int) -> tuple[float, float]:
    """95% score interval of a share of rows (Wilson 1927).

    Unlike a bootstrap's it has a width where all rows are right, or none: what a sample does not hold may be there.
    """
    z2 = 1.959964**2
    center = (accuracy + z2 / (2 * num_rows)) / (1 + z2 / num_rows)
    half = math.sqrt(z2 * (accuracy * (1 - accuracy) + z2 / (4 * num_rows)) / num_rows) / (1 + z2 / num_rows)
    return max(0.0, center - half), min(1.0, center + half)


def macro_f1_interval(confusion: IntArray, samples: int, seed: int = 0) -> tuple[float, float]:
    """95% percentile interval of the macro-F1 over resamplings of the rows, without drawing any row.

    confusion: (classes, classes).
    The cells of a resampled confusion matrix are exactly Multinomial(rows, cells / rows).
    """
    true, said = np.nonzero(confusion)
    cells = confusion[true, said]
    rng, num_rows, size = np.random.default_rng(seed), int(cells.sum()), len(confusion)
    found = np.empty(samples)
    for i in range(samples):
        drawn = rng.multinomial(num_rows, cells / num_rows).astype(np.float64)
        seen = np.bincount(true, drawn, size) + np.bincount(said, drawn, size)
        right = np.bincount(true[true == said], drawn[true == said], size)
        found[i] = (2 * right[seen > 0] / seen[seen > 0]).mean()
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)


@dataclass(frozen=True, kw_only=True)
class Mistakes:
    """Rows that were wrong. images: (n, height, width, channels), uint8 or float; the others (n,)."""

    images: Array
    labels: NDArray[np.integer]
    predictions: NDArray[np.integer]
    confidences: NDArray[np.floating]


def worst_mistakes(probabilities: FloatArray, labels: IntArray, limit: int = 24) -> NDArray[np.int64]:
    """The rows that were wrong with the greatest confidence, worst first: at most `limit` positions."""
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    order = np.argsort(-probabilities[wrong].max(axis=1), kind="stable") if len(wrong) else wrong
    return wrong[order[:limit]]


def _checked(probabilities: FloatArray, labels: IntArray, class_names: Sequence[str]) -> tuple[FloatArray, IntArray]:
    classes = len(class_names)
    if probabilities.ndim != 2 or probabilities.shape[1] != classes or classes < 2:
        raise ValueError(f"probabilities must be (rows, {classes}), two classes or more: got {probabilities.shape}")
    if labels.shape != probabilities.shape[:1] or not len(labels):
        raise ValueError(f"labels must be ({len(probabilities)},), one row or more: got {labels.shape}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be integers: got {labels.dtype}")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels must lie in 0..{classes - 1}: got {labels.min()}..{labels.max()}")
    if not np.isfinite(probabilities).all():
        raise ValueError("probabilities hold NaN or infinite values")
    off = np.abs(probabilities.sum(axis=1, dtype=np.float64) - 1).max()
    if off > 1e-3 or probabilities.min() < 0:
        raise ValueError("each row of probabilities must be in [0, 1] and sum to 1 within 1e-3: one is off by "
                         f"{off:.3g}, the least value is {probabilities.min():.3g}")
    wide = probabilities if probabilities.dtype.itemsize >= 4 else probabilities.astype(np.float32)
    return wide, labels.astype(np.int64)


def _class_curve(scores: FloatArray, is_class: NDArray[np.bool_]) -> RocCurve | None:
    return roc_curve(scores[is_class], scores[~is_class])


def _micro_curve(probabilities: FloatArray, labels: IntArray) -> RocCurve | None:
    """All rows and classes as one yes-or-no question."""
    others = np.ones(probabilities.shape, dtype=bool)
    others[np.arange(len(labels)), labels] = False
    return roc_curve(probabilities[~others], probabilities[others])


def _class_table(
    labels: IntArray, predicted: IntArray, class_names: Sequence[str], curves: Sequence[RocCurve | None]
) -> tuple[IntArray, tuple[ClassScore, ...]]:
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    every = np.arange(len(class_names))
    confusion = confusion_matrix(labels, predicted, labels=every)
    absent: Any = np.nan  # its stub knows only the strings
    scores: Any = precision_recall_fscore_support(labels, predicted, labels=every, zero_division=absent)
    precision, recall, f1 = ([None if math.isnan(v) else float(v) for v in column] for column in scores[:3])
    support, said = confusion.sum(axis=1), confusion.sum(axis=0)
    return confusion, tuple(
        ClassScore(name=name, support=int(support[i]), predicted=int(said[i]), precision=precision[i], recall=recall[i],
                   f1=f1[i], auc=getattr(curves[i], "area", None))
        for i, name in enumerate(class_names)
    )


def _mean(values: Sequence[float | None]) -> float:
    present = [value for value in values if value is not None]
    return float(np.mean(present)) if present else 0.0
