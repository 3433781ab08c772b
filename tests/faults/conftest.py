"""One uninterrupted run on 3 workers, which every run that something was done to must equal bit for bit."""

from pathlib import Path

import pytest

from tests import runs

FLAGS = ["--run.workers", "3", "--train.epochs", "30", "--run.trace-rows"]
"""Dropout and augmentation are on, as they are by default: 570 steps."""


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference") / "run"
    with runs.run(folder, *FLAGS) as job:
        assert job.finished()["lost_steps"] == 0
    return folder


def same_result(folder: Path, reference: Path) -> None:
    """The same weights, optimiser state and consumed rows as the uninterrupted run."""
    assert runs.artifact_digest(folder) == runs.artifact_digest(reference)
    mine, theirs = runs.weights(folder), runs.weights(reference)
    assert len(mine) > 6
    assert {name: tensor.tobytes() for name, tensor in mine.items()} == {name: t.tobytes() for name, t in theirs.items()}
    rows = runs.consumed_rows(reference)
    assert len(rows) == 570 * 3
    assert runs.consumed_rows(folder) == rows
