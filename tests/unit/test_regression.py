"""Figures of predicted numbers: as scikit-learn has them, with intervals that hold what they say."""

import numpy as np
import pytest
from sklearn import metrics as reference

from jobs.common.evaluation.regression import MOST_GROUPS, regression


def pair(rows: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    true = rng.normal(1e6, 20, rows)
    return true, true + rng.normal(0, 5, rows)


def test_the_figures_are_those_of_scikit_learn() -> None:
    true, predicted = pair()
    found = regression(true, predicted)
    assert found["rmse"] == pytest.approx(reference.root_mean_squared_error(true, predicted))
    assert found["mae"] == pytest.approx(reference.mean_absolute_error(true, predicted))
    assert found["r2"] == pytest.approx(reference.r2_score(true, predicted))
    assert found["median_error"] == pytest.approx(reference.median_absolute_error(true, predicted))


def test_of_several_targets_they_are_means() -> None:
    (true, predicted), (other, guess) = pair(), pair(seed=1)
    both = regression(np.stack([true, other], 1), np.stack([predicted, guess], 1))
    alone = [regression(true, predicted), regression(other, guess)]
    for name in ("rmse", "mae", "r2", "median_error"):
        assert both[name] == pytest.approx(np.mean([each[name] for each in alone]))


@pytest.mark.parametrize("rows", [60, 3 * MOST_GROUPS])
def test_95_in_100_intervals_hold_the_true_figure_whether_rows_are_drawn_or_groups_of_them(rows: int) -> None:
    """Errors are normal with deviation 5: RMSE is 5, the mean error 3.989, the median error 3.372."""
    held = {"rmse": 0, "mae": 0, "median_error": 0}
    for seed in range(100):
        found = regression(*pair(rows, seed), samples=200, seed=seed)
        for name, value in (("rmse", 5.0), ("mae", 3.9894), ("median_error", 3.3724)):
            held[name] += found[f"{name}_low"] <= value <= found[f"{name}_high"]
    assert all(86 <= count <= 100 for count in held.values()), held


def test_a_figure_that_does_not_exist_is_left_out() -> None:
    found = regression(np.ones(20), np.arange(20))
    assert "r2" not in found and found["rmse"] > 0
    alone = regression(np.array([3.0]), np.array([4.0]))
    assert (alone["rmse"], alone["median_error_low"]) == (1, 1) and "r2" not in alone
    with pytest.raises(ValueError, match=r"got \(2,\) and \(3,\)"):
        regression(np.ones(2), np.ones(3))
