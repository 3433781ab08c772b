"""A class of a user's own, with dropout, batch normalisation, its own loss, optimiser, schedule and a metric of all
rows, on three workers: killed, and resumed on another number."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from tests import runs

INTERVAL, EPOCHS = 50, 40
FLAGS = ["--data.uri", "diabetes", "--model.build", "tests.unit.own_classes:Steady", "--train.epochs", str(EPOCHS),
         "--train.early-stopping-epochs", "None", "--train.global-batch-size", "12", "--eval.metric", "worst_error",
         "--run.checkpoint-every-steps", str(INTERVAL), "--run.tracking-uri", "none", "--run.trace-rows",
         "--eval.importance-rows", "0", "--eval.bootstrap-samples", "100"]
STEPS = EPOCHS * 23


def started(folder: Path, workers: int = 3) -> Any:
    return runs.run(folder, *FLAGS, "--run.workers", str(workers), quick=False, job="tabular")


def test_killed_it_ends_with_the_same_bits_and_with_fewer_workers_within_rounding(tmp_path: Path) -> None:
    whole, killed, moved = (tmp_path / name for name in ("whole", "killed", "moved"))
    with started(whole) as job:
        assert job.finished()["steps"] == STEPS
    with started(killed) as job:
        job.until_step(200)
        job.kill_worker(1)
        job.until(lambda: job.text.count("training on 3 workers") == 2 and job.step() > 300)
        os.kill(job.process.pid, 9)
        job.process.wait()
    with started(killed) as job:
        result = job.finished()
    assert (result["restarts"], result["lost_steps"] > 0) == (2, True)
    reference, mine = runs.weights(whole), runs.weights(killed)
    assert sum("running" in name for name in reference) == 2
    assert {name: each.tobytes() for name, each in mine.items()} == {name: each.tobytes()
                                                                     for name, each in reference.items()}
    assert runs.artifact_digest(killed) == runs.artifact_digest(whole)

    with started(moved) as job:
        job.until_step(300)
        job.process.terminate()
        assert job.wait() == 3, job.text
    with started(moved, workers=1) as job:
        job.finished()
    theirs = runs.weights(moved)
    for name, array in reference.items():
        assert np.linalg.norm(theirs[name] - array) < 1e-3 * np.linalg.norm(array) + 1e-5, name
    assert runs.consumed_rows(moved) == runs.consumed_rows(whole)
