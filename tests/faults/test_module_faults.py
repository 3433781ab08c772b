"""A PyTorch module of a user's own, with dropout and batch normalisation, on three workers: killed,
and resumed on another number."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from tests import runs

INTERVAL = 8
FLAGS = ["--model.build", "tests.unit.own_modules:normalised", "--train.epochs", "3", "--train.global-batch-size", "60",
         "--run.checkpoint-every-steps", str(INTERVAL), "--run.tracking-uri", "none", "--run.trace-rows",
         "--eval.robustness-rows", "0", "--eval.bootstrap-samples", "100", "--optim.name", "sgd", "--optim.lr", "0.02"]
"""No Adam: where a gradient is almost 0 it makes whole steps of rounding."""
STEPS = 3 * runs.STEPS_PER_EPOCH


def started(folder: Path, workers: int = 3) -> Any:
    return runs.run(folder, *FLAGS, "--run.workers", str(workers), quick=False, job="pytorch")


def test_killed_it_ends_with_the_same_bits_and_with_fewer_workers_within_rounding(tmp_path: Path) -> None:
    whole, killed, moved = (tmp_path / name for name in ("whole", "killed", "moved"))
    with started(whole) as job:
        assert job.finished()["steps"] == STEPS
    with started(killed) as job:
        job.until_step(20)
        job.kill_worker(1)
        job.until(lambda: job.text.count("training on 3 workers") == 2 and job.step() > 24)
        os.kill(job.process.pid, 9)
        job.process.wait()
    with started(killed) as job:
        result = job.finished()
    assert (result["restarts"], result["lost_steps"] > 0) == (2, True)
    reference, mine = runs.weights(whole), runs.weights(killed)
    assert sum("running" in name for name in reference) == 4
    assert {name: each.tobytes() for name, each in mine.items()} == {name: each.tobytes()
                                                                     for name, each in reference.items()}
    assert runs.artifact_digest(killed) == runs.artifact_digest(whole)

    with started(moved) as job:
        job.until_step(30)
        job.process.terminate()
        assert job.wait() == 3, job.text
    with started(moved, workers=1) as job:
        job.finished()
    theirs = runs.weights(moved)
    for name, array in reference.items():
        assert np.linalg.norm(theirs[name] - array) < 1e-3 * np.linalg.norm(array) + 1e-5, name
    assert runs.consumed_rows(moved) == runs.consumed_rows(whole)
