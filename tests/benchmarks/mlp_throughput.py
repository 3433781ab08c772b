"""The real loop, reading the real cache, against the textbook loop: same batch, optimiser, steps and one thread."""

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks import images, stopwatch
from tests.benchmarks.results import Figure, Outcome
from tests.benchmarks.stopwatch import Watch
from tests.runs import ROOT, consumed_rows, python

TITLE = "training throughput of the textbook network, one worker, one thread"


@dataclass(frozen=True, kw_only=True)
class Settings:
    rows: int = 60_000
    other_rows: int = 2_000
    batch_sizes: tuple[int, ...] = (64, 512)
    epochs: int = 21
    """The first of them is left out."""


QUICK = Settings(rows=4_000, other_rows=200, epochs=3)
NOTES = (
    "Both loops run by turns, an epoch each, in a process each; the ratio is the median over pairs of neighbouring "
    "turns. An epoch is all of its steps: batches taken (ours: shuffled windows out of the memory-mapped cache, filled "
    "by a thread), forward, backward, optimiser, the loss as a number; ours also the check for NaN, the beat to the "
    "driver and the decision on checkpoints. Left out of both: start-up, the first epoch, evaluation.",
    "One thread is what both give to PyTorch. Ours has others beside it, for data, beats and the driver, on the "
    "machine's second core: `CPU time of all threads` counts them too.",
    "The textbook loop has all its images in memory, as float32, before it begins.",
    "Losses: the textbook loop was given our rows in our order, read from the raw Parquet file by row id.",
)


def measure(settings: Settings, workspace: Path) -> Outcome:
    data = images.write_splits(workspace / "images", settings.rows, settings.other_rows)
    figures: list[Figure] = []
    samples: dict[str, Any] = {}
    for batch_size in settings.batch_sizes:
        ours, textbook = by_turns(workspace, data, settings, batch_size)
        rates = [_rates(legs, batch_size) for legs in (ours, textbook)]
        ratios = [a / b for a, b in zip(*rates, strict=True)]
        cpu = [b["cpu"] / a["cpu"] for a, b in zip(ours[1:], textbook[1:], strict=True)]
        process_cpu = [b["process_cpu"] / a["process_cpu"] for a, b in zip(ours[1:], textbook[1:], strict=True)]
        difference = loss_difference(workspace, data, settings, batch_size)
        samples[str(batch_size)] = {"ours": ours, "textbook": textbook, "ratios": ratios, "cpu_ratios": cpu}
        figures += [
            Figure(name=f"batch {batch_size}: times the textbook loop", value=statistics.median(ratios), at_least=1.3,
                   aim_at_least=2.0),
            Figure(name=f"batch {batch_size}: the same in CPU time of the loop's thread", value=statistics.median(cpu)),
            Figure(name=f"batch {batch_size}: the same in CPU time of all threads",
                   value=statistics.median(process_cpu)),
            Figure(name=f"batch {batch_size}: ours", value=statistics.median(rates[0]), unit="samples/s"),
            Figure(name=f"batch {batch_size}: textbook", value=statistics.median(rates[1]), unit="samples/s"),
            Figure(name=f"batch {batch_size}: time waiting for data", unit="%",
                   value=100 * sum(leg["wait"] for leg in ours[1:]) / sum(leg["seconds"] for leg in ours[1:])),
            Figure(name=f"batch {batch_size}: largest difference of a loss", value=difference, at_most=1e-5),
        ]
    return Outcome(figures=tuple(figures), samples=samples, notes=NOTES)


def by_turns(workspace: Path, data: Path, settings: Settings, batch_size: int) -> tuple[list[dict], list[dict]]:
    """The legs of our loop, and of the textbook's."""
    turns = str(workspace / f"turns-{batch_size}")
    folder = workspace / "storage" / f"throughput-{batch_size}"
    book = textbook_settings(workspace, data, batch_size) | {"turns": (turns, 1, 2), "epochs": settings.epochs}
    watch = Watch(turns=(turns, 0, 2))
    with stopwatch.started(folder, watch, *flags(data, batch_size,
                                                 settings.epochs)) as job, textbook(workspace, book) as other:
        job.finished(1800)
        assert other.wait(60) == 0, other.text
    return stopwatch.records(folder)[0].legs, json.loads(Path(book["out"]).read_text())["legs"]


def loss_difference(workspace: Path, data: Path, settings: Settings, batch_size: int) -> float:
    """Over one epoch, with the textbook loop given our order."""
    folder = workspace / "storage" / f"losses-{batch_size}"
    record = stopwatch.carried_out(folder, Watch(losses=True), *flags(data, batch_size, 1), "--run.trace-rows")[0]
    rows = consumed_rows(folder)
    book = textbook_settings(workspace, data, batch_size) | {
        "turns": (str(workspace / f"alone-{batch_size}"), 0, 1), "epochs": 1,
        "rows": [rows[key] for key in sorted(rows)]}
    with textbook(workspace, book) as other:
        assert other.wait(600) == 0, other.text
    theirs = json.loads(Path(book["out"]).read_text())["losses"]
    return max(abs(a - b) for a, b in zip(record.losses, theirs, strict=True))


def flags(data: Path, batch_size: int, epochs: int) -> list[str]:
    return ["--config", str(ROOT / "jobs/mlp/textbook.yaml"), "--run.engine", "local", "--data.uri", str(data),
            "--data.cache-dir", str(data.parent / "cache"), "--train.global-batch-size", str(batch_size),
            "--train.epochs", str(epochs)]


def textbook_settings(workspace: Path, data: Path, batch_size: int) -> dict[str, Any]:
    return {"file": str(data / "train-0.parquet"), "batch_size": batch_size,
            "out": str(workspace / f"textbook-{batch_size}.json")}


def textbook(workspace: Path, settings: dict[str, Any]) -> Any:
    path = workspace / "textbook.json"
    path.write_text(json.dumps(settings))
    return python("tests.benchmarks.textbook", str(path), folder=workspace)


def _rates(legs: list[dict], batch_size: int) -> list[float]:
    """Samples a second of each leg but the first."""
    return [leg["steps"] * batch_size / leg["seconds"] for leg in legs[1:]]
