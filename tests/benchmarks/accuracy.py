"""Ten splits of the digits: the default preset against scikit-learn's MLPClassifier with its defaults,
and the textbook preset."""

import json
import statistics
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cluster.core.storage import Store
from jobs.common.data.dataset import Dataset, SplitName
from jobs.common.data.reader import Reader
from jobs.common.vision.config import ImageDataConfig
from jobs.common.vision.prepare import prepare
from tests.benchmarks import stopwatch
from tests.benchmarks.paired import paired_interval
from tests.benchmarks.results import Figure, Outcome
from tests.runs import ROOT, python

TITLE = "test accuracy on ten splits of the digits"
PRESETS = {"default preset": (), "textbook preset": ("--config", str(ROOT / "jobs/mlp/textbook.yaml"))}


@dataclass(frozen=True, kw_only=True)
class Settings:
    splits: int = 10


QUICK = Settings(splits=2)
NOTES = (
    "Each split is --data.split_seed 0 to 9 with run.seed 0: 64% training, 16% validation, 20% test rows. The job's "
    "model is that of the epoch that was best on the validation rows; every choice in the preset was made on "
    "validation rows.",
    "MLPClassifier has its defaults (100 hidden units, Adam, 200 epochs, random_state = split_seed), fitted on the "
    "same prepared 28 × 28 pixels over 255: on the same training rows, and, since it uses no validation rows, on both "
    "together.",
    "Intervals are Student's t at 95% over the paired differences, one a split.",
)


def measure(settings: Settings, workspace: Path) -> Outcome:
    storage, seeds = workspace / "storage", range(settings.splits)
    found = {preset: [job_accuracy(storage / f"{preset.split()[0]}-{seed}", seed, flags) for seed in seeds]
             for preset, flags in PRESETS.items()}
    datasets = [prepare(ImageDataConfig(split_seed=seed), Store.open(str(storage)), use_ray=False) for seed in seeds]
    found["MLPClassifier, same rows"] = [classifier_accuracy(data, seed, ("train",))
                                         for seed, data in enumerate(datasets)]
    found["MLPClassifier, training and validation rows"] = [
        classifier_accuracy(data, seed, ("train", "validation")) for seed, data in enumerate(datasets)]
    figures = [Figure(name=name, value=statistics.fmean(values)) for name, values in found.items()]
    for preset in PRESETS:
        for other in list(found)[2:]:
            mean, low, high = paired_interval(found[preset], found[other])
            threshold = 0.0 if preset == "default preset" and other.endswith("same rows") else None
            name = f"{preset} less {other}"
            figures += [Figure(name=name, value=mean, at_least=threshold), Figure(name=f"{name}: lower end", value=low),
                        Figure(name=f"{name}: upper end", value=high)]
    return Outcome(figures=tuple(figures), samples=found, notes=NOTES)


def job_accuracy(folder: Path, split_seed: int, flags: tuple[str, ...]) -> float:
    """On the test rows, as result.json has it."""
    command = ["jobs.mlp", *flags, "--run.engine", "local", "--run.storage", str(folder.parent), "--run.name",
               folder.name,
               "--data.split-seed", str(split_seed), *stopwatch.BARE]
    with python(*command, folder=folder) as job:
        result: dict[str, Any] = job.finished(300)
    assert json.loads((folder / "run.json").read_text())["config"]["data"]["split_seed"] == split_seed
    return result["metrics"]["test"]["accuracy"]


def classifier_accuracy(data: Dataset, seed: int, splits: tuple[SplitName, ...]) -> float:
    from sklearn.neural_network import MLPClassifier

    parts = [rows(data, split) for split in splits]
    images, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that its default of 200 epochs may be too few
        return float(MLPClassifier(random_state=seed).fit(images, labels).score(*rows(data, "test")))


def rows(data: Dataset, split: SplitName) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (rows, H·W·C) from 0 to 1, and labels."""
    reader = Reader.open(data, split, ImageDataConfig())
    taken = reader.rows(0, data.splits[split].num_rows)
    reader.close()
    return taken["image"].reshape(len(taken["label"]), -1) / 255.0, taken["label"]
