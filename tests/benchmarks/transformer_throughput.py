"""Real (unpadded) tokens a second of DistilBERT on AG News: the job against the textbook recipe with transformers.Trainer."""

import csv
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cluster.storage import Store
from jobs.common.config import from_dict
from jobs.common.dataset import Dataset
from jobs.transformer.config import TransformerConfig
from jobs.transformer.prepare import prepare
from tests.benchmarks.results import Figure, Outcome
from tests.runs import ROOT, python

TITLE = "DistilBERT on AG News, batch 16: real tokens a second on two threads"
SOURCE = ROOT.parent / "shared/data/ag_news/ag_news_7600.csv"


@dataclass(frozen=True, kw_only=True)
class Settings:
    steps: int = 64
    """Of the job: one whole group of steps that are sorted by length."""
    trainer_steps: int = 40
    rounds: int = 1


QUICK = Settings(steps=12, trainer_steps=10, rounds=1)
NOTES = (
    "The preset distilbert (random weights, a WordPiece of 8,192 tokens: 49 million parameters), texts cut to 128: the same "
    "prepared rows for both. Trainer has its defaults (fp32, random batches padded to their longest row); the job sorts 64 steps "
    "by length.",
    "Two threads each, one after the other, in turns; the first 5 steps of each are left out. Median over the rounds.",
)


def measure(settings: Settings, workspace: Path) -> Outcome:
    uri = rows_of(workspace / "in")
    config = from_dict(TransformerConfig, {"data": {"uri": str(uri), "max_length": 128}, "model": {"name": "distilbert"}})
    dataset = prepare(config, Store.open(str(workspace / "storage")), use_ray=False)
    found: dict[str, list[float]] = {"Trainer": [], "fp32": [], "bf16": []}
    for turn in range(settings.rounds):
        found["Trainer"].append(trainer(dataset, settings.trainer_steps))
        for precision in ("fp32", "bf16"):
            found[precision].append(job(workspace / f"storage/{precision}-{turn}", uri, precision, settings.steps))
    medians = {name: float(np.median(values)) for name, values in found.items()}
    figures = [Figure(name=f"{name}, tokens a second", value=value) for name, value in medians.items()]
    figures += [Figure(name="fp32 against Trainer", value=medians["fp32"] / medians["Trainer"], at_least=1.7, aim_at_least=5.0),
                Figure(name="bf16 against Trainer", value=medians["bf16"] / medians["Trainer"], at_least=3.0, aim_at_least=5.0)]
    return Outcome(figures=tuple(figures), samples=found, notes=NOTES)


def rows_of(folder: Path) -> Path:
    """2,048 training rows, and few others, as files."""
    folder.mkdir()
    with SOURCE.open() as file:
        rows = list(csv.reader(file))
    for name, part in (("train", rows[:2048]), ("val", rows[2048:2112]), ("test", rows[2112:2176])):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("label", "text"), *((label, f"{title} {text}") for label, title, text in part)])
    return folder


def job(folder: Path, uri: Path, precision: str, steps: int) -> float:
    flags = ["--run.engine", "local", "--run.storage", str(folder.parent), "--run.name", folder.name, "--run.cpus-per-worker", "2",
             "--run.tracking-uri", "none", "--data.uri", str(uri), "--model.name", "distilbert", "--train.global-batch-size", "16",
             "--train.max-steps", str(steps), "--train.epochs", "1", "--hardware.precision", precision, "--optim.lr", "5e-5",
             "--optim.schedule", "linear", "--eval.robustness-rows", "0", "--eval.explained-rows", "0"]
    with python("jobs.transformer", *flags, folder=folder) as started:
        started.finished(600)
        shown = [line.split("tokens/s ")[1].split()[0] for line in started.lines if "tokens/s" in line]
    return float(shown[-1].replace(",", ""))


def trainer(dataset: Dataset, steps: int) -> float:
    """In a process of its own, with two threads."""
    done = subprocess.run([sys.executable, "-m", __name__, dataset.store.location(), str(steps)],
                          env=os.environ | {"OMP_NUM_THREADS": "2"}, cwd=ROOT, check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


def textbook(dataset: Dataset, steps: int) -> float:
    """The textbook recipe: Trainer with its defaults. Returns real tokens a second, the first 5 steps left out."""
    import tempfile
    import time

    import torch
    from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments

    from jobs.transformer.model import build_model
    from jobs.transformer.prepare import load_tokenizer

    torch.set_num_threads(2)
    config = from_dict(TransformerConfig, {"data": {"uri": "x", "max_length": 128}, "model": {"name": "distilbert"}})
    reader = dataset.reader("train", config.data)
    rows = reader.rows(0, dataset.splits["train"].num_rows)
    reader.close()
    examples: Any = [{"input_ids": tokens[:length].tolist(), "labels": int(label)} for tokens, length, label in
                     zip(rows["tokens"], rows["length"].tolist(), rows["label"].tolist(), strict=True)]
    collate = DataCollatorWithPadding(load_tokenizer(dataset))
    seen: list[tuple[float, int]] = []

    def counted(batch: list[Any]) -> Any:
        seen.append((time.perf_counter(), sum(len(row["input_ids"]) for row in batch)))
        return collate(batch)

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.at: list[float] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.at.append(time.perf_counter())

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(folder, per_device_train_batch_size=16, max_steps=steps, save_strategy="no", report_to=[],
                                      warmup_steps=500, weight_decay=0.01, use_cpu=True, disable_tqdm=True)
        Trainer(model=build_model(config, dataset.details, dataset.class_names), args=arguments, train_dataset=examples,
                data_collator=counted, callbacks=[clock]).train()
    skipped = min(5, steps - 2)
    return sum(count for _, count in seen[skipped + 1 : steps]) / (clock.at[steps - 1] - clock.at[skipped])


if __name__ == "__main__":
    print(textbook(Dataset.load(Store.open(sys.argv[1])), int(sys.argv[2])))
