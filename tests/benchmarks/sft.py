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
from tests.benchmarks.sft_job import LEGS, RATES
from tests.benchmarks.transformer_throughput import SOURCE
from tests.benchmarks.trl_sft import Recipe, started
from tests.runs import python

TITLE = "SFT of a small Llama on conversations: real tokens a second on two threads, against TRL's SFTTrainer"
LEARNT = {"masked": "assistant", "unmasked": "all"}
THEIRS = ("TRL", "TRL, packed")
ROWS = 4
"""Of a step."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    conversations: int = 2500
    steps: int = 40
    leg: int = 4
    """Steps that a process makes before the next one's turn."""


QUICK = Settings(conversations=300, steps=4, leg=2)
NOTES = (
    "AG News as conversations (the title is asked for its text), the preset tiny with a BPE of 4,096 tokens, fp32, "
    "rows of 512 tokens, 4 a step: the same tokens, marks and first weights for all; cosine from 2e-3 after 10 steps. "
    "SFTTrainer has its defaults, and batches of as many tokens: packed, or conversations padded to the longest of a "
    "batch.",
    "Two threads each; all three are there at once, and make some steps by turns. Medians over the turns but the "
    "first. Tokens of padding do not count. Masked: only what the assistant says is learnt.",
    "Loss: of the validation rows, in nats a token that is learnt, after as many tokens within 2%.",
)


def measure(settings: Settings, workspace: Path) -> Outcome:
    uri = written(workspace / "talks.jsonl", settings.conversations)
    figures: list[Figure] = []
    samples: dict[str, Any] = {}
    for name, loss_on in LEARNT.items():
        samples[name] = of = beside_each_other(workspace, name, config_of(uri, loss_on, settings.steps), settings)
        rate = {who: statistics.median(found["rates"][1:]) for who, found in of.items()}
        best, least = (max(rate[who] for who in THEIRS), min(of[who]["loss"] for who in THEIRS))
        figures += [Figure(name=f"{name}, {who}", value=value, unit="tokens/s") for who, value in rate.items()]
        figures += [Figure(name=f"{name}, {who}: validation loss", value=found["loss"]) for who, found in of.items()]
        figures += [Figure(name=f"{name}: job over the better of TRL's", value=rate["job"] / best, at_least=1.5),
                    Figure(name=f"{name}: loss, job over the better of TRL's", value=of["job"]["loss"] / least,
                           at_most=1.02)]
    return Outcome(figures=tuple(figures), samples=samples, notes=NOTES)


def beside_each_other(workspace: Path, name: str, values: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """Of the job and both of TRL's: rates, and the loss after the same steps."""
    data = prepare(from_dict(TransformerConfig, values), Store.open(str(workspace / "storage")), use_ray=False)
    tokens = settings.steps * ROWS * data.details["tokens"]["train"] // data.splits["train"].num_rows
    legs = {"folder": str(workspace / f"turns-{name}"), "of": 1 + len(THEIRS), "steps": settings.steps,
            "size": settings.leg}
    processes = [started(Recipe(data=data.store.location(), config=values, packing=packing, steps=settings.steps,
                                tokens=tokens, legs=legs | {"place": place}))
                 for place, packing in enumerate((False, True), 1)]
    try:
        found = {"job": job(workspace / f"storage/{name}", values, legs | {"place": 0}) | {"tokens": tokens}}
        for who, process in zip(THEIRS, processes, strict=True):
            told = process.communicate(timeout=1200)[0]
            assert process.returncode == 0, told
            found[who] = json.loads(told.splitlines()[-1])
    finally:
        for process in processes:
            process.kill()
    return found


def written(path: Path, count: int) -> Path:
    with SOURCE.open() as file, path.open("w") as out:
        for _, title, text in list(csv.reader(file))[:count]:
            out.write(json.dumps({"prompt": title, "completion": text}) + "\n")
    return path


def config_of(uri: Path, loss_on: str, steps: int) -> dict[str, Any]:
    return {"task": "chat", "data": {"uri": str(uri), "max_length": 512, "vocab_size": 4096, "tokenizer": "bpe"},
            "model": {"name": "tiny"}, "optim": {"lr": 2e-3, "schedule": "cosine", "warmup": 10},
            "train": {"global_batch_size": ROWS, "max_steps": steps, "epochs": 10, "loss_on": loss_on},
            "eval": {"answers": 0}}


def job(folder: Path, values: dict[str, Any], legs: dict[str, Any]) -> dict[str, Any]:
    """Rates and loss of a run of the job."""
    folder.mkdir(parents=True)
    (folder / LEGS).write_text(json.dumps(legs))
    flags = ["--run.engine", "local", "--run.storage", str(folder.parent), "--run.name", folder.name,
             "--run.cpus-per-worker", "2", "--run.tracking-uri", "none", "--run.hang-timeout-s", "1000",
             "--task", values["task"]]
    flags += [word for group in ("data", "model", "optim", "train", "eval") for name, value in values[group].items()
              for word in (f"--{group}.{name.replace('_', '-')}", str(value))]
    with python("tests.benchmarks.sft_job", *flags, folder=folder) as run:
        loss = run.finished(1800)["metrics"]["validation"]["loss"]
    return {"rates": json.loads((folder / RATES).read_text()), "loss": loss}
