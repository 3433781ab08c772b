"""What a search costs beside training: seconds a trial, wall time against Optuna alone,
and the driver at 1,000 trials."""

import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.common.command_line import flatten
from tests.benchmarks.results import Figure, Outcome
from tests.runs import ROOT, python
from tuning.space import Space

TITLE = "a search's overhead: seconds a trial, wall time against Optuna alone, the driver at 1,000 trials"
SPACE = Space.from_dict({"optim.lr": {"log_uniform": [1e-4, 1e-2]}, "model.dropout": {"uniform": [0.0, 0.5]},
                         "optim.weight_decay": {"log_uniform": [1e-4, 0.3]}})
BASE: dict[str, Any] = {"model": {"hidden": [1024, 1024]}, "eval": {"robustness_rows": 0}}
"""Wide enough that a trial takes seconds; what is searched does not change how many."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    trials: int = 20
    epochs: int = 17
    """About 5 s of one thread."""
    short_trials: int = 22
    trivial_trials: int = 1000
    rounds: int = 3


QUICK = Settings(trials=2, epochs=2, short_trials=4, trivial_trials=20, rounds=1)
NOTES = (
    "Wall time: 20 trials of a multi-layer perceptron with two hidden layers of 1,024 units on the digits, each one "
    "thread, two at a time, from the command to its end, the start of a Ray cluster included; Optuna alone runs trials "
    "from the same space (`run_trial`) one after the other in one process, with one thread and with two: the faster "
    "counts. By turns; medians.",
    "Overhead: trials of one epoch of a network of 8 units, one at a time; seconds from the end of one to the end of "
    "the next, without the first two.",
    "Driver: a trial's process answers at once (`trivial_trials.py`), two at a time; seconds of wall time a trial, and "
    "the driver's greatest memory.",
)


def flags_of(values: dict[str, Any]) -> list[str]:
    found: list[str] = []
    for name, value in flatten(values).items():
        found += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value])]
    return found


def search(folder: Path, *flags: str) -> float:
    """Seconds of a whole search, on a cluster of its own."""
    (folder.parent / "space.yaml").write_text(json.dumps(SPACE.to_dict()))
    command = ["--space", str(folder.parent / "space.yaml"), "--scheduler", "none", "--run.tracking-uri", "none",
               "--run.storage", str(folder.parent), "--run.name", folder.name, *flags]
    began = time.perf_counter()
    with python("tuning", "mlp", *command, folder=folder) as started:
        assert started.wait(900) == 0, started.text
    return time.perf_counter() - began


def optuna_alone(folder: Path, threads: int, settings: Settings) -> float:
    folder.mkdir(parents=True)
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "tests.benchmarks.optuna_alone", str(folder), str(threads),
                    str(settings.trials),
                    str(settings.epochs)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def ends(folder: Path) -> list[float]:
    """When each trial ended, in seconds of the search."""
    records = [json.loads(path.read_text())["content"]["events"]
               for path in sorted((folder / "journal").glob("*.json"))]
    return sorted(events[-1]["at_s"] for events in records)


def trivial(folder: Path, num_trials: int) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-m", "tests.benchmarks.trivial_trials", str(folder), str(num_trials)],
                          cwd=ROOT,
                          check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(settings: Settings, workspace: Path) -> Outcome:
    found: dict[str, list[float]] = {"search": [], "Optuna alone, one thread": [], "Optuna alone, two threads": []}
    for turn in range(settings.rounds):
        found["search"].append(search(workspace / f"search-{turn}", "--num-trials", str(settings.trials),
                                      "--train.epochs",
                                      str(settings.epochs), *flags_of(BASE)))
        for threads, name in ((1, "Optuna alone, one thread"), (2, "Optuna alone, two threads")):
            found[name].append(optuna_alone(workspace / f"optuna-{turn}-{threads}", threads, settings))
    seconds = json.loads((workspace / "optuna-0-1/seconds.json").read_text())
    search(workspace / "short", "--num-trials", str(settings.short_trials), "--train.epochs", "1", "--max-concurrent",
           "1",
           "--model.hidden", "8", "--eval.robustness-rows", "0")
    gaps = [b - a for a, b in zip(ends(workspace / "short")[1:-1], ends(workspace / "short")[2:], strict=True)]
    driver = trivial(workspace / "trivial", settings.trivial_trials)
    medians = {name: statistics.median(values) for name, values in found.items()}
    alone = min(value for name, value in medians.items() if name != "search")
    figures = [
        Figure(name="overhead of a trial after the first", value=statistics.median(gaps), unit="s", at_most=2.0),
        Figure(name="a trial of one thread, alone", value=statistics.median(seconds), unit="s"),
        *(Figure(name=f"{settings.trials} trials: {name}", value=value, unit="s") for name, value in medians.items()),
        Figure(name="wall time, search over Optuna alone", value=medians["search"] / alone, at_most=0.65),
        Figure(name=f"driver, {settings.trivial_trials} trivial trials: a trial", value=driver["seconds_a_trial"],
               unit="s"),
        Figure(name="… of the last tenth over the first tenth", value=driver["last_over_first"]),
        Figure(name="… memory of the driver", value=driver["megabytes"], unit="MB"),
    ]
    return Outcome(figures=tuple(figures), samples=found | {"gaps": gaps, "driver": driver}, notes=NOTES)


def peak_megabytes() -> float:
    """Of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
