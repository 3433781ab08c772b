"""The MLP job with a stopwatch around its real loop, in a process of its own;
what was measured is read back as records.

    with stopwatch.started(folder, Watch(losses=True), "--run.engine", "local", …) as job:
        job.finished()
    record = stopwatch.records(folder)[0]

The clocks themselves are in watched.py, which the workers load instead of jobs.mlp.train.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from jobs.common.runs.run import main
from jobs.mlp.job import JOB
from tests.runs import Job, python

WATCH_FILE = "watch.json"
BARE = ("--run.tracking-uri", "none", "--eval.bootstrap-samples", "100", "--run.hang-timeout-s", "1000")


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What to look at."""

    turns: tuple[str, int, int] | None = None
    """Folder, place, and how many take turns; a turn is an epoch with what follows it."""
    losses: bool = False
    stamps: bool = False
    """The time of each step."""
    log_steps: bool = False
    """Writes the time of each step to a file at once, which survives a SIGKILL."""
    parts: bool = False
    """Seconds of each backward pass, all-reduce and optimiser step, with the leg."""
    without_sum: bool = False
    """Of the CNN: leaves the sum over the workers out of each step."""
    checkpoint_phases: int | None = None
    """Checkpoints are off for so many steps, then on for as many, and so on."""


@dataclass
class Record:
    """Of one rank, in seconds."""

    rank: int
    legs: list[dict[str, Any]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    stamps: list[float] = field(default_factory=list)
    checkpoints: list[dict[str, float]] = field(default_factory=list)
    peak_rss: list[tuple[int, int]] = field(default_factory=list)
    """(step, highest resident bytes up to then)"""


@contextmanager
def started(folder: Path, watch: Watch, *flags: str, module: str = "tests.benchmarks.stopwatch") -> Iterator[Job]:
    """A watched run in `folder`, whose parent is its storage; all that it started ends with the block.
    module: what runs it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WATCH_FILE).write_text(json.dumps(asdict(watch)))
    command = [module, "--run.storage", str(folder.parent), "--run.name", folder.name, *BARE, *flags]
    with python(*command, folder=folder) as job:
        yield job


def carried_out(folder: Path, watch: Watch, *flags: str, timeout_s: float = 1800) -> list[Record]:
    """The records of a watched run, from its beginning to its end, in the order of ranks."""
    with started(folder, watch, *flags) as job:
        job.finished(timeout_s)
    return records(folder)


def by_turns(runs: list[tuple[Path, Watch, list[str]]], when_all_are_here: Callable[[], object] = list, *,
             module: str = "tests.benchmarks.stopwatch") -> list[list[Record]]:
    """The records of several runs (folder, watch, flags) of one storage, which train an epoch each by turns."""
    turns = runs[0][0].parent / f"turns-{runs[0][0].name}"
    with ExitStack() as stack:
        jobs = [stack.enter_context(started(folder, replace(watch, turns=(str(turns), place, len(runs))), *flags,
                                            module=module))
                for place, (folder, watch, flags) in enumerate(runs)]
        jobs[0].until(lambda: len(list(turns.glob("here-*"))) == len(runs), 300)
        when_all_are_here()
        for job in jobs:
            job.finished(1800)
    return [records(folder) for folder, _, _ in runs]


def records(folder: Path) -> list[Record]:
    paths = sorted((folder / "stopwatch").glob("rank-*.json"), key=lambda path: int(path.stem.removeprefix("rank-")))
    return [Record(**json.loads(path.read_text())) for path in paths]


if __name__ == "__main__":
    sys.exit(main(replace(JOB, train="tests.benchmarks.watched:train")))
