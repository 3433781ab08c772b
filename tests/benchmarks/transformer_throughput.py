"""Real (unpadded) tokens a second of DistilBERT on AG News:
the job against the textbook recipe with transformers.Trainer."""

import csv
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cluster.core.storage import Store
from jobs.common.config import from_dict
from jobs.common.data.dataset import Dataset
from jobs.transformer.config import TransformerConfig
from jobs.transformer.text.prepare import prepare
from tests.benchmarks.results import Figure, Outcome
from tests.benchmarks.trainer import Recipe, trained
from tests.runs import ROOT, python

TITLE = "DistilBERT on AG News, batch 16: real tokens a second on two threads"
TOKENS = 49
"""Of a row, where the parts of a step are measured: about the mean of AG News."""
SOURCE = ROOT.parent / "shared/data/ag_news/ag_news_7600.csv"


@dataclass(frozen=True, kw_only=True)
class Settings:
    steps: int = 64
    """Of the job: one whole group of steps that are sorted by length."""
    trainer_steps: int = 40
    rounds: int = 1


QUICK = Settings(steps=12, trainer_steps=10, rounds=1)
NOTES = (
    "The preset distilbert (random weights, a WordPiece of 8,192 tokens: 49 million parameters), texts cut to 128: the "
    "same prepared rows for both. Trainer has its defaults (fp32, random batches padded to their longest row); the job "
    "sorts 64 steps by length.",
    "Two threads each, one after the other, in turns; the first 5 steps of each are left out. Median over the rounds.",
    "Parts of a step: of the operators' own CPU time by torch.profiler, a bare loop (forward, backward, AdamW in one "
    "kernel) with the same model on 16 rows of like length. The product of 784 × 768 and 768 × 3,072 alone: what this "
    "machine can.",
)
PARTS = {"matrix products": ("aten::mm", "aten::addmm", "aten::bmm"), "dropout's random numbers": ("aten::bernoulli_",),
         "AdamW": ("aten::_fused_adamw_",), "copies and casts": ("aten::copy_",)}


def measure(settings: Settings, workspace: Path) -> Outcome:
    uri = rows_of(workspace / "in")
    config = from_dict(TransformerConfig,
                       {"data": {"uri": str(uri), "max_length": 128}, "model": {"name": "distilbert"}})
    dataset = prepare(config, Store.open(str(workspace / "storage")), use_ray=False)
    found: dict[str, list[float]] = {"Trainer": [], "fp32": [], "bf16": []}
    for turn in range(settings.rounds):
        recipe = Recipe(data=dataset.store.location(), model="distilbert", steps=settings.trainer_steps)
        found["Trainer"].append(trained(recipe)["tokens_per_s"])
        for precision in ("fp32", "bf16"):
            found[precision].append(job(workspace / f"storage/{precision}-{turn}", uri, precision, settings.steps))
    medians = {name: float(np.median(values)) for name, values in found.items()}
    figures = [Figure(name=f"{name}, tokens a second", value=value) for name, value in medians.items()]
    figures += [Figure(name="fp32 against Trainer", value=medians["fp32"] / medians["Trainer"], at_least=1.7,
                       aim_at_least=5.0),
                Figure(name="bf16 against Trainer", value=medians["bf16"] / medians["Trainer"], at_least=3.0,
                       aim_at_least=5.0)]
    profiles = {precision: profile(dataset, precision) for precision in ("fp32", "bf16")}
    for precision, parts in profiles.items():
        figures += [Figure(name=f"{precision}: {name}", value=value, unit=unit)
                    for name, (value, unit) in parts.items()]
    return Outcome(figures=tuple(figures), samples={"tokens a second": found, "profiles": profiles}, notes=NOTES)


def rows_of(folder: Path, validation: int = 64) -> Path:
    """2,048 training rows, and few others, as files."""
    folder.mkdir()
    with SOURCE.open() as file:
        rows = list(csv.reader(file))
    judged, last = 2048, 2048 + validation
    for name, part in (("train", rows[:judged]), ("val", rows[judged:last]), ("test", rows[last : last + 64])):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("label", "text"),
                                        *((label, f"{title} {text}") for label, title, text in part)])
    return folder


def job(folder: Path, uri: Path, precision: str, steps: int) -> float:
    flags = ["--run.engine", "local", "--run.storage", str(folder.parent), "--run.name", folder.name,
             "--run.cpus-per-worker", "2",
             "--run.tracking-uri", "none", "--data.uri", str(uri), "--model.name", "distilbert",
             "--train.global-batch-size", "16",
             "--train.max-steps", str(steps), "--train.epochs", "1", "--hardware.precision", precision, "--optim.lr",
             "5e-5",
             "--optim.schedule", "linear", "--eval.robustness-rows", "0", "--eval.explained-rows", "0"]
    with python("jobs.transformer", *flags, folder=folder) as started:
        started.finished(600)
        shown = [line.split("tokens/s ")[1].split()[0] for line in started.lines if "tokens/s" in line]
    return float(shown[-1].replace(",", ""))


def profile(dataset: Dataset, precision: str) -> dict[str, tuple[float, str]]:
    """Where a step goes, on two threads: (value, unit) by name."""
    import torch
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    from jobs.transformer.build import attention_kernels, build_model

    torch.set_num_threads(2)
    config = from_dict(TransformerConfig, {"data": {"uri": "x", "max_length": 128}, "model": {"name": "distilbert"},
                                           "hardware": {"precision": precision}})
    model = build_model(config, dataset.details, dataset.class_names).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, fused=True)
    words = torch.randint(5, dataset.details["vocab_size"], (16, TOKENS))

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"), attention_kernels(config, "cpu"):
            loss = model(input_ids=words, attention_mask=torch.ones_like(words),
                         labels=torch.zeros(16, dtype=torch.long)).loss
        loss.backward()
        optimizer.step()

    for _ in range(3):
        step()
    with profiled(activities=[ProfilerActivity.CPU]) as taken:
        for _ in range(5):
            step()
    own = {event.key: event.self_cpu_time_total / 1e6 for event in taken.key_averages()}
    total = sum(own.values())
    found = {name: (100 * sum(own.get(key, 0.0) for key in keys) / total, "% of a step")
             for name, keys in PARTS.items()}
    blocks = [p.numel() for name, p in model.named_parameters() if ".layer." in name and p.dim() == 2]
    products = 5 * 6 * sum(blocks) * 16 * TOKENS / sum(own[key] for key in ("aten::mm", "aten::addmm"))
    return {**found, "its matrix products": (products / 1e9, "GFLOP/s"),
            "such products alone": (alone(precision), "GFLOP/s")}


def alone(precision: str) -> float:
    """10^9 operations a second of the feed-forward layer's product, two threads."""
    import torch

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = torch.randn(16 * TOKENS, 768, dtype=dtype), torch.randn(3072, 768, dtype=dtype)
    taken: list[float] = []
    for _ in range(30):
        began = time.perf_counter()
        torch.nn.functional.linear(left, right)
        taken.append(time.perf_counter() - began)
    return 2e-9 * left.numel() * right.shape[0] / float(np.median(taken))
