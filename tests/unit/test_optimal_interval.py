"""How often to save, against what failures cost: the formulas, and a simulation of the cadence that runs use."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.common.checkpoint.optimal_interval import best_interval_s, mean_time_between_failures_s
from jobs.common.checkpoint.schedule import MAX_COST, MIN_INTERVAL_S, SNAPSHOT_SHARE, CheckpointSchedule, Costs
from tests.benchmarks.failures import Life, simulate
from tests.benchmarks.goodput_model import expected_goodput


@given(st.floats(0.1, 100), st.floats(1e3, 1e7))
def test_no_interval_beats_the_best_one_by_much(cost_s: float, mtbf_s: float) -> None:
    best = best_interval_s(cost_s, mtbf_s)
    reached = expected_goodput(best, cost_s, mtbf_s)
    assert all(expected_goodput(best * factor, cost_s, mtbf_s) <= reached * (1 + 1e-4)
               for factor in (0.3, 0.7, 0.95, 1.05, 1.5, 4))


def test_the_best_interval_is_youngs_where_checkpoints_cost_little() -> None:
    assert best_interval_s(1.0, 1e8) == pytest.approx(math.sqrt(2 * 1.0 * 1e8), rel=1e-3)
    assert best_interval_s(50.0, 20.0) == 20.0, "dearer than the time there is: Daly's own bound"


@pytest.mark.parametrize(("mtbf_min", "best_min"), [(24 * 60, 117), (6 * 60, 57), (15, 9.1)])
def test_the_best_interval_is_that_of_dalys_examples(mtbf_min: float, best_min: float) -> None:
    """His figures 3 to 5: a checkpoint takes 5 minutes."""
    assert best_interval_s(300.0, 60.0 * mtbf_min) / 60 == pytest.approx(best_min, rel=0.01)


def test_goodput_falls_with_costs_and_failures_and_never_leaves_its_range() -> None:
    assert expected_goodput(600, 0.0, 1e12) == pytest.approx(1.0)
    cases = ((1, 1e5), (10, 1e5), (10, 1e4))
    values = [expected_goodput(600, cost_s, mtbf_s, commit_s=5, recovery_s=30) for cost_s, mtbf_s in cases]
    assert values == sorted(values, reverse=True)
    assert expected_goodput(1e9, 1.0, 10.0) == 0.0, "nothing is ever committed"


def test_many_nodes_fail_more_often() -> None:
    assert mean_time_between_failures_s(24.0, 24) == 3600


@pytest.mark.parametrize(("cost_s", "mtbf_s"), [(0.5, 3600.0), (2.0, 1800.0), (5.0, 600.0)])
def test_the_cadence_of_runs_reaches_the_goodput_of_the_model(cost_s: float, mtbf_s: float) -> None:
    """A simulation of 100 failures, in which the real `CheckpointSchedule` says when to save."""
    life = Life(step_s=1.0, blocking_s=cost_s, write_s=4.0, mtbf_s=mtbf_s, recovery_s=20.0)
    found = simulate(life, failures=100, seed=1)
    assert found.goodput == pytest.approx(found.model, abs=0.01)


@pytest.mark.parametrize(("worker_mtbf_s", "worker_recovery_s"), [(600.0, 4.0), (60.0, 4.0), (20.0, 10.0)])
def test_failures_that_others_make_good_stretch_time_as_the_model_says(worker_mtbf_s: float,
                                                                       worker_recovery_s: float) -> None:
    life = Life(step_s=0.5, blocking_s=1.0, write_s=4.0, mtbf_s=3600.0, recovery_s=20.0,
                worker_mtbf_s=worker_mtbf_s, worker_recovery_s=worker_recovery_s)
    found = simulate(life, failures=100, seed=1)
    assert found.goodput == pytest.approx(found.model, abs=0.005)
    assert found.goodput < math.exp(-worker_recovery_s / worker_mtbf_s)


def test_auto_saves_more_rarely_where_fewer_failures_need_storage() -> None:
    often, rarely = (Costs(step_s=1.0, blocking_s=1.0, background_s=0.0, mtbf_s=mtbf_s).every_steps
                     for mtbf_s in (3600.0, 36_000.0))
    assert rarely > 2 * often


# ── what `auto` makes of it ──
def test_auto_takes_the_best_interval_where_it_knows_how_often_the_run_fails() -> None:
    cadence = CheckpointSchedule("auto", 0, mtbf_s=3600.0)
    cadence.observe(0.1, blocking_s=1.0, write_s=2.0, background_s=0.0)
    assert cadence.every_steps == round(best_interval_s(1.0, 3600.0) / SNAPSHOT_SHARE / 0.1)
    assert cadence.every_steps < 1.0 / MAX_COST / 0.1 * 3, "not left at what is cheap"


@given(st.floats(0, 60), st.floats(0, 100), st.floats(60, 1e8))
def test_auto_keeps_its_bounds_whatever_it_knows_of_failures(cost_s: float, write_s: float, mtbf_s: float) -> None:
    interval = Costs(step_s=0.1, blocking_s=cost_s, write_s=write_s, background_s=0.0, mtbf_s=mtbf_s).interval_s
    assert interval >= max(MIN_INTERVAL_S, 4 * write_s)
    assert interval <= max(600.0, cost_s / MAX_COST, 4 * write_s), "ten minutes, but for what would then cost too much"


def test_a_rare_failure_does_not_stretch_the_interval_beyond_ten_minutes() -> None:
    assert Costs(step_s=1.0, blocking_s=0.5, background_s=0.0, mtbf_s=3e7).interval_s == 600


def test_frequent_failures_may_cost_more_checkpoints_than_two_percent() -> None:
    often = Costs(step_s=1.0, blocking_s=10.0, background_s=0.0, mtbf_s=900.0)
    assert often.cost_s / often.interval_s > MAX_COST
    assert often.interval_s < Costs(step_s=1.0, blocking_s=10.0, background_s=0.0).interval_s
