"""Whether the default spaces earn their place: the best of 30 trials against the job's default preset,
on fresh seeds, paired."""

import statistics
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.results import Figure, Outcome
from tests.runs import python, result

TITLE = "the best of 30 trials against the job's default preset: test accuracy on five fresh seeds, paired"


@dataclass(frozen=True, kw_only=True)
class Settings:
    trials: int = 30
    seeds: int = 5
    jobs: tuple[str, ...] = ("mlp", "cnn", "transformer")
    epochs: int | None = None
    """Of a trial and of a training; None: the preset's."""


QUICK = Settings(trials=2, seeds=1, jobs=("mlp",), epochs=1)
FEWER = {"transformer": ["--data.max-train-rows", "6000"]}
"""Flags of trials and trainings alike, so that they end."""
NOTES = (
    "`python -m tuning.JOB --num-trials 30` with its defaults (TPE, ASHA), then best.yaml and no options at all with "
    "seeds that the search has not seen, by turns. Difference: best less default, in points of test accuracy; it is "
    "real where zero is not between the ends of its 95% interval (Student's t over the pairs). The Transformer's "
    "trials and trainings have 6,000 of the 24,000 training rows.",
)
_FIRST_SEED = 100


def train(job: str, folder: Path, seed: int, *flags: str) -> float:
    """Test accuracy."""
    command = [*flags, "--run.engine", "local", "--run.storage", str(folder.parent), "--run.name", folder.name,
               "--run.seed", str(seed), "--run.tracking-uri", "none", "--eval.robustness-rows", "0",
               "--run.cpus-per-worker", "2"]
    with python(f"jobs.{job}", *command, folder=folder) as started:
        return started.finished(3600)["metrics"]["test"]["accuracy"]


def compared(job: str, folder: Path, settings: Settings) -> tuple[list[float], list[float]]:
    """Test accuracies of the best config and of the default, by seed."""
    shared = [*FEWER.get(job, []), *(["--train.epochs", str(settings.epochs)] if settings.epochs else [])]
    flags = ["--num-trials", str(settings.trials), "--run.storage", str(folder), "--run.name", "search",
             "--run.tracking-uri", "none"]
    with python("tuning", job, *flags, *shared, folder=folder / "search") as started:
        assert started.wait(7200) == 0, started.text
    print(job, result(folder / "search"), flush=True)
    best, default = [], []
    for seed in range(_FIRST_SEED, _FIRST_SEED + settings.seeds):
        best.append(train(job, folder / f"best-{seed}", seed, "--config", str(folder / "search/best.yaml")))
        default.append(train(job, folder / f"default-{seed}", seed, *shared))
    return best, default


def interval(differences: list[float]) -> tuple[float, float]:
    """Of their mean, 95%."""
    from scipy.stats import t

    if len(differences) < 2:
        return differences[0], differences[0]
    error = statistics.stdev(differences) / len(differences) ** 0.5 * float(t.ppf(0.975, len(differences) - 1))
    return statistics.mean(differences) - error, statistics.mean(differences) + error


def measure(settings: Settings, workspace: Path) -> Outcome:
    figures: list[Figure] = []
    samples: dict[str, list[float]] = {}
    for job in settings.jobs:
        best, default = compared(job, workspace / job, settings)
        samples |= {f"{job}: best": best, f"{job}: default": default}
        low, high = interval([100 * (a - b) for a, b in zip(best, default, strict=True)])
        figures += [Figure(name=f"{job}: default preset", value=statistics.mean(default)),
                    Figure(name=f"{job}: best of {settings.trials}", value=statistics.mean(best)),
                    Figure(name=f"{job}: difference", value=(low + high) / 2, unit="points"),
                    Figure(name=f"{job}: its 95% interval, from", value=low, unit="points"),
                    Figure(name=f"{job}: its 95% interval, to", value=high, unit="points")]
    return Outcome(figures=tuple(figures), samples=samples, notes=NOTES)
