"""The account of a run: steps executed twice, time to recover, what outlives a driver."""

import json
from pathlib import Path

import pytest

from cluster.core.errors import CheckpointError
from cluster.core.storage import Store
from jobs.common.execution.run_state import RunState
from jobs.common.training.rendezvous import Heartbeat


def run_state(tmp_path: Path) -> RunState:
    return RunState.open(Store.open(str(tmp_path)))


def test_steps_beyond_the_checkpoint_are_lost_and_steps_before_it_are_not(tmp_path: Path) -> None:
    account = run_state(tmp_path)
    account.observe(None, 47, [])
    account.reached(49)
    account.failure("worker 1 was lost")
    account.resume_from(40)
    assert (account.lost_steps, account.restarts, account.highest_step) == (9, 1, 40)
    account.observe(None, 41, [])
    assert account.recovery_s == [], "steps 41 to 49 are only repeated"
    account.observe(None, 50, [])
    assert len(account.recovery_s) == 1
    account.resume_from(50)
    assert account.lost_steps == 9


def test_an_account_outlives_its_driver_and_a_killed_one_counts_as_a_restart(tmp_path: Path) -> None:
    first = run_state(tmp_path)
    first.observe(Heartbeat(median_step_s=0.5), 30, [{"kind": "evaluation", "step": 30}])
    first.save()
    second = run_state(tmp_path)
    assert (second.restarts, second.highest_step, second.history) == (1, 30, [{"kind": "evaluation", "step": 30}])
    second.resume_from(24)
    assert second.lost_steps == 6
    second.save(ended=True)
    assert run_state(tmp_path).restarts == 1


def test_goodput_is_unique_steps_at_the_median_pace_over_the_wall_time(tmp_path: Path) -> None:
    account = run_state(tmp_path)
    account.observe(Heartbeat(median_step_s=0.001), 100, [])
    assert account.goodput > 0
    account.resume_from(50)
    halved = account.goodput
    account.observe(None, 100, [])
    assert account.goodput > halved


def test_a_step_that_is_repeated_is_remembered_once_and_in_its_place(tmp_path: Path) -> None:
    account = run_state(tmp_path)
    told = ((10, 1.0), (20, 2.0), (10, 3.0))
    evaluations = [{"kind": "evaluation", "step": step, "validation_loss": loss} for step, loss in told]
    account.observe(None, 20, evaluations[:2])
    account.observe(None, 21, [{"kind": "progress", "step": 10}])
    account.observe(None, 22, evaluations[2:])
    assert account.history == [{"kind": "progress", "step": 10}, evaluations[2], evaluations[1]]


def test_an_evaluation_is_kept_at_once(tmp_path: Path) -> None:
    account = run_state(tmp_path)
    account.observe(None, 1, [])  # which has just saved
    account.observe(None, 2, [{"kind": "evaluation", "step": 2}])
    assert run_state(tmp_path).history == [{"kind": "evaluation", "step": 2}]


def test_steps_that_are_left_out_outlive_a_driver_and_a_damaged_account(tmp_path: Path) -> None:
    account = run_state(tmp_path)
    account.exclude([7, 5])
    (tmp_path / "progress.json").write_text("{ half of it")
    again = run_state(tmp_path)
    assert again.excluded_steps == (5, 7)
    assert "progress.json was damaged" in again.events[0]


def test_a_damaged_list_of_steps_to_leave_out_is_refused(tmp_path: Path) -> None:
    run_state(tmp_path).exclude([5])
    path = tmp_path / "excluded_steps.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"content": {"steps": []}}))
    with pytest.raises(CheckpointError, match=r"sha256 differs.*restore it, or begin another run"):
        run_state(tmp_path)
