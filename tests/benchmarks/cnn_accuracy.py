"""Ten splits of the digits: the CNN's default preset against an RBF support-vector machine,
and the seconds of training."""

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.core.storage import Store
from jobs.common.data.dataset import Dataset
from jobs.common.vision.config import ImageDataConfig
from jobs.common.vision.prepare import prepare
from tests.benchmarks import stopwatch
from tests.benchmarks.accuracy import rows
from tests.benchmarks.paired import paired_interval
from tests.benchmarks.results import Figure, Outcome
from tests.runs import python

TITLE = "test accuracy of the CNN on ten splits of the digits"


@dataclass(frozen=True, kw_only=True)
class Settings:
    splits: int = 10


QUICK = Settings(splits=2)
NOTES = (
    "Each split is --data.split_seed 0 to 9 with run.seed 0: 64% training, 16% validation, 20% test rows. The job's "
    "model is that of the epoch that was best on the validation rows; the preset was chosen among seven by what they "
    "reached on validation rows.",
    "The support-vector machine is scikit-learn's SVC with an RBF kernel, C = 10 and gamma = scale, on the same "
    "prepared pixels and the same training rows.",
    "Two threads. Seconds are those of the whole run but start-up: training, an evaluation after each epoch, "
    "checkpoints.",
    "Intervals are Student's t at 95% over the paired differences, one a split.",
)


def measure(settings: Settings, workspace: Path) -> Outcome:
    storage = workspace / "storage"
    results = [run(storage / f"split-{seed}", seed) for seed in range(settings.splits)]
    accuracy = [result["metrics"]["test"]["accuracy"] for result in results]
    seconds = [result["wall_s"] - result["startup_s"]["total"] for result in results]
    machine = [support_vectors(prepare(ImageDataConfig(split_seed=seed), Store.open(str(storage)), use_ray=False))
               for seed in range(settings.splits)]
    mean, low, high = paired_interval(accuracy, machine)
    figures = (
        Figure(name="CNN, default preset", value=statistics.fmean(accuracy), at_least=0.990),
        Figure(name="the worst of its splits", value=min(accuracy)),
        Figure(name="RBF support-vector machine", value=statistics.fmean(machine)),
        Figure(name="CNN less the machine", value=mean), Figure(name="its lower end", value=low),
        Figure(name="its upper end", value=high),
        Figure(name="longest training of a split", value=max(seconds), unit="s", at_most=180),
        Figure(name="training of a split, median", value=statistics.median(seconds), unit="s"),
    )
    return Outcome(figures=figures, samples={"CNN": accuracy, "machine": machine, "seconds": seconds}, notes=NOTES)


def run(folder: Path, split_seed: int) -> dict[str, Any]:
    command = ["jobs.cnn", "--run.engine", "local", "--run.storage", str(folder.parent), "--run.name", folder.name,
               "--run.cpus-per-worker", "2", "--data.split-seed", str(split_seed), "--eval.robustness-rows", "0",
               *stopwatch.BARE]
    with python(*command, folder=folder) as job:
        return job.finished(600)


def support_vectors(data: Dataset) -> float:
    from sklearn.svm import SVC

    return float(SVC(C=10, gamma="scale").fit(*rows(data, "train")).score(*rows(data, "test")))
