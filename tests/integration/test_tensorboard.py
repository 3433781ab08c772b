"""A run whose driver is killed shows each step once in TensorBoard, with its learning rate, and its end."""

from pathlib import Path

import pytest

from tests import runs
from tests.event_files import of_history, series

FLAGS = ["--run.tensorboard", "--train.epochs", "6", "--run.workers", "2"]


def test_a_run_that_goes_on_after_its_driver_was_killed_has_each_step_once(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with runs.run(folder, *FLAGS) as job:
        job.until(lambda: any(row["kind"] == "evaluation" for row in runs.progress(folder).get("history", [])))
        job.until_past_a_checkpoint(50)
        job.process.kill()
        job.wait()
    assert "validation/loss" in series(folder / "tensorboard")
    with runs.run(folder, *FLAGS) as job:
        assert job.finished()["restarts"] == 1
    found = series(folder / "tensorboard")
    assert len(list((folder / "tensorboard").iterdir())) == 2
    assert found == of_history(runs.progress(folder)["history"])
    assert [step for step, _ in found["validation/accuracy"]] == [19 * epoch for epoch in range(1, 7)]
    rates = dict(found["learning_rate"])
    assert {step for step, _ in found["train/loss"]} <= {*rates}
    assert rates[114] == pytest.approx(0, abs=1e-5)
