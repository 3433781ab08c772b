"""A module of a user's own in the PyTorch job: against the MLP job, whose loop is written for this very network, and
against Lightning's Trainer. Same network, data, batch, optimiser and one thread."""

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
from tests.runs import ROOT, python

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
    """The first of them is left out."""
    repetitions: int = 6
    """Of all three processes: one may have a better place in memory than another, for as long as it lives."""
    starts: int = 5


QUICK = Settings(rows=4_000, other_rows=200, epochs=3, repetitions=1, starts=1)
NOTES = (
    "784 → 128 → 10, plain SGD in one kernel. The three train by turns, an epoch each, in a process each, and again"
    " in new processes with another first; ratios are medians over all turns. An epoch is all of its steps: batches"
    " taken, forward, backward, optimiser; in the jobs also the loss as a number, the check for NaN, the beat to "
    "the driver and the decision on checkpoints. Left out: start-up, the first epoch, evaluation.",
    "The module is given what every module is given: float images (B, 1, 28, 28), normalised, from bytes in the "
    "memory-mapped cache; a seed of its own for each pass, should it draw random numbers. The MLP job normalises "
    "flattened pixels in place, and knows that this network draws none.",
    "Lightning's Trainer has its images in memory as float32, normalised, before it begins, a DataLoader that shuffles "
    "them, and neither logger, checkpoints, progress bar, summary nor validation.",
    "Start-up: from the start of the process to the end of the first step, 2,000 rows; the job under its local engine "
    "with its data prepared before, Lightning with what it imports where it is installed (transformers, matplotlib, "
    "SciPy) hidden from it. By turns, medians.",
)


def measure(settings: Settings, workspace: Path) -> Outcome:
    data = images.write_splits(workspace / "images", settings.rows, settings.other_rows)
    legs: dict[str, list[dict[str, Any]]] = {}
    for repetition in range(settings.repetitions):
        for name, found in by_turns(workspace / f"{repetition}", data, settings.epochs, first=repetition).items():
            legs.setdefault(name, []).extend(found[1:])
    rates = {name: [leg["steps"] / leg["seconds"] for leg in each] for name, each in legs.items()}
    overhead = [mlp / module - 1 for mlp, module in zip(rates["MLP job"], rates["module"], strict=True)]
    cpu = [module["cpu"] / mlp["cpu"] - 1 for mlp, module in zip(legs["MLP job"], legs["module"], strict=True)]
    against = [module / theirs for module, theirs in zip(rates["module"], rates["Lightning"], strict=True)]
    starts = start_up(workspace, settings.starts)
    figures = [
        Figure(name="a step of the module over one of the MLP job's own loop, overhead", unit="%",
               value=100 * statistics.median(overhead), at_most=3.0),
        Figure(name="the same in CPU time of the loop's thread", unit="%", value=100 * statistics.median(cpu)),
        Figure(name="times the steps per second of Lightning's Trainer", value=statistics.median(against),
               at_least=1.2),
        *(Figure(name=name, value=statistics.median(each), unit="steps/s") for name, each in rates.items()),
        *(Figure(name=f"start-up, {name}", value=statistics.median(each), unit="s") for name, each in starts.items()),
    ]
    return Outcome(figures=tuple(figures), notes=NOTES,
                   samples={"legs": legs, "overhead": overhead, "against": against, "starts": starts})


def by_turns(workspace: Path, data: Path, epochs: int, first: int) -> dict[str, list[dict[str, Any]]]:
    """The legs of each. first: of the three, whose turn is the first."""
    workspace.mkdir()
    place = [(each + first) % 3 for each in range(3)]
    turns, storage = str(workspace / "turns"), workspace / "storage"
    common = ["--run.engine", "local", "--data.uri", str(data), "--data.cache-dir", str(data.parent / "cache"),
              "--train.global-batch-size", str(BATCH), "--train.epochs", str(epochs), "--eval.robustness-rows", "0"]
    textbook = ["--config", str(ROOT / "jobs/mlp/textbook.yaml")]
    with (stopwatch.started(storage / "module", Watch(turns=(turns, place[0], 3)), *MODULE, *common,
                            module="tests.benchmarks.module_watched") as module,
          stopwatch.started(storage / "mlp", Watch(turns=(turns, place[1], 3)), *textbook, *common) as mlp,
          lightning(workspace, data, {"turns": (turns, place[2], 3), "epochs": epochs}) as other):
        other.until(lambda: len(list(Path(turns).glob("here-*"))) == 3, 120)
        module.finished(1800)
        mlp.finished(1800)
        assert other.wait(300) == 0, other.text
    return {"module": stopwatch.records(storage / "module")[0].legs,
            "MLP job": stopwatch.records(storage / "mlp")[0].legs, "Lightning": written(workspace)["legs"]}


def start_up(workspace: Path, times: int) -> dict[str, list[float]]:
    """Seconds to the end of the first step."""
    data = images.write_splits(workspace / "few", 2_000, 200)
    flags = [*MODULE, "--run.engine", "local", "--data.uri", str(data), "--train.global-batch-size", str(BATCH)]
    once(workspace / "starts/prepare", flags, "pytorch")
    found: dict[str, list[float]] = {"module": [], "Lightning": []}
    for number in range(times):
        found["module"].append(once(workspace / f"starts/{number}", flags, "pytorch")["total"])
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
