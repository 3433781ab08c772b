"""The figures agree with scikit-learn's, exist where classes are missing, and refuse what is no distribution."""

import time

import numpy as np
import pytest
from sklearn import metrics as reference

from jobs.common.declared_metrics import classification, headlines
from jobs.common.evaluation.metrics import (
    evaluate,
    expected_calibration_error,
    log_loss,
    macro_f1_interval,
    top_k_accuracy,
    wilson_interval,
    worst_mistakes,
)
from jobs.common.evaluation.roc import roc_curve
from tests.benchmarks.paired import paired_interval


def sample(rows, classes, seed=0, sharpness=2.0, dtype=np.float32):
    """Probabilities of a middling classifier, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    logits = rng.normal(size=(rows, classes))
    logits[np.arange(rows), labels] += sharpness
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return probabilities.astype(dtype), labels


def judge(probabilities, labels, **options):
    names = [f"class {k}" for k in range(probabilities.shape[1])]
    return evaluate(probabilities, labels, names, **{"top_k": 3, "bootstrap_samples": 1000} | options)


@pytest.mark.parametrize("classes", [3, 10, 50])
def test_every_number_agrees_with_scikit_learn(classes):
    probabilities, labels = sample(2000, classes, dtype=np.float64)
    found, predicted = judge(probabilities, labels), probabilities.argmax(axis=1)
    expected = {
        "accuracy": reference.accuracy_score(labels, predicted),
        "balanced_accuracy": reference.balanced_accuracy_score(labels, predicted),
        "macro_f1": reference.f1_score(labels, predicted, average="macro"),
        "log_loss": reference.log_loss(labels, probabilities),
        **({"top_3_accuracy": reference.top_k_accuracy_score(labels, probabilities, k=3)} if classes > 3 else {}),
        "auc_macro": reference.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro"),
        "auc_micro": reference.roc_auc_score(labels, probabilities, multi_class="ovr", average="micro"),
    }
    scalars = found.scalars()
    assert {name: scalars[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    np.testing.assert_array_equal(found.confusion, reference.confusion_matrix(labels, predicted))
    per_class = reference.precision_recall_fscore_support(labels, predicted)
    for row, *values in zip(found.classes, *per_class, strict=True):
        assert (row.precision, row.recall, row.f1, row.support) == pytest.approx(values)


def test_a_roc_curve_with_ties_is_scikit_learns():
    rng = np.random.default_rng(1)
    scores, truth = rng.integers(0, 20, 500) / 20, rng.random(500) < 0.3
    curve = roc_curve(scores[truth], scores[~truth])
    false, true, _ = reference.roc_curve(truth, scores, drop_intermediate=False)
    assert curve.area == pytest.approx(reference.auc(false, true), abs=1e-12)
    drawn = np.interp(false, curve.false_positive_rate, curve.true_positive_rate)
    distinct = np.append(np.diff(false) > 0, True)  # at a vertical step np.interp gives its upper end
    np.testing.assert_allclose(drawn[distinct], true[distinct], atol=1e-12)


def test_a_thinned_curve_stays_on_the_curve_and_keeps_its_area():
    probabilities, labels = sample(20_000, 2, dtype=np.float64)
    scores, truth = probabilities[:, 1], labels == 1
    curve = roc_curve(scores[truth], scores[~truth])
    false, true, _ = reference.roc_curve(truth, scores, drop_intermediate=False)
    vertices = set(zip(false.round(9), true.round(9), strict=True))
    points = np.stack([curve.false_positive_rate, curve.true_positive_rate], axis=1)
    assert 100 < len(points) <= 200
    assert vertices.issuperset(map(tuple, points.round(9)))
    assert (points[0], points[-1]) == (pytest.approx([0, 0]), pytest.approx([1, 1]))
    drawn = np.interp(false + true, points.sum(axis=1), points[:, 1])
    np.testing.assert_allclose(drawn, true, atol=0.011)
    assert curve.area == pytest.approx(reference.roc_auc_score(truth, scores), abs=1e-12)


def test_two_classes_need_no_special_case():
    probabilities, labels = sample(500, 2)
    found = judge(probabilities, labels)
    assert found.auc_macro == pytest.approx(reference.roc_auc_score(labels, probabilities[:, 1]), abs=1e-6)
    assert found.top_k == 2 and found.top_k_accuracy == 1.0


def test_a_class_without_rows_has_no_recall_and_no_auc_and_leaves_the_averages():
    probabilities, labels = sample(400, 4)
    labels[labels == 2] = 1
    found = judge(probabilities, labels)
    absent = found.classes[2]
    assert (absent.support, absent.recall, absent.auc) == (0, None, None)
    recalls = [row.recall for row in found.classes if row.support]
    assert found.balanced_accuracy == pytest.approx(np.mean(recalls))
    assert found.auc_macro == pytest.approx(np.mean([row.auc for row in found.classes if row.auc is not None]))
    assert found.confusion[2].sum() == 0


def test_rows_of_a_single_class_have_no_macro_auc_but_all_else():
    probabilities, _ = sample(50, 3)
    found = judge(probabilities, np.zeros(50, int))
    assert found.auc_macro is None and "auc_macro" not in found.scalars()
    assert all(np.isfinite(value) for value in found.scalars().values())


def test_top_k_of_equal_probabilities_does_not_count_every_class():
    uniform = np.full((10, 5), 0.2)
    labels = np.arange(10) % 5
    assert top_k_accuracy(uniform, labels, 1) == (uniform.argmax(axis=1) == labels).mean()
    assert top_k_accuracy(uniform, labels, 2) == pytest.approx(0.4)


def test_a_certain_and_wrong_row_costs_a_finite_log_loss():
    certain = np.array([[1.0, 0.0], [1.0, 0.0]])
    assert log_loss(certain, np.array([0, 1])) == pytest.approx(reference.log_loss([0, 1], certain))


def test_calibration_error_of_known_bins():
    probabilities = np.array([[0.9, 0.1]] * 10 + [[0.6, 0.4]] * 10)
    labels = np.array([0] * 9 + [1] + [0] * 2 + [1] * 8)  # right 9 of 10 at 0.9, 2 of 10 at 0.6
    assert expected_calibration_error(probabilities, labels) == pytest.approx(0.5 * 0.0 + 0.5 * 0.4)
    assert sum(b.count for b in judge(probabilities, labels).reliability) == 20


@pytest.mark.parametrize(("right", "rows"), [(270, 300), (1, 7), (120, 120), (0, 40)])
def test_the_interval_of_the_accuracy_is_wilsons_and_has_a_width_where_nothing_is_wrong(right: int, rows: int):
    from scipy import stats

    reference = stats.binomtest(right, rows).proportion_ci(method="wilson")
    low, high = wilson_interval(right / rows, rows)
    assert (low, high) == pytest.approx((reference.low, reference.high), abs=1e-6)
    assert high - low > 0.02


def test_a_flawless_classifiers_intervals_have_a_width_and_there_is_no_top_2_of_2():
    found = judge(np.eye(2)[np.arange(120) % 2], np.arange(120) % 2, top_k=3)
    assert (found.accuracy, found.macro_f1) == (1, 1)
    assert found.accuracy_low == found.macro_f1_low == pytest.approx(0.969, abs=1e-3)
    assert not [name for name in found.scalars() if name.startswith("top_")]
    assert not [name for name, _ in headlines(classification(3), found.scalars()) if name.startswith("top-")]


def test_paired_interval_is_the_student_t_interval_of_the_differences():
    from scipy import stats

    a, b = [0.98, 0.985, 0.99, 0.975], [0.97, 0.98, 0.985, 0.98]
    mean, low, high = paired_interval(a, b)
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (mean, low, high) == pytest.approx((np.mean(np.subtract(a, b)), expected.low, expected.high))
    with pytest.raises(ValueError, match="got 1 and 1"):
        paired_interval([0.9], [0.8])


def test_worst_mistakes_are_the_most_confident_wrong_rows():
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.95, 0.05]])
    assert worst_mistakes(probabilities, np.array([1, 1, 1, 1])).tolist() == [3, 0, 1]
    assert worst_mistakes(probabilities, np.array([1, 1, 1, 1]), limit=1).tolist() == [3]
    assert worst_mistakes(probabilities, np.array([0, 0, 1, 0])).size == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, y: (p[:, :2], y), r"must be \(rows, 3\)"),
        (lambda p, y: (p, y[:-1]), r"labels must be \(20,\)"),
        (lambda p, y: (p[:0], y[:0]), "one row or more"),
        (lambda p, y: (p, y + 1), r"labels must lie in 0\.\.2"),
        (lambda p, y: (p, y - 1), r"labels must lie in 0\.\.2"),
        (lambda p, y: (p, y.astype(float)), "labels must be integers"),
        (lambda p, y: (np.where(p == p.max(), np.nan, p), y), "NaN or infinite"),
        (lambda p, y: (p * 1.01, y), "sum to 1 within 1e-3"),
        (lambda p, y: (p + np.array([1, -1, 0]), y), "least value"),
    ],
)
def test_what_is_no_distribution_or_no_label_is_refused(change, message):
    probabilities, labels = change(*sample(20, 3, dtype=np.float64))
    with pytest.raises(ValueError, match=message):
        evaluate(probabilities, labels, ["a", "b", "c"], top_k=1, bootstrap_samples=100)


def test_half_precision_probabilities_are_judged():
    probabilities, labels = sample(200, 5, dtype=np.float16)
    assert judge(probabilities, labels).accuracy == (probabilities.argmax(axis=1) == labels).mean()


def test_a_thousand_classes_take_seconds():
    probabilities, labels = sample(5000, 1000, sharpness=4.0)
    began = time.process_time()
    found = judge(probabilities, labels, top_k=5)
    assert time.process_time() - began < 20  # about 1 s
    assert found.confusion.shape == (1000, 1000) and 0.5 < found.auc_macro <= 1


def test_the_interval_of_macro_f1_is_that_of_resampled_rows():
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 5, 400)
    predicted = np.where(rng.random(400) < 0.7, labels, rng.integers(0, 5, 400))
    resampled = [reference.f1_score(labels[rows], predicted[rows], average="macro")
                 for rows in rng.integers(0, 400, (2000, 400))]
    low, high = macro_f1_interval(reference.confusion_matrix(labels, predicted), 4000)
    assert (low, high) == pytest.approx(tuple(np.percentile(resampled, [2.5, 97.5])), abs=0.008)
    assert low < reference.f1_score(labels, predicted, average="macro") < high
