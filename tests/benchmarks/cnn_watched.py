"""jobs.cnn with a stopwatch: `python -m tests.benchmarks.cnn_watched …` takes the job's flags,
and reads watch.json (stopwatch.py).

The loop is not changed: what it calls is. A *leg* is one epoch's calls of TensorFlow, without evaluation and the
checkpoint at the epoch's end.
`without_sum` leaves the all-reduce of each step out, which is what a step of several workers costs besides.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jobs.cnn.train as loop
from jobs.cnn.group import Group
from jobs.cnn.job import JOB
from jobs.cnn.pipeline import Pipeline
from jobs.common.runs.run import main
from jobs.common.training.session import Session
from jobs.common.training.step_batcher import StepBatcher
from tests.benchmarks.stopwatch import WATCH_FILE, Record, Watch
from tests.benchmarks.turns import Turns


def train(session: Session, config: Any) -> Any:
    """jobs.cnn.train.train, watched."""
    watch = Watch(**json.loads(session.run_store.read_text(WATCH_FILE)))
    record = Record(rank=session.rank)
    turns = Turns(Path(watch.turns[0]), *watch.turns[1:]) if watch.turns and session.rank == 0 else None
    if watch.without_sum:
        Group.sum = _unsummed  # type: ignore[method-assign]
        StepBatcher.count = _agreed(StepBatcher.count)  # type: ignore[method-assign]
    Pipeline.steps = _beginning(Pipeline.steps, session, record, turns)  # type: ignore[method-assign]
    loop.CnnTraining.evaluate = _ending(loop.CnnTraining.evaluate, record)  # type: ignore[method-assign]
    try:
        return loop.train(session, config)
    finally:
        if turns:
            turns.leave()
        session.run_store.write_text(f"stopwatch/rank-{session.rank}.json", json.dumps(asdict(record)))


def _unsummed(group: Group, vector: Any) -> Any:
    return vector


def _agreed(count: Callable[..., int]) -> Callable[..., int]:
    """Where nothing is summed, rank 0's wish does not arrive."""
    def counted(batcher: Any, *args: Any) -> int:
        batcher._next = batcher._next or 16
        return count(batcher, *args)

    return counted


def _beginning(steps: Callable[..., Any], session: Session, record: Record, turns: Turns | None) -> Callable[..., Any]:
    def timed(pipeline: Pipeline, *args: Any) -> Any:
        if turns:
            turns.begin()
        # so that the other ranks do not run ahead where nothing is summed
        session.all_gather(f"turn {len(record.legs)}", True)
        record.legs.append({"began": time.perf_counter(), "cpu": -time.process_time(),
                            "steps": pipeline.steps_per_epoch})
        return steps(pipeline, *args)

    return timed


def _ending(finish: Callable[..., Any], record: Record) -> Callable[..., Any]:
    def timed(*args: Any) -> Any:
        leg = record.legs[-1]
        leg["seconds"] = time.perf_counter() - leg.pop("began")
        leg["cpu"] += time.process_time()
        return finish(*args)

    return timed


if __name__ == "__main__":
    sys.exit(main(replace(JOB, train="tests.benchmarks.cnn_watched:train")))
