"""A module of a user's own in the PyTorch job: against the MLP job, which is written for this very network, and against
Lightning's Trainer. Same network, data, batch, optimiser and one thread."""

import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks import images, stopwatch
from tests.benchmarks.results import Figure, Outcome
from tests.benchmarks.startup import once
from tests.benchmarks.stopwatch import Watch
from tests.runs import python

TITLE = "a module in the PyTorch job against the MLP's own loop and Lightning's Trainer, batch 64, one thread"
BATCH = 64
MODULE = ["--model.build", "tests.benchmarks.networks:textbook", "--model.normalise", "unit", "--optim.name", "sgd",
          "--optim.lr", "0.01", "--optim.weight-decay", "0", "--optim.schedule", "constant", "--optim.warmup", "0",
          "--optim.label-smoothing", "0", "--optim.clip-norm", "None", "--augment.shift", "0", "--augment.rotate", "0",
          "--augment.scale", "0"]
"""What jobs/mlp/textbook.yaml says, for the PyTorch job."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    rows: int = 60_000
    other_rows: int = 2_000
    epochs: int = 11
    """By turns; the first of them is left out."""
    paired_epochs: int = 4
    repetitions: int = 3
    """Of all processes: one may have a better place in memory than another, for as long as it lives."""
    starts: int = 5


QUICK = Settings(rows=4_000, other_rows=200, epochs=3, repetitions=1, starts=1)
NOTES = (
    "784 → 128 → 10, plain SGD in one kernel, batch 64, one thread. Each is repeated in new processes.",
    "Overhead: in one process each batch makes a step of the module's class and one of the MLP's, by turns the one and "
    "the other first; all that a step is but taking the batch and telling the driver, which is the same code for both. "
    "The ratio of the medians, and the median over the processes.",
    "The module is given what every module is given: float images (B, 1, 28, 28), normalised, from the bytes that are "
    "stored, and a seed of its own for each pass, should it draw random numbers: half of the overhead. The MLP's class "
    "normalises flattened pixels, and knows that this network draws none.",
    "Against Lightning: by turns, an epoch each, in a process each; the median over neighbouring turns. An epoch is "
    "all of its steps: batches taken, forward, backward, optimiser; in the job also the loss as a number, the check "
    "for NaN, the beat to the driver and the decision on checkpoints. Left out: start-up, the first epoch, evaluation.",
    "Lightning's Trainer has its images in memory as float32, normalised, before it begins, a DataLoader that shuffles "
    "them, and neither logger, checkpoints, progress bar, summary nor validation.",
    "Start-up: from the start of the process to the end of the first step, 2,000 rows; the job under its local engine "
    "with its data prepared before, Lightning with what it imports where it is installed (transformers, matplotlib, "
    "SciPy: 2 s) hidden from it. By turns, medians.",
)


def measure(settings: Settings, workspace: Path) -> Outcome:
    data = images.write_splits(workspace / "images", settings.rows, settings.other_rows)
    legs: dict[str, list[dict[str, Any]]] = {"module": [], "Lightning": []}
    paired: list[dict[str, float]] = []
    for number in range(settings.repetitions):
        for name, found in by_turns(workspace / f"{number}", data, settings.epochs, first=number % 2).items():
            legs[name] += found[1:]
        paired.append(in_one_process(workspace / f"{number}", data, settings.paired_epochs))
    rates = {name: [leg["steps"] / leg["seconds"] for leg in each] for name, each in legs.items()}
    against = [module / theirs for module, theirs in zip(rates["module"], rates["Lightning"], strict=True)]
    starts = start_up(workspace, settings.starts)
    overhead = [each["module"] / each["MLP job"] - 1 for each in paired]
    figures = [
        Figure(name="a step of the module over one of the MLP job's own loop: overhead", unit="%",
               value=100 * statistics.median(overhead), at_most=3.0),
        *(Figure(name=f"a step, {name}", value=1e6 * statistics.median(each[name] for each in paired), unit="µs")
          for name in paired[0]),
        Figure(name="times the steps per second of Lightning's Trainer", value=statistics.median(against),
               at_least=1.2),
        *(Figure(name=name, value=statistics.median(each), unit="steps/s") for name, each in rates.items()),
        *(Figure(name=f"start-up, {name}", value=statistics.median(each), unit="s") for name, each in starts.items()),
    ]
    return Outcome(figures=tuple(figures), notes=NOTES,
                   samples={"paired": paired, "legs": legs, "against": against, "starts": starts})


def flags(data: Path, epochs: int) -> list[str]:
    return [*MODULE, "--run.engine", "local", "--data.uri", str(data), "--data.cache-dir", str(data.parent / "cache"),
            "--train.global-batch-size", str(BATCH), "--train.epochs", str(epochs), "--eval.robustness-rows", "0"]


def by_turns(workspace: Path, data: Path, epochs: int, first: int) -> dict[str, list[dict[str, Any]]]:
    """The legs of the module, and of Lightning's Trainer. first: 1 where the latter's turn is the first."""
    workspace.mkdir()
    turns, folder = str(workspace / "turns"), workspace / "storage/module"
    with (stopwatch.started(folder, Watch(turns=(turns, first, 2)), *flags(data, epochs),
                            module="tests.benchmarks.module_watched") as job,
          lightning(workspace, data, {"turns": (turns, 1 - first, 2), "epochs": epochs}) as other):
        other.until(lambda: len(list(Path(turns).glob("here-*"))) == 2, 120)
        job.finished(1800)
        assert other.wait(300) == 0, other.text
    return {"module": stopwatch.records(folder)[0].legs, "Lightning": written(workspace)["legs"]}


def in_one_process(workspace: Path, data: Path, epochs: int) -> dict[str, float]:
    """The median seconds of a step of each; the first epoch is left out."""
    folder = workspace / "storage/paired"
    with stopwatch.started(folder, Watch(), *flags(data, epochs), module="tests.benchmarks.paired_steps") as job:
        job.finished(600)
    found: dict[str, list[float]] = json.loads((folder / "paired.json").read_text())
    return {name: statistics.median(each[len(each) // epochs :]) for name, each in found.items()}


def start_up(workspace: Path, times: int) -> dict[str, list[float]]:
    """Seconds to the end of the first step."""
    data = images.write_splits(workspace / "few", 2_000, 200)
    given = flags(data, 1)
    once(workspace / "starts/prepare", given, "pytorch")
    found: dict[str, list[float]] = {"module": [], "Lightning": []}
    for number in range(times):
        found["module"].append(once(workspace / f"starts/{number}", given, "pytorch")["total"])
        began = time.time()
        with lightning(workspace, data, {"epochs": 0}) as other:
            assert other.wait(120) == 0, other.text
        found["Lightning"].append(written(workspace)["first_step"] - began)
    return found


def lightning(workspace: Path, data: Path, settings: dict[str, Any]) -> Any:
    path = workspace / "lightning.json"
    path.write_text(json.dumps({"file": str(data / "train-0.parquet"), "batch_size": BATCH,
                                "out": str(workspace / "lightning-out.json"), **settings}))
    return python("tests.benchmarks.lightning_trainer", str(path), folder=workspace)


def written(workspace: Path) -> dict[str, Any]:
    return json.loads((workspace / "lightning-out.json").read_text())
