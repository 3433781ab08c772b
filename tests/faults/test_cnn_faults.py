"""The CNN under MultiWorkerMirroredStrategy: killed, stopped, resumed on other numbers of workers, damaged.

Three workers under the local binding, a tiny network with batch normalisation, dropout and augmentation: the result is
the uninterrupted run's bit for bit, or with another number of workers within rounding.
"""

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jobs.cnn.framework", reason="needs TensorFlow (pip install 'trainyard[tensorflow]')")

from jobs.cnn.config import CnnConfig
from jobs.cnn.train import train
from jobs.common.config import parse
from tests import image_loops, runs
from tests.faults import cnn

SMOOTH = ["--model.build", "tests.unit.own_networks:smooth", "--optim.name", "sgd", "--optim.momentum", "0.9",
          "--optim.lr", "0.02"]
"""Rounding stays rounding: maxima and ReLU's kinks would decide by it,
and Adam makes whole steps of it where a gradient is 0."""


def test_a_rank_and_then_the_driver_are_killed_and_the_result_is_the_same(cnn_reference: Path, tmp_path: Path) -> None:
    """The survivors form a cluster with the new one in the same processes."""
    folder = tmp_path / "run"
    with cnn.started(folder) as job:
        job.until_step(20)
        others = {slot: pid for slot, pid in job.workers().items() if slot != 1}
        job.kill_worker(1)
        job.until(lambda: job.text.count("training on 3 workers") == 2 and job.step() > cnn.STEPS // 2)
        assert {slot: pid for slot, pid in job.workers().items() if slot != 1} == others
        os.kill(job.process.pid, signal.SIGKILL)
        job.process.wait()
    with cnn.started(folder) as again:
        result = again.finished()
    assert result["restarts"] == 2
    assert result["lost_steps"] <= 1 + cnn.INTERVAL, "the driver's death alone goes back to a checkpoint"
    cnn.same(folder, cnn_reference)


# ── another number of workers: the same micro-batches, other sums ──
@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """One worker with the three shards of three: nothing is sent. Its folder, and its evaluations."""
    folder = tmp_path_factory.mktemp("alone")
    config = parse(CnnConfig, [*cnn.FLAGS, *SMOOTH, "--run.workers", "3"], "cnn")
    outcome, evaluations = image_loops.train(train, folder / "run", image_loops.digits(folder), config, num_shards=3)
    assert outcome == "finished"
    return folder / "run", evaluations


def close_to(alone: Path, folder: Path) -> None:
    mine, theirs = runs.weights(folder), image_loops.tensors(alone)
    assert sum("moving" in name for name in theirs) == 4
    for name, array in theirs.items():
        assert np.linalg.norm(mine[name] - array) < 1e-3 * np.linalg.norm(array) + 1e-5, name
    assert runs.relative_difference(mine, theirs) < 1e-4


def test_three_workers_compute_what_one_does(alone: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    """Gradients, moving statistics, and the metrics of every epoch."""
    with cnn.started(tmp_path / "run", 3, *SMOOTH) as job:
        job.finished()
    close_to(alone[0], job.folder)
    together = [row for row in runs.progress(job.folder)["history"] if row["kind"] == "evaluation"]
    assert [row["step"] for row in alone[1]] == [row["step"] for row in together]
    assert len(together) == cnn.EPOCHS
    for mine, theirs in zip(alone[1], together, strict=True):
        assert mine["validation_loss"] == pytest.approx(theirs["validation_loss"], rel=1e-3)
        assert mine["validation_accuracy"] == pytest.approx(theirs["validation_accuracy"], abs=1.1 / 287)


def test_stopped_on_three_workers_and_gone_on_with_on_two_and_on_one(alone: tuple[Path, list[dict[str, Any]]],
                                                                     cnn_reference: Path,
                                                                     tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for workers, step in ((3, 25), (2, 60)):
        with cnn.started(folder, workers, *SMOOTH) as job:
            job.until(lambda step=step: job.step() >= step)
            os.kill(job.process.pid, signal.SIGTERM)
            assert job.wait() == 3, job.text
        damaged = runs.manifests(folder)[-1]
    part = folder / "checkpoints/data" / damaged.parent.name / damaged.stem / "rank-0.safetensors"
    part.write_bytes(part.read_bytes()[:-8])
    with cnn.started(folder, 1, *SMOOTH) as job:
        result = job.finished()
    assert f"{part.name}: has" in job.text, "the damaged checkpoint is named before training starts"
    assert result["lost_steps"] > 0
    close_to(alone[0], folder)
    assert runs.consumed_rows(folder) == runs.consumed_rows(cnn_reference)
