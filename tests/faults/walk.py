"""A run of `--run.exact any-workers` that goes from three workers to one, two and three, with SIGKILLs on the way."""

import os
import random
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests import runs

FLAGS = ["--run.exact", "any-workers", "--run.num-shards", "5", "--train.epochs", "20", "--run.trace-rows",
         "--eval.robustness-rows", "50"]
"""Of the MLP: dropout and augmentation are on, as they are by default: 380 steps."""


def some_steps(first: int, last: int) -> list[int]:
    """Four random ones in order; pytest shows them where the test fails."""
    steps = sorted(random.sample(range(first, last), 4))
    print(f"at steps {steps}")
    return steps


def kill_worker(job: runs.Job, slot: int) -> None:
    job.kill_worker(slot)


def kill_driver(job: runs.Job) -> None:
    os.kill(job.process.pid, signal.SIGKILL)


def walked(start: Callable[[int], runs.Start], steps: Sequence[int],
           kill_worker: Callable[[runs.Job, int], None] | None = kill_worker,
           kill_driver: Callable[[runs.Job], None] = kill_driver, timeout_s: float = 240) -> dict[str, Any]:
    """Kills a worker (None: leaves them alone) and the driver at these steps. Returns the run's result.
    start: the run, on so many workers."""
    for workers, step in zip((3, 1, 2), steps, strict=False):
        with start(workers) as job:
            job.until_step(step)
            if workers > 1 and kill_worker:
                kill_worker(job, workers - 1)
                job.until(lambda job=job: job.text.count("training on ") == 2)
            kill_driver(job)
            job.process.wait()
    with start(3) as job:
        job.until_step(steps[-1])
        if kill_worker:
            kill_worker(job, 0)
        result = job.finished(timeout_s)
    assert "bit for bit" not in job.text, "the promise holds"
    return result


def evaluations(folder: Path) -> list[dict[str, Any]]:
    return [row for row in runs.progress(folder)["history"] if row["kind"] == "evaluation"]


def same(folder: Path, alone: Path) -> None:
    """The bits of weights, moments, metrics and the artifact."""
    expected = {name: each.tobytes() for name, each in runs.weights(alone).items()}
    assert {name: each.tobytes() for name, each in runs.weights(folder).items()} == expected
    assert runs.artifact_digest(folder) == runs.artifact_digest(alone)
    assert runs.result(folder)["metrics"] == runs.result(alone)["metrics"]
