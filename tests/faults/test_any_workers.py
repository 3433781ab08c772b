"""`--run.exact any-workers`: a run that is killed, stopped, and gone on with on other numbers of workers, again and
again, ends with the bits of a run that one worker made alone."""

import os
import random
from pathlib import Path
from typing import Any

from tests import runs

FLAGS = ["--run.exact", "any-workers", "--run.num-shards", "5", "--train.epochs", "20", "--run.trace-rows",
         "--eval.robustness-rows", "50"]
"""Dropout and augmentation are on, as they are by default: 380 steps."""


def started(folder: Path, workers: int) -> Any:
    return runs.run(folder, *FLAGS, "--run.workers", str(workers))


def evaluations(folder: Path) -> list[dict[str, Any]]:
    return [row for row in runs.progress(folder)["history"] if row["kind"] == "evaluation"]


def test_three_one_two_three_workers_with_kills_end_with_the_bits_of_one(tmp_path: Path) -> None:
    alone, moved = tmp_path / "alone", tmp_path / "moved"
    with started(alone, 1) as job:
        expected = job.finished()
    steps = sorted(random.sample(range(20, 150), 4))
    print(f"at steps {steps}")  # pytest shows it where the test fails
    for workers, step in zip((3, 1, 2), steps, strict=False):
        with started(moved, workers) as job:
            job.until_step(step)
            if workers > 1:
                job.kill_worker(workers - 1)
                job.until(lambda job=job: job.text.count("training on ") == 2)
            os.kill(job.process.pid, 9)
            job.process.wait()
    with started(moved, 3) as job:
        job.until_step(steps[-1])
        job.kill_worker(0)
        result = job.finished()
    assert "bit for bit" not in job.text, "the promise holds"
    assert result["restarts"] > 0
    same = {name: each.tobytes() for name, each in runs.weights(alone).items()}
    assert {name: each.tobytes() for name, each in runs.weights(moved).items()} == same
    assert runs.artifact_digest(moved) == runs.artifact_digest(alone)
    assert result["metrics"] == expected["metrics"]
    assert evaluations(moved) == evaluations(alone)
    assert runs.consumed_rows(moved) == runs.consumed_rows(alone)
