"""The textbook CNN, batch 32, on 60,000 images of 28 × 28: the real loop against `model.fit` in one process,
two threads each."""

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks import images, stopwatch
from tests.benchmarks.results import Figure, Outcome
from tests.benchmarks.stopwatch import Watch
from tests.runs import ROOT, progress, python

TITLE = "training throughput of the textbook CNN against `model.fit`, batch 32"
BATCH = 32
WATCHED = "tests.benchmarks.cnn_watched"


@dataclass(frozen=True, kw_only=True)
class Settings:
    rows: int = 60_000
    epochs: int = 4
    """The first of them is left out of the rates."""
    seeds: int = 2


QUICK = Settings(rows=2_000, epochs=2, seeds=1)
NOTES = (
    "Both train by turns, an epoch each, in a process each; the ratio is the median over pairs of neighbouring turns. "
    "An epoch is all of its steps: batches taken (ours: out of the memory-mapped cache, through tf.data), forward, "
    "backward, optimiser, metrics; ours also the check for NaN, the beat to the driver and the decision on "
    "checkpoints. Left out of both: start-up, the first epoch, evaluation.",
    "The images are the training rows of the embedded digits, each shifted, turned and scaled in many ways; validation "
    "rows are as they are. Accuracy is that on the validation rows after the last epoch, both sides having seen as "
    "many samples; the mean over the seeds.",
    "`fit` has all its images in memory, as float32, before it begins. Both have two threads.",
)


def measure(settings: Settings, workspace: Path) -> Outcome:
    data = images.write_digits(workspace / "digits", settings.rows)
    found = [by_turns(workspace, data, settings, seed) for seed in range(settings.seeds)]
    ours, theirs = ([leg for run in found for leg in run[side]["legs"][1:]] for side in (0, 1))
    ratios = [b["seconds"] / a["seconds"] for a, b in zip(ours, theirs, strict=True)]
    accuracies = [statistics.fmean(run[side]["accuracies"][-1] for run in found) for side in (0, 1)]
    cpu = [b["cpu"] / a["cpu"] for a, b in zip(ours, theirs, strict=True)]
    rate = settings.rows // BATCH * BATCH
    figures = (
        Figure(name="times model.fit", value=statistics.median(ratios), at_least=1.4, aim_at_least=2.0),
        Figure(name="the same in CPU time", value=statistics.median(cpu)),
        Figure(name="ours", value=statistics.median(rate / leg["seconds"] for leg in ours), unit="samples/s"),
        Figure(name="model.fit", value=statistics.median(settings.rows / leg["seconds"] for leg in theirs),
               unit="samples/s"),
        Figure(name="validation accuracy, ours", value=accuracies[0]),
        Figure(name="validation accuracy, model.fit", value=accuracies[1]),
        Figure(name="ours less model.fit's", value=accuracies[0] - accuracies[1], at_least=-0.01),
    )
    return Outcome(figures=figures,
                   samples={"ours": [run[0] for run in found], "fit": [run[1] for run in found], "ratios": ratios},
                   notes=NOTES)


def by_turns(workspace: Path, data: Path, settings: Settings, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Ours, and model.fit's: the legs, and the accuracy after each."""
    turns, out = str(workspace / f"turns-{seed}"), workspace / f"fit-{seed}.json"
    asked = {"folder": str(data), "batch_size": BATCH, "epochs": settings.epochs, "seed": seed, "turns": (turns, 1, 2),
             "out": str(out)}
    (workspace / "fit.json").write_text(json.dumps(asked))
    folder = workspace / "storage" / f"ours-{seed}"
    flags = ["--config", str(ROOT / "jobs/cnn/textbook.yaml"), "--run.engine", "local", "--run.cpus-per-worker", "2",
             "--data.uri",
             str(data), "--data.cache-dir", str(workspace / "cache"), "--train.epochs", str(settings.epochs),
             "--run.seed",
             str(seed), "--eval.robustness-rows", "0"]
    fit = python("tests.benchmarks.keras_fit", str(workspace / "fit.json"), folder=workspace)
    with stopwatch.started(folder, Watch(turns=(turns, 0, 2)), *flags, module=WATCHED) as job, fit as other:
        job.finished(1800)
        assert other.wait(300) == 0, other.text
    history = [row for row in progress(folder)["history"] if row["kind"] == "evaluation"]
    ours = {"legs": stopwatch.records(folder)[0].legs, "accuracies": [row["validation_accuracy"] for row in history]}
    return ours, json.loads(out.read_text())
