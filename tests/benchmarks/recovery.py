"""From the SIGKILL of a worker to the next useful step, beside what Ray Train alone takes on the same machine."""

import json
import os
import signal
import statistics
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from tests.benchmarks import ray_cluster, stopwatch
from tests.benchmarks.results import Figure, Outcome
from tests.benchmarks.stopwatch import Watch
from tests.runs import Job, python

TITLE = "seconds from the SIGKILL of one of two workers to the next useful step"
ALONE = "Ray Train alone"
SPARE = "Ray binding, one spare worker"
AIMS_S = {"Ray binding": 2.5, "local binding": 2.5, SPARE: 0.3}
ENDLESS = "100000000"


@dataclass(frozen=True, kw_only=True)
class Settings:
    kills: int = 4
    between_s: float = 15.0
    """Steps are made for so long before the next kill."""


QUICK = Settings(kills=1, between_s=1.0)
NOTES = (
    "A useful step is one beyond those that had been done before the kill: what was lost is repeated first, since the "
    "last checkpoint where Ray is alone. The kills follow each other in one run; both ranks are killed by turns.",
    "Ours: the default preset on the digits, two workers, --run.checkpoint-every-steps 8. Ray alone: `plain_ray.py`, a "
    "TorchTrainer with DDP and FailureConfig, a checkpoint every 8 steps without `ray.train.report`, which waits 2 s "
    "each time.",
    "Goodput: unique steps times the median step, over the wall time from the first step to one after the last kill; "
    "of Ray alone, whose steps wait 10 ms each, as of ours.",
)


def measure(settings: Settings, workspace: Path) -> Outcome:
    samples: dict[str, Any] = {}
    with ray_cluster.running(3):
        samples["Ray binding"] = kills(ours(workspace / "ray/run", "ray"), settings)
        samples[SPARE] = kills(ours(workspace / "spare/run", "ray", "--run.spares", "1"), settings)
        samples[ALONE] = kills(ray_alone(workspace / "plain", settings), settings)
    samples["local binding"] = kills(ours(workspace / "local/run", "local"), settings)
    figures: list[Figure] = []
    for name, found in samples.items():
        figures += [
            Figure(name=f"{name}: to the next useful step", value=statistics.median(kill["useful_s"] for kill in found),
                   unit="s", aim_at_most=AIMS_S.get(name)),
            Figure(name=f"{name}: to the next step", value=statistics.median(kill["next_s"] for kill in found),
                   unit="s"),
            Figure(name=f"{name}: steps lost", value=statistics.median(kill["lost"] for kill in found), unit="steps"),
        ]
        figures.append(Figure(name=f"{name}: goodput, killed every {settings.between_s:g} s",
                              value=found[-1]["goodput"], aim_at_least=0.9 if name == SPARE else None))
    return Outcome(figures=tuple(figures), samples=samples, notes=NOTES)


def ours(folder: Path, engine: str, *flags: str) -> AbstractContextManager[Job]:
    return stopwatch.started(folder, Watch(log_steps=True), "--run.engine", engine, "--run.workers", "2",
                             "--run.max-failures",
                             "-1", "--run.checkpoint-every-steps", "8", "--train.epochs", ENDLESS, *flags)


def ray_alone(folder: Path, settings: Settings) -> AbstractContextManager[Job]:
    for name in ("stopwatch", "logs/workers"):
        (folder / name).mkdir(parents=True)
    return python("tests.benchmarks.plain_ray", str(folder), ENDLESS, str(settings.kills), folder=folder)


def kills(started: AbstractContextManager[Job], settings: Settings) -> list[dict[str, float]]:
    """Kills workers of a run, one after the other, and ends it."""
    with started as job:
        job.until(lambda: len(step_files(job)) == 2 and all(map(steps_of, step_files(job))), 180)
        found = [kill(job, number % 2, settings.between_s) for number in range(settings.kills)]
        found[-1]["goodput"] = goodput([steps_of(path) for path in step_files(job)])
        return found


def goodput(steps: list[list[tuple[float, int]]]) -> float:
    """Of what each rank did in each generation."""
    entries = [entry for each in steps for entry in each]
    step_s = statistics.median(after - before for each in steps for (before, _), (after, _) in pairwise(each))
    (began, first), ended, last = min(entries), max(at for at, _ in entries), max(step for _, step in entries)
    return (last - first) * step_s / (ended - began)


def kill(job: Job, rank: int, after_s: float) -> dict[str, float]:
    """Seconds from a kill, some time from now, to the next step and to the next useful one; and how many were lost."""
    time.sleep(after_s)
    pid, before = newest_pid(job, rank), step_files(job)
    os.kill(pid, signal.SIGKILL)
    killed_at = time.time()
    job.until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE, 10)
    highest = max(step for path in before for _, step in steps_of(path))

    def since() -> list[tuple[float, int]]:
        return sorted(entry for path in step_files(job) - before for entry in steps_of(path))

    useful_at = job.until(lambda: next((at for at, step in since() if step > highest), None), 180)
    next_at, next_step = since()[0]
    return {"useful_s": useful_at - killed_at, "next_s": next_at - killed_at, "lost": highest - next_step + 1}


def step_files(job: Job) -> set[Path]:
    """One for each rank in each generation."""
    return set((job.folder / "stopwatch").glob("steps-*.txt"))


def steps_of(path: Path) -> list[tuple[float, int]]:
    """(unix seconds, step) of each whole line."""
    lines = path.read_text().splitlines(keepends=True)
    return [(float(at), int(step)) for at, step in (line.split() for line in lines if line.endswith("\n"))]


def newest_pid(job: Job, rank: int) -> int:
    """The process of a rank; Ray's own workers leave a file each, ours one a generation."""
    known: dict[str, int] = {}
    for path in sorted((job.folder / "logs/workers").glob("*.json")):
        known |= {slot: worker["pid"] for slot, worker in json.loads(path.read_text()).items()}
    return known[str(rank)]
