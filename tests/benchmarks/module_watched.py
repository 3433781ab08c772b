"""jobs.pytorch with a stopwatch: `python -m tests.benchmarks.module_watched …` takes the job's flags,
and reads watch.json (stopwatch.py)."""

import sys
from dataclasses import replace
from typing import Any

import jobs.pytorch.train as loop
from jobs.common.runs.run import main
from jobs.common.training.session import Session
from jobs.pytorch.job import JOB
from tests.benchmarks import watched


def train(session: Session, config: Any) -> Any:
    """jobs.pytorch.train.train, watched."""
    return watched.train(session, config, loop.train)


if __name__ == "__main__":
    sys.exit(main(replace(JOB, train="tests.benchmarks.module_watched:train")))
