"""What ASHA saves, and what it costs: the best macro-F1 and the epochs with it and without, on the language task."""

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.results import Figure, Outcome
from tests.runs import python, result

TITLE = "ASHA against no early stopping, telling languages apart: best validation macro-F1, and epochs"


@dataclass(frozen=True, kw_only=True)
class Settings:
    trials: int = 16
    epochs: int = 9
    seeds: int = 3
    rows: int = 6000
    """Training rows, of about 24,000."""


QUICK = Settings(trials=2, epochs=2, seeds=1, rows=600)
METRIC = "validation_macro_f1"
NOTES = (
    "The same trials, drawn at random, with and without ASHA (`--grace-epochs 1 --reduction-factor 3`): preset `tiny` "
    "with two layers of 64 units on characters, the job's own space, all validation rows. Gap: the best macro-F1 "
    "without ASHA less that with it. Medians over the seeds, and the worst.",
)


def search(folder: Path, settings: Settings, scheduler: str, seed: int) -> dict[str, Any]:
    flags = ["--num-trials", str(settings.trials), "--search", "random", "--scheduler", scheduler, "--objective",
             METRIC,
             "--train.epochs", str(settings.epochs), "--run.seed", str(seed), "--run.storage", str(folder.parent),
             "--run.name", folder.name, "--run.tracking-uri", "none", "--data.max-train-rows", str(settings.rows),
             "--data.tokenizer", "characters", "--data.max-length", "48", "--model.attention-window", "2",
             "--model.layers", "2",
             "--model.width", "64", "--eval.batch-size", "256"]
    with python("tuning", "transformer", *flags, folder=folder) as started:
        assert started.wait(3600) == 0, started.text
    found = result(folder)
    return {"best": found["best"]["evaluation"][METRIC], "epochs": found["epochs"], "seconds": found["wall_s"]}


def measure(settings: Settings, workspace: Path) -> Outcome:
    found: dict[str, list[dict[str, Any]]] = {"none": [], "asha": []}
    for seed in range(settings.seeds):
        for scheduler, runs in found.items():
            runs.append(search(workspace / f"{scheduler}-{seed}", settings, scheduler, seed))
            print(scheduler, seed, json.dumps(runs[-1]), flush=True)
    gaps = [none["best"] - asha["best"] for none, asha in zip(found["none"], found["asha"], strict=True)]
    shares = [asha["epochs"] / none["epochs"] for none, asha in zip(found["none"], found["asha"], strict=True)]
    times = [asha["seconds"] / none["seconds"] for none, asha in zip(found["none"], found["asha"], strict=True)]
    figures = (
        Figure(name="best macro-F1 without early stopping",
               value=statistics.median(run["best"] for run in found["none"])),
        Figure(name="best macro-F1 with ASHA", value=statistics.median(run["best"] for run in found["asha"])),
        Figure(name="gap", value=statistics.median(gaps), at_most=0.005),
        Figure(name="gap, the worst seed", value=max(gaps)),
        Figure(name="epochs, ASHA over none", value=statistics.median(shares), at_most=0.4),
        Figure(name="seconds, ASHA over none", value=statistics.median(times)),
    )
    return Outcome(figures=figures, samples=dict(found), notes=NOTES)
