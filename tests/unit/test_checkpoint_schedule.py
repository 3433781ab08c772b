"""When checkpoints are taken, and what a failure can cost at most."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.common.checkpoint.schedule import MAX_COST, CheckpointSchedule, Costs


def most_steps_lost(every_steps: int, write_steps: int, last_step: int, steps: int = 500) -> int:
    """Runs a loop whose writes take `write_steps` steps; the most that dying during any step would have cost."""
    cadence, committed, in_flight, worst = CheckpointSchedule(every_steps, last_step), last_step, None, 0
    for step in range(last_step + 1, last_step + steps):
        worst = max(worst, step - committed)  # dying at the end of this step, before anything else
        if in_flight is not None and step - in_flight >= write_steps:
            committed, in_flight = in_flight, None
        if cadence.due(step):
            committed, in_flight = (committed if in_flight is None else in_flight), step
            cadence.begun(step)
        deadline = cadence.must_be_committed_by()
        if in_flight is not None and deadline is not None and step >= deadline:
            committed, in_flight = in_flight, None  # the loop waits
    return worst


@given(st.integers(1, 120), st.integers(1, 300), st.integers(0, 10_000))
def test_a_failure_never_costs_more_than_every_steps(every_steps: int, write_steps: int, last_step: int) -> None:
    assert most_steps_lost(every_steps, write_steps, last_step) <= every_steps


def test_snapshots_come_every_three_quarters_and_are_committed_a_quarter_later() -> None:
    cadence, taken = CheckpointSchedule(100, 0), list[tuple[int, int | None]]()
    for step in range(1, 301):
        if cadence.due(step):
            cadence.begun(step)
            taken.append((step, cadence.must_be_committed_by()))
    assert taken == [(75, 100), (150, 175), (225, 250), (300, 325)]


def test_every_step_means_every_step_is_committed_before_the_next() -> None:
    cadence = CheckpointSchedule(1, 0)
    assert cadence.due(1)
    cadence.begun(1)
    assert not cadence.due(1)
    assert cadence.must_be_committed_by() == 1
    assert cadence.due(2)


def test_counting_goes_on_from_the_step_that_a_run_resumes_at() -> None:
    cadence = CheckpointSchedule(100)
    assert next(step for step in range(1001, 1100) if cadence.due(step)) == 1075


def test_a_snapshot_out_of_turn_moves_the_next_one() -> None:
    cadence = CheckpointSchedule(100, 0)
    cadence.begun(50)
    assert not cadence.due(75)
    assert cadence.due(125)


@given(st.floats(1e-4, 100), st.floats(0, 5), st.floats(0, 100), st.floats(0, 5))
def test_auto_keeps_the_cost_small_and_the_interval_between_ten_seconds_and_ten_minutes(
    step_s: float, blocking_s: float, write_s: float, background_s: float,
) -> None:
    costs = Costs(step_s, blocking_s, write_s, background_s)
    assert 10 <= costs.interval_s <= 600
    assert (blocking_s + background_s) <= MAX_COST * costs.interval_s * (1 + 1e-9) or costs.interval_s == 600
    assert abs(costs.every_steps * step_s - costs.interval_s) <= step_s


def test_auto_spaces_costly_checkpoints_further_apart() -> None:
    cadence = CheckpointSchedule("auto", 0)
    cadence.observe(0.1)
    assert cadence.every_steps == 100  # 10 s
    cadence.observe(0.1, blocking_s=0.1, write_s=3.0, background_s=0.5)
    assert cadence.every_steps == 300  # 0.6 s is 2% of 30 s
    cadence.observe(0.1, blocking_s=0.0, write_s=20.0, background_s=0.0)
    assert cadence.every_steps == 800  # a write of 20 s fits in a quarter


def test_auto_takes_an_early_snapshot_to_learn_what_one_costs() -> None:
    cadence = CheckpointSchedule("auto", 0)
    assert not cadence.due(14)
    assert cadence.due(15)


def test_a_fixed_number_of_steps_does_not_listen_to_costs() -> None:
    cadence = CheckpointSchedule(8, 0)
    cadence.observe(10.0, 10.0, 10.0)
    assert cadence.every_steps == 8


@pytest.mark.parametrize("every_steps", [1, 2, 3, 4, 5, 7])
def test_small_intervals_hold_too(every_steps: int) -> None:
    assert most_steps_lost(every_steps, write_steps=3, last_step=0) <= every_steps


@given(st.integers(1, 60), st.integers(1, 100), st.integers(1, 64), st.integers(5, 50))
def test_steps_in_one_go_never_cost_more_than_every_steps(every_steps: int, write_steps: int, most: int,
                                                          epoch_steps: int) -> None:
    """How many come next is settled a call ahead, before it is known whether a checkpoint is taken;
    one is at each epoch's end."""
    cadence, step, count, committed, worst = CheckpointSchedule(every_steps, 0), 0, 1, 0, 0
    in_flight: int | None = None
    while step < 400:
        count = min(count, epoch_steps - step % epoch_steps)
        following = min(most, cadence.room(step + count))
        for _ in range(count):
            step += 1
            worst = max(worst, step - committed)
            if in_flight is not None and step - in_flight >= write_steps:
                committed, in_flight = in_flight, None
        for begins in (cadence.due(step), step % epoch_steps == 0):
            if begins:
                committed, in_flight = (committed if in_flight is None else in_flight), step
                cadence.begun(step)
            deadline = cadence.must_be_committed_by()
            if in_flight is not None and deadline is not None and step >= deadline:
                committed, in_flight = in_flight, None
        count = following
    assert worst <= every_steps
