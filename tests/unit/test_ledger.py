"""The account of a run: steps executed twice, time to recover, what outlives a driver."""

from pathlib import Path

from cluster.storage import Store
from jobs.common.ledger import Ledger


def ledger(tmp_path: Path) -> Ledger:
    return Ledger.open(Store.open(str(tmp_path)))


def test_steps_beyond_the_checkpoint_are_lost_and_steps_before_it_are_not(tmp_path: Path) -> None:
    account = ledger(tmp_path)
    account.observe({}, 47, [])
    account.reached(49)
    account.failure("worker 1 was lost")
    account.resume_from(40)
    assert (account.lost_steps, account.restarts, account.highest_step) == (9, 1, 40)
    account.observe({}, 41, [])
    assert len(account.recovery_s) == 1
    account.resume_from(41)
    assert account.lost_steps == 9


def test_an_account_outlives_its_driver_and_a_killed_one_counts_as_a_restart(tmp_path: Path) -> None:
    first = ledger(tmp_path)
    first.observe({"median_step_s": 0.5}, 30, [{"kind": "evaluation", "step": 30}])
    first.save()
    second = ledger(tmp_path)
    assert (second.restarts, second.highest_step, second.history) == (1, 30, [{"kind": "evaluation", "step": 30}])
    second.resume_from(24)
    assert second.lost_steps == 6
    second.save(ended=True)
    assert ledger(tmp_path).restarts == 1


def test_goodput_is_unique_steps_at_the_median_pace_over_the_wall_time(tmp_path: Path) -> None:
    account = ledger(tmp_path)
    account.observe({"median_step_s": 0.001}, 100, [])
    assert account.goodput > 0
    account.resume_from(50)
    halved = account.goodput
    account.observe({}, 100, [])
    assert account.goodput > halved
