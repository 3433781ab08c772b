"""Where a step of the Transformer job goes: data, communication, checkpoint, compute; one worker and two;
and tokenising."""

import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jobs.common.config import from_dict
from jobs.transformer.config import TransformerConfig
from jobs.transformer.text.prepare import read_texts
from jobs.transformer.text.tokenizer import backend_of, choose
from tests.benchmarks.results import Figure, Outcome
from tests.benchmarks.transformer_throughput import rows_of
from tests.runs import python

TITLE = "where a step goes, two workers against one, and tokenising"
WARMUP = 5
PARTS = ("compute", "communication", "data", "checkpoint")


@dataclass(frozen=True, kw_only=True)
class Settings:
    steps: int = 32
    """Of DistilBERT; tiny takes ten times as many."""
    rounds: int = 3


QUICK = Settings(steps=8, rounds=1)
NOTES = (
    "One thread a worker, local processes, by turns; medians over the rounds of each run's mean step, the first 5 left "
    "out. A worker has 16 rows of AG News (DistilBERT: 49 million parameters) or 64 phrases (tiny on `languages`: 0.7 "
    "million).",
    "Efficiency: real tokens a second of two workers over twice those of one. The two share the machine's caches, "
    "memory bandwidth and clock: compute takes longer for that alone.",
    "Communication is what the loop waits for: the loss's and the counts' collectives, and what is left of the "
    "gradients' when the backward pass is over. `without overlap`: all gradients in one bucket, which can only be sent "
    "then.",
    "Checkpoint: what saving takes out of the steps' own thread, at the job's own cadence.",
    "Tokenising: text in UTF-8 over CPU seconds of all threads, with the tokenizer that the job trains for each set.",
)


def measure(settings: Settings, workspace: Path) -> Outcome:
    news = rows_of(workspace / "in")
    cases = {
        "DistilBERT": (16, settings.steps,
                       ["--data.uri", str(news), "--model.name", "distilbert", "--optim.lr", "5e-5"]),
        "tiny": (64, 10 * settings.steps,
                 ["--data.uri", "languages", "--data.tokenizer", "characters", "--data.max-length", "64"]),
    }
    samples: dict[str, Any] = {}
    figures: list[Figure] = []
    for name, (rows, steps, flags) in cases.items():
        found: dict[str, list[list[dict[str, float]]]] = {"one": [], "two": [], "without overlap": []}
        for turn in range(settings.rounds):
            for number, (how, of_case) in enumerate(found.items()):
                workers = 1 if how == "one" else 2
                more = ["--scale.bucket-mb", "100000"] if how == "without overlap" else []
                folder = workspace / f"storage/{name.lower()}-{number}-{turn}"
                of_case.append(means(folder, workers,
                                     ["--train.global-batch-size", str(rows * workers), "--train.max-steps",
                                      str(steps), *flags, *more]))
        samples[name] = found
        figures += figures_of(name, found)
    samples["tokenising"] = speeds = {name: tokenising(*of) for name, of in SETS.items()}
    figures += [Figure(name=f"tokenising, {name}", value=value, unit="MB/s per core") for name, value in speeds.items()]
    return Outcome(figures=tuple(figures), samples=samples, notes=NOTES)


def means(folder: Path, workers: int, flags: list[str]) -> list[dict[str, float]]:
    """Of each rank, the mean seconds of a step and its parts, and the mean real tokens."""
    command = ["--run.engine", "local", "--run.storage", str(folder.parent), "--run.name", folder.name,
               "--run.workers", str(workers), "--run.tracking-uri", "none", "--train.epochs", "1000",
               "--eval.robustness-rows", "0", "--eval.explained-rows", "0"]
    with python("tests.benchmarks.transformer_watched", *command, *flags, folder=folder) as job:
        job.finished(900)
    found: list[dict[str, float]] = []
    for rank in range(workers):
        steps = json.loads((folder / f"steps/rank-{rank}.json").read_text())[WARMUP:]
        usual = statistics.median(step["at"] for step in steps)
        steps = [step for step in steps if step["at"] < 20 * usual]  # an evaluation lay between
        mean = {name: statistics.fmean(step[name] for step in steps) for name in steps[0]}
        mean["compute"] = mean["at"] - mean["communication"] - mean["data"] - mean["checkpoint"]
        found.append(mean)
    return found


def figures_of(name: str, found: dict[str, list[list[dict[str, float]]]]) -> list[Figure]:
    def median(how: str, part: str) -> float:
        """Over the rounds, of the mean over the ranks."""
        return statistics.median(statistics.fmean(rank[part] for rank in ranks) for ranks in found[how])

    rate = {how: median(how, "tokens") / median(how, "at") for how in found}
    figures = [Figure(name=f"{name}: efficiency of two workers", value=rate["two"] / rate["one"])]
    for how, title in (("one", "one worker"), ("two", "two workers")):
        figures.append(Figure(name=f"{name}, {title}: a step", value=1e3 * median(how, "at"), unit="ms"))
        for part in PARTS:
            share, most = 100 * median(how, part) / median(how, "at"), 2.0 if part == "data" else None
            figures.append(Figure(name=f"{name}, {title}: {part}", value=share, unit="% of a step", at_most=most))
    apart = 100 * median("without overlap", "communication") / median("without overlap", "at")
    return [*figures,
            Figure(name=f"{name}, two workers without overlap: communication", value=apart, unit="% of a step")]


SETS = {"byte-level BPE of 8,192, stdlib": ("generate", "stdlib", "bpe"),
        "WordPiece of 8,192, languages": ("classify", "languages", "wordpiece"),
        "characters, languages": ("classify", "languages", "characters")}


def tokenising(task: str, uri: str, kind: str) -> float:
    """10^6 bytes of text a CPU second."""
    config = from_dict(TransformerConfig, {"task": task, "data": {"uri": uri, "tokenizer": kind}})
    found = read_texts(config)
    texts = [found.texts[i] for i in found.of("train")]
    tokenizer = choose(config, texts).backend_tokenizer.to_str()
    began = time.process_time()
    encoded = backend_of(tokenizer, config.data.max_length if task == "classify" else None).encode_batch_fast(texts)
    np.concatenate([np.array(one.ids, np.int32) for one in encoded])
    return sum(len(text.encode()) for text in texts) / 1e6 / (time.process_time() - began)
