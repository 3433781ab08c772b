"""Ten splits of each embedded table: the job for tables with its defaults against scikit-learn's gradient boosting with
its own."""

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.core.storage import Store
from jobs.common.config import from_dict
from jobs.common.tables.info import TableInfo
from jobs.common.tables.prepare import prepare
from jobs.common.tables.report import baseline
from jobs.common.training.job import TrainingResult
from jobs.tabular.config import TabularConfig
from tests.benchmarks import stopwatch
from tests.benchmarks.paired import paired_interval
from tests.benchmarks.results import Figure, Outcome
from tests.runs import python

TITLE = "the job for tables against gradient boosting, on ten splits of each embedded set"
SETS = {"diabetes": ("rmse", "RMSE"), "breast_cancer": ("log_loss", "log loss")}
"""By name: what is compared, where less is better, and what it is called."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    splits: int = 10


QUICK = Settings(splits=2)
NOTES = (
    "Each split is --data.split_seed 0 to 9 with run.seed 0: 64% training, 16% validation, 20% test rows. The job's "
    "model is that of the epoch that was best on the validation rows, and its defaults were chosen on validation rows "
    "of these two sets.",
    "HistGradientBoosting has its defaults (no early stopping below 10,000 rows), fitted to the same training rows; it "
    "uses no validation rows.",
    "Intervals are Student's t at 95% over the paired differences, one a split.",
)


def measure(settings: Settings, workspace: Path) -> Outcome:
    figures: list[Figure] = []
    samples: dict[str, list[float]] = {}
    for uri, (metric, title) in SETS.items():
        both = [pair(workspace / f"{uri}-{seed}", uri, seed) for seed in range(settings.splits)]
        for name in dict.fromkeys((metric, "r2" if uri == "diabetes" else "accuracy")):
            for place, who in enumerate(("network", "boosting")):
                samples[f"{uri}, {name}: {who}"] = [found[place][name] for found in both]
                figures.append(Figure(name=f"{uri}, {name}: {who}",
                                      value=statistics.fmean(samples[f"{uri}, {name}: {who}"])))
        less, low, high = paired_interval(samples[f"{uri}, {metric}: network"], samples[f"{uri}, {metric}: boosting"])
        figures += [Figure(name=f"{uri}: {title} of the network less that of the boosting", value=less, at_most=0.0),
                    Figure(name=f"{uri}: lower end", value=low), Figure(name=f"{uri}: upper end", value=high)]
    return Outcome(figures=tuple(figures), samples=samples, notes=NOTES)


def pair(folder: Path, uri: str, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The test figures of both on one split."""
    command = ["jobs.tabular", "--run.engine", "local", "--run.storage", str(folder.parent), "--run.name", folder.name,
               "--data.uri", uri, "--data.split-seed", str(seed), "--eval.importance-rows", "0", *stopwatch.BARE]
    with python(*command, folder=folder) as job:
        network = job.finished(300)["metrics"]["test"]
    config = from_dict(TabularConfig, json.loads((folder / "run.json").read_text())["config"])
    assert config.data.split_seed == seed
    dataset = prepare(config.data, Store.open(str(folder.parent)), say=lambda _: None)
    run = TrainingResult(job="tabular", config=config, dataset=dataset, store=Store.open(str(folder)), generation="",
                         best=None)  # pyright: ignore[reportArgumentType]
    return network, dict(baseline(run, TableInfo.of(dataset, config.model)))
