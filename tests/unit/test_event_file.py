"""TensorBoard's events of a run: what is in the file, no step twice, and no end of training because of it."""

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cluster.core.storage import Store
from jobs.common.runs.event_file import FOLDER, EventFile, event_file
from tests.event_files import of_history, series
from tests.s3 import BUCKET


def progress(step: int, loss: float) -> dict[str, Any]:
    return {"kind": "progress", "step": step, "epoch": 0, "train_loss": loss, "learning_rate": step / 1000}


def evaluation(step: int, loss: float) -> dict[str, Any]:
    return {"kind": "evaluation", "step": step, "epoch": 1, "validation_loss": loss, "validation_top_2_accuracy": 0.5}


ROWS = [progress(1, 2.0), progress(5, 1.0), evaluation(6, 1.5), progress(6, 0.9), progress(9, 0.5)]


def test_rows_are_there_as_they_come(tmp_path: Path) -> None:
    with closing(EventFile(tmp_path, [])) as file:
        for row in ROWS:
            file.log([row])
        found = series(tmp_path)
    assert found == of_history(ROWS), "flushed at each"
    assert found["train/loss"] == [(step, pytest.approx(loss)) for step, loss in ((1, 2), (5, 1), (6, 0.9), (9, 0.5))]
    assert set(found) == {"train/loss", "learning_rate", "validation/loss", "validation/top_2_accuracy"}


def test_what_is_done_again_takes_the_place_of_what_was(tmp_path: Path) -> None:
    again = [evaluation(6, 1.4), progress(7, 0.8)]
    with closing(EventFile(tmp_path, [])) as file:
        file.log(ROWS)
        file.log(again)
    assert series(tmp_path) == of_history([ROWS[0], ROWS[1], ROWS[3], *again, ROWS[4]])


def test_the_file_of_a_later_start_is_the_history_and_what_comes(tmp_path: Path) -> None:
    with closing(EventFile(tmp_path, [])) as file:
        file.log(ROWS)
    with closing(EventFile(tmp_path, ROWS[:3])) as file:  # a driver was killed before it had kept the rest
        assert series(tmp_path) == of_history(ROWS[:3])
        file.log([progress(7, 0.7)])
    assert series(tmp_path) == of_history([*ROWS[:3], progress(7, 0.7)])
    assert len(list(tmp_path.iterdir())) == 2


def test_nothing_is_written_unless_it_is_wanted(tmp_path: Path) -> None:
    with event_file(False, Store.open(str(tmp_path)), [], print) as log:
        log(ROWS)
    assert not list(tmp_path.iterdir())


def test_an_object_store_gets_the_file_at_each_evaluation_and_at_the_end(s3: str, tmp_path: Path) -> None:
    store = Store.open(f"s3://{BUCKET}/events")

    def seen() -> dict[str, list[tuple[int, float]]]:
        for file in store.files():
            store.copy_to(Store.open(str(tmp_path)), file.path, file.path)
        return series(tmp_path / FOLDER)

    with event_file(True, store, [], print) as log:
        log(ROWS[:2])
        assert not store.files()
        log([ROWS[2]])
        assert seen() == of_history(ROWS[:3])
        log(ROWS[3:])
        assert seen() == of_history(ROWS[:3])
    assert seen() == of_history(ROWS)


def test_what_cannot_be_written_is_said_once(tmp_path: Path) -> None:
    (tmp_path / FOLDER).write_text("no folder")
    said: list[str] = []
    with event_file(True, Store.open(str(tmp_path)), [], said.append) as log:
        log(ROWS)
        log(ROWS)
    assert len(said) == 1
    assert said[0].startswith("--run.tensorboard: ") and "training goes on" in said[0]
