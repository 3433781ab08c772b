"""Real tokens a second of fine-tuning on conversations: the job against TRL's SFTTrainer, with and without packing."""

import csv
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
from tests.benchmarks.transformer_throughput import SOURCE
from tests.benchmarks.trl_sft import Recipe, trained
from tests.runs import python

TITLE = "SFT of a small Llama on conversations: real tokens a second on two threads, against TRL's SFTTrainer"
LEARNT = {"masked": "assistant", "unmasked": "all"}
ROWS = 4
"""Of a step."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    conversations: int = 2500
    steps: int = 40
    rounds: int = 3


QUICK = Settings(conversations=600, steps=12, rounds=1)
NOTES = (
    "AG News as conversations (the title is asked for its text; 62 tokens on the average), the preset tiny with a BPE "
    "of 4,096 tokens, fp32, rows of 512 tokens, 4 a step: the same tokens, marks and first weights for all; cosine "
    "from 2e-3 after 10 steps. SFTTrainer has its defaults, and batches of as many tokens: packed, or conversations "
    "padded to the longest of a batch.",
    "Two threads each, one process after the other, by turns; the first 5 steps of each are left out. Medians over the "
    "rounds. Tokens of padding do not count. Masked: only what the assistant says is learnt.",
    "Loss: of the validation rows, in nats a token that is learnt, after the same number of tokens within 2%.",
)


def measure(settings: Settings, workspace: Path) -> Outcome:
    uri = written(workspace / "talks.jsonl", settings.conversations)
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for name in LEARNT:
        found[name] = {who: [] for who in ("job", "TRL", "TRL, packed")}
    for turn in range(settings.rounds):
        for name, loss_on in LEARNT.items():
            values = config_of(uri, loss_on, settings.steps, turn)
            data = prepare(from_dict(TransformerConfig, values), Store.open(str(workspace / "storage")), use_ray=False)
            tokens = settings.steps * ROWS * data.details["tokens"]["train"] / data.splits["train"].num_rows
            found[name]["job"].append(job(workspace / f"storage/{name}-{turn}", values) | {"tokens": tokens})
            for packing in (False, True):
                recipe = Recipe(data=data.store.location(), config=values, packing=packing, steps=settings.steps,
                                tokens=int(tokens))
                found[name]["TRL, packed" if packing else "TRL"].append(trained(recipe))
    figures: list[Figure] = []
    for name, of in found.items():
        median = {who: {what: statistics.median(run[what] for run in runs) for what in runs[0]}
                  for who, runs in of.items()}
        best = max(median["TRL"]["tokens_per_s"], median["TRL, packed"]["tokens_per_s"])
        figures += [Figure(name=f"{name}, {who}", value=values["tokens_per_s"], unit="tokens/s")
                    for who, values in median.items()]
        figures += [Figure(name=f"{name}, {who}: validation loss", value=values["loss"])
                    for who, values in median.items()]
        figures += [Figure(name=f"{name}: job over the better of TRL's", value=median["job"]["tokens_per_s"] / best,
                           at_least=1.5),
                    Figure(name=f"{name}: loss, job over the better of TRL's", at_most=1.02,
                           value=median["job"]["loss"] / min(median[who]["loss"] for who in ("TRL", "TRL, packed")))]
    return Outcome(figures=tuple(figures), samples=found, notes=NOTES)


def written(path: Path, count: int) -> Path:
    with SOURCE.open() as file, path.open("w") as out:
        for _, title, text in list(csv.reader(file))[:count]:
            out.write(json.dumps({"prompt": title, "completion": text}) + "\n")
    return path


def config_of(uri: Path, loss_on: str, steps: int, seed: int) -> dict[str, Any]:
    return {"task": "chat", "data": {"uri": str(uri), "max_length": 512, "vocab_size": 4096, "tokenizer": "bpe"},
            "model": {"name": "tiny"}, "optim": {"lr": 2e-3, "schedule": "cosine", "warmup": 10},
            "train": {"global_batch_size": ROWS, "max_steps": steps, "epochs": 10, "loss_on": loss_on},
            "run": {"seed": seed}, "eval": {"answers": 0}}


def job(folder: Path, values: dict[str, Any]) -> dict[str, float]:
    """Of a run of the job, as `trained` gives it of TRL's."""
    flags = ["--run.engine", "local", "--run.storage", str(folder.parent), "--run.name", folder.name,
             "--run.cpus-per-worker", "2", "--run.tracking-uri", "none", "--task", values["task"]]
    flags += [word for group in ("data", "model", "optim", "train", "run", "eval")
              for name, value in values[group].items()
              for word in (f"--{group}.{name.replace('_', '-')}", str(value))]
    with python("jobs.transformer", *flags, folder=folder) as started:
        result = started.finished(900)
        shown = [line.split("tokens/s ")[1].split()[0] for line in started.lines if "tokens/s" in line]
    return {"tokens_per_s": float(shown[-1].replace(",", "")), "loss": result["metrics"]["validation"]["loss"]}
