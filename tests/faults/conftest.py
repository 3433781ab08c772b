"""One uninterrupted run on 3 workers, which every run that something was done to must equal bit for bit."""

import random
from pathlib import Path

import pytest

from tests import runs
from tests.faults import cnn, walk

EPOCHS = 12
FLAGS = ["--run.workers", "3", "--train.epochs", str(EPOCHS), "--run.trace-rows"]
"""Dropout and augmentation are on, as they are by default: 228 steps."""


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference") / "run"
    with runs.run(folder, *FLAGS) as job:
        assert job.finished()["lost_steps"] == 0
    return folder


@pytest.fixture(scope="session")
def cnn_reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CNN's run that nothing happened to."""
    folder = tmp_path_factory.mktemp("cnn") / "run"
    with cnn.started(folder) as job:
        result = job.finished()
    assert (result["steps"], result["lost_steps"]) == (cnn.STEPS, 0)
    assert result["metrics"]["test"]["accuracy"] > 0.8
    return folder


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that one worker makes with --run.exact any-workers."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    with runs.run(folder, *walk.FLAGS, "--run.workers", "1") as job:
        job.finished()
    return folder


def some_step(first: int = 25, last: int = 120) -> int:
    """A random step, past the first checkpoint and well before the end; pytest shows it where a test fails."""
    step = random.randint(first, last)
    print(f"at step {step}")
    return step


def same_result(folder: Path, reference: Path) -> None:
    """The same weights, optimiser state and consumed rows as the uninterrupted run."""
    assert runs.artifact_digest(folder) == runs.artifact_digest(reference)
    mine, theirs = runs.weights(folder), runs.weights(reference)
    assert len(mine) > 6
    assert {name: tensor.tobytes() for name, tensor in mine.items()} == {name: t.tobytes()
                                                                         for name, t in theirs.items()}
    rows = runs.consumed_rows(reference)
    assert len(rows) == EPOCHS * runs.STEPS_PER_EPOCH * 3
    assert runs.consumed_rows(folder) == rows
