"""Steps and seconds to the same validation loss: the job against transformers.Trainer, from real pretrained weights."""

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.core.storage import Store
from jobs.common.config import from_dict
from jobs.transformer.config import TransformerConfig
from jobs.transformer.text.prepare import prepare
from tests.benchmarks.results import Figure, Outcome
from tests.benchmarks.trainer import SKIPPED, Recipe, trained
from tests.benchmarks.transformer_throughput import rows_of
from tests.pretrained import minilm
from tests.runs import python

TITLE = "fine-tuning a small BERT on AG News: the loss after the same steps, and the seconds of these"


@dataclass(frozen=True, kw_only=True)
class Settings:
    steps: int = 128
    """One epoch."""
    seeds: int = 3


QUICK = Settings(steps=12, seeds=1)
NOTES = (
    "all-MiniLM-L6-v2 with a new head for 4 classes, 2,048 training and 512 validation rows cut to 128 tokens, batch "
    "16, fp32, two threads, one epoch: learning rate 1e-4 after 20 steps, weight decay 0.01; Trainer with its "
    "defaults. By turns; medians over the seeds. Seconds: of the steps alone, the first 5 left out.",
)


def measure(settings: Settings, workspace: Path) -> Outcome:
    uri, model = rows_of(workspace / "in", validation=512), minilm()
    config = from_dict(TransformerConfig, {"data": {"uri": str(uri), "max_length": 128}, "model": {"name": model}})
    data = prepare(config, Store.open(str(workspace / "storage")), use_ray=False).store.location()
    found: dict[str, list[dict[str, float]]] = {"Trainer": [], "job": []}
    for seed in range(settings.seeds):
        found["Trainer"].append(trained(Recipe(data=data, model=model, steps=settings.steps, lr=1e-4, warmup_steps=20,
                                               seed=seed,
                                               judge=True)))
        found["job"].append(job(workspace / f"storage/seed-{seed}", uri, model, settings.steps, seed))

    def median(who: str, what: str) -> float:
        return statistics.median(run[what] for run in found[who])

    figures = [Figure(name=f"{who}: validation loss after {settings.steps} steps", value=median(who, "loss"))
               for who in found]
    figures.append(Figure(name="loss, job over Trainer", value=median("job", "loss") / median("Trainer", "loss"),
                          at_most=1.02))
    figures.append(Figure(name="seconds, job over Trainer",
                          value=median("job", "seconds") / median("Trainer", "seconds"),
                          at_most=1.0))
    return Outcome(figures=tuple(figures), samples=found, notes=NOTES)


def job(folder: Path, uri: Path, model: str, steps: int, seed: int) -> dict[str, Any]:
    flags = ["--run.engine", "local", "--run.storage", str(folder.parent), "--run.name", folder.name,
             "--run.cpus-per-worker", "2",
             "--run.tracking-uri", "none", "--run.seed", str(seed), "--data.uri", str(uri), "--data.max-length", "128",
             "--model.name", model, "--train.global-batch-size", "16", "--train.max-steps", str(steps),
             "--train.epochs", "1",
             "--optim.lr", "1e-4", "--optim.schedule", "linear", "--optim.warmup", "20", "--optim.weight-decay",
             "0.01",
             "--optim.clip-norm", "1.0", "--eval.robustness-rows", "0", "--eval.explained-rows", "0"]
    with python("tests.benchmarks.transformer_watched", *flags, folder=folder) as started:
        loss = started.finished(600)["metrics"]["validation"]["log_loss"]
    taken = json.loads((folder / "steps/rank-0.json").read_text())
    return {"loss": loss, "seconds": sum(step["at"] for step in taken[SKIPPED:])}
