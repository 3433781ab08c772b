"""A population that learns while it trains: whose weights a member takes, and that a driver which dies in between
changes nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.core.errors import CheckpointError
from cluster.core.storage import Store
from jobs.common.checkpoint.store import Checkpoints
from jobs.common.checkpoint.writer import CheckpointWriter
from tests.unit.test_search import EPOCHS, decisions, open_search, row
from tuning.search import Search


def run_member(folder: Path, name: str, until_epoch: int) -> None:
    """Stands in for a trial's process: leaves a checkpoint after each epoch."""
    store = Store.open(str(folder / "trials" / name / "checkpoints"))
    generation = Checkpoints(store).begin_generation()
    with CheckpointWriter(store, generation, config_fingerprint="", environment={}, keep_last=2) as writer:
        for epoch in range(1, until_epoch + 1):
            weight = np.full(3, epoch + 100 * int(name[1:5]), np.float32)
            writer.save({"model.weight": weight}, {}, step=10 * epoch, epoch=epoch, metric=0.0)


class Killed(Exception):
    """The driver, in the middle of something."""


def carry_out_population(folder: Path, search: Search, most: int = 10**6, *,
                         before_the_checkpoint: bool = False) -> None:
    """before_the_checkpoint: dies when the last of those members has been evaluated,
    and its process has written nothing."""
    for k in range(most):
        if search.over:
            return
        trial, until_epoch = search.next() or pytest.fail()
        # a member that is started again reports from where it rested
        for epoch in range(trial.paused + 1, until_epoch + 1):
            search.evaluated(trial.number, row(trial.values, epoch))
        if before_the_checkpoint and k == most - 1:
            raise Killed
        run_member(folder, trial.folder, until_epoch)
        search.paused(trial.number)
        search.on_trial_slot_free(trial.number)


POPULATION = ["--scheduler", "pbt", "--search", "random", "--num-trials", "8", "--perturb-every-epochs", "3"]


def test_the_worst_quarter_of_a_population_goes_on_from_copies_of_the_best(tmp_path: Path) -> None:
    search = open_search(tmp_path, *POPULATION)
    carry_out_population(tmp_path, search)
    assert [trial.epoch for trial in search.trials.values()] == [EPOCHS] * 8
    for epoch in (3, 6):
        scores = {n: next(r for r in t.evaluations if r["epoch"] == epoch)["validation_accuracy"]
                  for n, t in search.trials.items()}
        order = sorted(scores, key=lambda n: (-scores[n], n))
        moved = {n: move for n, t in search.trials.items() for move in t.moves if move["epoch"] == epoch}
        assert set(moved) == set(order[6:])
        assert {move["source"] for move in moved.values()} <= set(order[:2])
        for n, move in moved.items():
            of_source = search.trials[move["source"]]
            assert move["values"]["optim.name"] == of_source.values["optim.name"], "a field that is not mutable"
            place = 1 + [m["epoch"] for m in search.trials[n].moves].index(epoch)
            copied = Store.open(str(tmp_path / "trials" / f"t{n:04d}-{place}" / "checkpoints"))
            first = min(Checkpoints(copied).committed(), key=lambda c: c.step)
            assert (first.epoch, first.step) == (epoch, 10 * epoch)
            assert not Checkpoints(copied).damages(first)


def test_a_population_that_is_killed_moves_the_same_members_to_the_same_places(tmp_path: Path) -> None:
    whole = open_search(tmp_path / "whole", *POPULATION)
    carry_out_population(tmp_path / "whole", whole)
    for _ in range(40):
        search = open_search(tmp_path / "killed", *POPULATION)
        if search.over:
            break
        carry_out_population(tmp_path / "killed", search, most=1)
    assert decisions(search) == decisions(whole)


def test_a_member_whose_checkpoint_was_not_written_yet_is_started_again(tmp_path: Path) -> None:
    """An evaluation is in the journal before the checkpoint that it was made at is written."""
    whole = open_search(tmp_path / "whole", *POPULATION)
    carry_out_population(tmp_path / "whole", whole)
    for most in (3, 6):  # of the first rest, then of the second
        search = open_search(tmp_path / "killed", *POPULATION)
        with pytest.raises(Killed):
            carry_out_population(tmp_path / "killed", search, most, before_the_checkpoint=True)
    search = open_search(tmp_path / "killed", *POPULATION)
    carry_out_population(tmp_path / "killed", search)
    assert decisions(search) == decisions(whole)


def test_nobody_moves_while_a_member_still_writes(tmp_path: Path) -> None:
    search = open_search(tmp_path, *POPULATION)
    for _ in range(8):
        trial, until_epoch = search.next() or pytest.fail()
        for epoch in range(1, until_epoch + 1):
            search.evaluated(trial.number, row(trial.values, epoch))
    assert search.next() is None, "all are evaluated, none has come to rest"
    for number in range(8):
        run_member(tmp_path, search.trials[number].folder, 3)
        search.paused(number)
        search.on_trial_slot_free(number)
    assert search.next() is not None
    assert sum(len(trial.moves) for trial in search.trials.values()) == 2


def test_a_member_that_fails_after_the_moves_moves_nobody_else(tmp_path: Path) -> None:
    search = open_search(tmp_path, *POPULATION)
    carry_out_population(tmp_path, search, most=9)  # the ninth is of the second round
    moves = {number: list(trial.moves) for number, trial in search.trials.items()}
    assert sum(map(len, moves.values())) == 2
    for number in moves:
        if moves[number]:
            search.failed(number, "out of memory", fatal=True)
            search.next()
            assert {n: trial.moves for n, trial in search.trials.items()} == moves


def test_after_a_move_to_other_steps_an_epoch_every_evaluation_counts(tmp_path: Path) -> None:
    search = open_search(tmp_path, *POPULATION)
    carry_out_population(tmp_path, search, most=8)
    search.next()
    number, trial = next((n, t) for n, t in search.trials.items() if t.moves)
    assert trial.moves[-1]["step"] == 30
    for epoch, step in ((4, 35), (5, 40), (6, 45)):  # 5 steps an epoch where there were 10
        search.evaluated(number, row(trial.values, epoch) | {"step": step})
    search.evaluated(number, row(trial.values, 6) | {"step": 20})
    assert [r["epoch"] for r in trial.evaluations] == [1, 2, 3, 4, 5, 6]


def test_a_move_is_made_whole_when_the_driver_dies_in_the_middle(tmp_path: Path,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    whole = open_search(tmp_path / "whole", *POPULATION)
    carry_out_population(tmp_path / "whole", whole)
    search = open_search(tmp_path / "killed", *POPULATION)
    add, moves = search.journal.add, []

    def dies(number: int, **event: Any) -> Any:
        if event["kind"] == "moved" and moves:
            raise KeyboardInterrupt
        moves.extend([event] if event["kind"] == "moved" else [])
        return add(number, **event)

    monkeypatch.setattr(search.journal, "add", dies)
    with pytest.raises(KeyboardInterrupt):
        carry_out_population(tmp_path / "killed", search)
    again = open_search(tmp_path / "killed", *POPULATION)
    carry_out_population(tmp_path / "killed", again)
    assert [t.moves for t in again.trials.values()] == [t.moves for t in whole.trials.values()]


def test_a_source_without_its_checkpoint_is_an_error(tmp_path: Path) -> None:
    from tuning.schedulers import copy_checkpoint

    run_member(tmp_path, "t0000", 2)
    store = Store.open(str(tmp_path / "trials"))
    with pytest.raises(CheckpointError, match="no checkpoint after epoch 7"):
        copy_checkpoint(store.child("t0000"), store.child("t0001"), 7)
