"""jobs.mlp.train with clocks around it: what the workers of a watched run load (see stopwatch.py).

The loop is not changed: the session that it is given is. A *leg* is one epoch's steps: taking batches, forward,
backward, all-reduce, optimiser and everything else in the step path,
without evaluation and the checkpoint at the epoch's end.
"""

import json
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jobs.mlp.train as loop
import jobs.pytorch.images.training as image_training
from jobs.common.training.session import Session
from jobs.pytorch.process_group import Group
from tests.benchmarks.stopwatch import WATCH_FILE, Record, Watch
from tests.benchmarks.turns import Turns


def train(session: Session, config: Any, train: Callable[[Session, Any], Any] = loop.train) -> Any:
    """jobs.mlp.train.train, watched, or that of another job."""
    watch = Watch(**json.loads(session.run_store.read_text(WATCH_FILE)))
    record = Record(rank=session.rank)
    turns = Turns(Path(watch.turns[0]), *watch.turns[1:]) if watch.turns and session.rank == 0 else None
    _watch_steps(session, watch, record)
    _watch_legs(session, record, turns, _watch_parts() if watch.parts else {})
    if watch.checkpoint_phases:
        _watch_checkpoints(session, record, watch.checkpoint_phases)
    try:
        return train(session, config)
    finally:
        if turns:
            turns.leave()
        session.run_store.write_text(f"stopwatch/rank-{session.rank}.json", json.dumps(asdict(record)))


def _watch_steps(session: Session, watch: Watch, record: Record) -> None:
    on_step_end = session.progress.on_step_end
    file = None
    if watch.log_steps:
        path = session.run_store.local_path(f"stopwatch/steps-{session.generation}-{session.rank}.txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w", buffering=1)

    def watched(*, step: int, loss: Any, **rest: Any) -> None:
        on_step_end(step=step, loss=loss, **rest)
        if file:
            file.write(f"{time.time()} {step}\n")
        if watch.stamps:
            record.stamps.append(time.perf_counter())
        if watch.losses:
            record.losses.extend(loss)

    session.progress.on_step_end = watched  # type: ignore[method-assign]


def _watch_legs(session: Session, record: Record, turns: Turns | None, parts: dict[str, list[float]]) -> None:
    make_loader = session.data_loader

    def watched_loader() -> Any:
        loader = make_loader()
        epoch_of = loader.epoch

        def epoch(number: int, start_step: int = 0) -> Iterator[Any]:
            if turns:
                turns.begin()
            for each in parts.values():
                each.clear()
            wait, steps, cpu, began = loader.wait_s, 0, (time.thread_time(), time.process_time()), time.perf_counter()
            try:
                for taken in epoch_of(number, start_step):
                    steps += 1
                    yield taken
            finally:  # the loop breaks out of the last epoch
                leg: dict[str, Any] = {"seconds": time.perf_counter() - began, "cpu": time.thread_time() - cpu[0],
                                       "steps": steps,
                                       "process_cpu": time.process_time() - cpu[1], "wait": loader.wait_s - wait}
                record.legs.append(leg | {name: list(each) for name, each in parts.items()})

        loader.epoch = epoch  # type: ignore[method-assign]
        return loader

    session.data_loader = watched_loader  # type: ignore[method-assign]


def _watch_parts() -> dict[str, list[float]]:
    """Clocks around the loop's functions, in this process: seconds of each call, by the function's name."""
    parts: dict[str, list[float]] = {}
    for owner, name in ((loop, "backward"), (image_training, "step_if_finite"), (Group, "reduce"),
                        (Group, "_all_reduce")):
        setattr(owner, name, _clocked(getattr(owner, name), parts.setdefault(name.strip("_"), [])))
    return parts


def _clocked(function: Callable[..., Any], each: list[float]) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        result = function(*args, **kwargs)
        each.append(time.perf_counter() - began)
        return result

    return timed


def _watch_checkpoints(session: Session, record: Record, phase: int) -> None:
    due, save = session.checkpoints.checkpoint_due, session.checkpoints.save

    def due_in_phase(step: int) -> bool:
        if step % phase == 0:
            record.peak_rss.append((step, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))
        return step // phase % 2 == 1 and due(step)

    def timed_save(*args: Any, step: int, **kwargs: Any) -> None:
        before = session.checkpoints.writer.timings  # what the checkpoint before this one cost
        began = time.perf_counter()
        save(*args, step=step, **kwargs)
        record.checkpoints.append({"at": step, "save_s": time.perf_counter() - began,
                                   **(vars(before) if before else {})})

    session.checkpoints.checkpoint_due = due_in_phase  # type: ignore[method-assign]
    session.checkpoints.save = timed_save  # type: ignore[method-assign]
