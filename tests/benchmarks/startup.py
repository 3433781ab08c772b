"""From the command line to the first step, split into its parts, under each binding."""

import statistics
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks import ray_cluster, stopwatch
from tests.benchmarks.results import Figure, Outcome
from tests.runs import python

TITLE = "seconds from `python -m jobs.mlp` to the first step, data prepared before"


@dataclass(frozen=True, kw_only=True)
class Settings:
    repetitions: int = 5
    workers: tuple[int, ...] = (1, 2)


QUICK = Settings(repetitions=1)
NOTES = (
    "The embedded digits, the default preset; from the start of the process to the end of the first step; `startup_s` "
    "of result.json, medians.",
    "Parts: imports (the driver's), connect (Ray), preflight, data (found prepared), data_page, registry_and_lock, "
    "worker_process (until a worker runs its first line), worker_imports (torch), generation (the workers meet), "
    "first_step.",
)


def measure(settings: Settings, workspace: Path) -> Outcome:
    found = by_case(settings.repetitions, settings.workers, workspace / "storage", "mlp")
    return Outcome(figures=tuple(figure for case, runs in found.items() for figure in figures_of(case, runs)),
                   samples=found,
                   notes=NOTES)


def by_case(repetitions: int, numbers: tuple[int, ...], storage: Path, job: str) -> dict[str, list[dict[str, float]]]:
    """Seconds of each part of each start of a job, by binding and number of workers."""
    once(storage / "prepare-the-data", ["--run.engine", "local"], job)
    found: dict[str, list[dict[str, float]]] = {}
    for engine, running in (("local", False), ("ray, a cluster of its own", False),
                            ("ray, on a running cluster", True)):
        with ray_cluster.running(max(numbers)) if running else nullcontext():
            for repetition in range(repetitions):
                for workers in numbers:
                    case = f"{engine}, {workers} worker{'s' * (workers > 1)}"
                    flags = ["--run.engine", engine[:5].strip(", "), "--run.workers", str(workers)]
                    folder = storage / f"{case.replace(' ', '-').replace(',', '')}-{repetition}"
                    found.setdefault(case, []).append(once(folder, flags, job))
    return found


def once(folder: Path, flags: list[str], job: str) -> dict[str, float]:
    """Seconds of each part, and their total, as the run itself reports them."""
    command = [f"jobs.{job}", "--eval.robustness-rows", "0", "--train.max-steps", "1", "--run.storage",
               str(folder.parent),
               "--run.name", folder.name, *flags]
    with python(*command, *stopwatch.BARE, folder=folder) as started:
        return started.finished(300)["startup_s"]


def figures_of(case: str, runs: list[dict[str, float]]) -> list[Figure]:
    names = ["total", *(name for name in runs[0] if name != "total")]
    medians = {name: statistics.median(run.get(name, 0.0) for run in runs) for name in names}
    return [Figure(name=f"{case}: {name}", value=value, unit="s") for name, value in medians.items()]
