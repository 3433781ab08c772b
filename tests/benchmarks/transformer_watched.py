"""jobs.transformer with clocks: where a step's time goes.
`python -m tests.benchmarks.transformer_watched …` takes the job's flags.

The loop is not changed: the session and the functions that it calls are. What is no communication, data or checkpoint
is compute. Each rank leaves steps/rank-N.json: of each step its seconds, its real tokens,
and how much of it went where.
"""

import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import jobs.transformer.train as loop
from jobs.common.runs.run import main
from jobs.common.training.session import Session
from jobs.pytorch.gradients.buckets import GradientBuckets
from jobs.pytorch.process_group import Group
from jobs.transformer.job import JOB


def train(session: Session, config: Any) -> Any:
    """jobs.transformer.train.train, watched."""
    clocks = {"communication": 0.0, "data": 0.0, "checkpoint": 0.0, "tokens": 0.0}
    stamps: list[dict[str, float]] = []
    for owner, name in ((Group, "total"), (GradientBuckets, "wait")):
        setattr(owner, name, _clocked(getattr(owner, name), clocks, "communication"))
    session.checkpoints.save = _clocked(session.checkpoints.save, clocks, "checkpoint")  # type: ignore[method-assign]
    _watch_loader(session, clocks)
    on_step_end = session.progress.on_step_end

    def watched(**values: Any) -> None:
        on_step_end(**values)
        stamps.append({"at": time.perf_counter(), **clocks})

    session.progress.on_step_end = watched  # type: ignore[method-assign]
    try:
        return loop.train(session, config)
    finally:
        steps = [{name: after[name] - before[name] for name in after} for before, after in itertools.pairwise(stamps)]
        session.run_store.write_text(f"steps/rank-{session.rank}.json", json.dumps(steps))


def _clocked(function: Callable[..., Any], clocks: dict[str, float], name: str) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            clocks[name] += time.perf_counter() - began

    return timed


def _watch_loader(session: Session, clocks: dict[str, float]) -> None:
    make_loader = session.data_loader

    def watched_loader(*args: Any) -> Any:
        loader = make_loader(*args)
        epoch_of = loader.epoch

        def epoch(number: int, start_step: int = 0) -> Iterator[Any]:
            steps = epoch_of(number, start_step)
            while True:
                began = time.perf_counter()
                taken = next(steps, None)
                clocks["data"] += time.perf_counter() - began
                if taken is None:
                    return
                clocks["tokens"] += sum(float(columns["length"].sum()) for columns in taken[1].values())
                yield taken

        loader.epoch = epoch  # type: ignore[method-assign]
        return loader

    session.data_loader = watched_loader  # type: ignore[method-assign]


if __name__ == "__main__":
    sys.exit(main(replace(JOB, train="tests.benchmarks.transformer_watched:train")))
