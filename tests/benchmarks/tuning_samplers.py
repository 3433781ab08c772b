"""How far from the best possible value the best of 30 trials is, with TPE and with chance,
on a function whose minimum is known."""

import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cluster.core.storage import Store
from jobs.common.config import parse
from jobs.mlp.config import MlpConfig
from tests.benchmarks.results import Figure, Outcome
from tuning.journal import Journal
from tuning.objective import Goal
from tuning.options import base_config, combined
from tuning.search import Search
from tuning.space import Space

TITLE = "regret after 30 trials: Optuna's TPE and random search, on a function whose minimum is known"


@dataclass(frozen=True, kw_only=True)
class Settings:
    trials: int = 30
    seeds: int = 5


QUICK = Settings(trials=6, seeds=2)
FIELDS = ("optim.lr", "optim.momentum", "optim.weight_decay", "optim.label_smoothing", "model.dropout", "augment.scale")
SPACE = Space.from_dict({name: {"uniform": [0.0, 0.99] if name in FIELDS[1:] else [0.001, 0.999]} for name in FIELDS})
MINIMUM = -3.32237
"""Of Hartmann's function in six dimensions, at (0.202, 0.150, 0.477, 0.275, 0.312, 0.657) (Dixon and Szego 1978)."""
_ALPHA = np.array([1.0, 1.2, 3.0, 3.2])
_A = np.array([[10, 3, 17, 3.5, 1.7, 8], [0.05, 10, 17, 0.1, 8, 14], [3, 3.5, 1.7, 10, 17, 8],
               [17, 8, 0.05, 10, 0.1, 14]])
_P = 1e-4 * np.array([[1312, 1696, 5569, 124, 8283, 5886], [2329, 4135, 8307, 3736, 1004, 9991],
                      [2348, 1451, 3522, 2883, 3047, 6650], [4047, 8828, 8732, 5743, 1091, 381]])
NOTES = (
    "Hartmann's function of six variables, whose minimum is -3.32237, in place of a trial's validation loss; the six "
    "fields of the space are its variables, each from 0 to 0.99. Regret: the best value found less the minimum. Seeds "
    "differ in what is drawn.",
)


def hartmann(x: Any) -> float:
    """x: (6,), each from 0 to 1."""
    return float(-(_ALPHA * np.exp(-(_A * (x - _P) ** 2).sum(axis=1))).sum())


def regret(folder: Path, kind: str, seed: int, num_trials: int) -> float:
    """Of the search as it is, without the processes of trials."""
    flags = ["--search", kind, "--scheduler", "none", "--num-trials", str(num_trials), "--run.seed", str(seed),
             "--train.epochs", "1"]
    options = parse(combined(MlpConfig), flags, "benchmark")
    store = Store.open(str(folder))
    journal = Journal.open(store, b"of this benchmark")
    journal.begin({})
    search = Search(journal, store, options, base_config(options, MlpConfig), SPACE, {},
                    Goal(metrics={"validation_loss": "min"}))
    best = math.inf
    while not search.over:
        trial, _ = search.next() or (None, 0)
        assert trial is not None
        value = hartmann(np.array([trial.values[name] for name in FIELDS]))
        best = min(best, value)
        search.evaluated(trial.number, {"step": 1, "epoch": 1, "validation_loss": value})
        search.on_trial_slot_free(trial.number)
    return best - MINIMUM


def measure(settings: Settings, workspace: Path) -> Outcome:
    found = {kind: [regret(workspace / f"{kind}-{seed}", kind, seed, settings.trials) for seed in range(settings.seeds)]
             for kind in ("optuna", "random")}
    medians = {kind: statistics.median(values) for kind, values in found.items()}
    figures = [Figure(name=f"{kind}: regret after {settings.trials} trials", value=value)
               for kind, value in medians.items()]
    figures.append(Figure(name="regret, TPE over random", value=medians["optuna"] / medians["random"], at_most=1.0))
    return Outcome(figures=tuple(figures), samples=found, notes=NOTES)
