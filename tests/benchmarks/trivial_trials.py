"""A search whose trials do nothing: what is left is the driver's own cost.

    python -m tests.benchmarks.trivial_trials FOLDER TRIALS
"""

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from ray.tune import Trainable

from cluster.capacity import Request
from cluster.connect import connect, disconnect
from cluster.core.storage import Store
from jobs.common.config import parse
from jobs.mlp.config import MlpConfig
from tests.benchmarks.tuning_overhead import SPACE, peak_megabytes
from tuning.journal import Journal, Trial
from tuning.objective import Goal
from tuning.options import base_config, combined
from tuning.ray_tune import TrialRunner, run_trials
from tuning.search import Search
from tuning.trial_actor import EVENT, TrialOrder


class Trivial(Trainable):
    """Answers with a number at once."""

    def setup(self, config: dict[str, Any]) -> None:
        pass

    def step(self) -> dict[str, Any]:
        return {EVENT: json.dumps({"row": {"step": 1, "epoch": 1,
                                           "validation_accuracy": self.config["config"]["dropout"]}})}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        return True


class Ends:
    """Notes when trials end."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def started(self, trial: Trial) -> None:
        pass

    def on_event(self, trial: Trial) -> None:
        pass

    def on_trial_slot_free(self, trial: Trial) -> None:
        self.at.append(time.perf_counter())

    def ends(self) -> bool:
        return False


def main(folder: Path, num_trials: int) -> None:
    flags = ["--num-trials", str(num_trials), "--train.epochs", "1", "--scheduler", "none"]
    options = parse(combined(MlpConfig), flags, "benchmark")
    store, base = Store.open(str(folder)), base_config(options, MlpConfig)
    journal = Journal.open(store, b"of this benchmark")
    journal.begin({})
    search = Search(journal, store, options, base, SPACE, {}, Goal(metrics={"validation_accuracy": "max"}))
    watcher = Ends()

    def order(trial: Trial, until_epoch: int) -> TrialOrder:
        return TrialOrder(number=trial.number, job="", config={"dropout": trial.values["model.dropout"]},
                          until_epoch=1, data_uri="")

    connect("local", num_cpus=2)
    try:
        run_trials(TrialRunner(search=search, order=order, request=Request(num_workers=1, cpus_per_worker=1),
                               watcher=watcher,
                               max_concurrent=None), max_failures=0, actor=Trivial)
    finally:
        disconnect()
    gaps = [b - a for a, b in zip(watcher.at[:-1], watcher.at[1:], strict=True)]
    tenth = max(1, len(gaps) // 10)
    print(json.dumps({"seconds_a_trial": statistics.mean(gaps), "megabytes": peak_megabytes(),
                      "last_over_first": statistics.mean(gaps[-tenth:]) / statistics.mean(gaps[:tenth])}))


if __name__ == "__main__":
    from tests.benchmarks.trivial_trials import main as _main  # under its own name, so that workers find its classes

    _main(Path(sys.argv[1]), int(sys.argv[2]))
