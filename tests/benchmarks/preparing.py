"""Preparing text to generate: JSON Lines to packed rows of tokens on disk, beside Ray Data and Hugging Face's datasets.

All three have the same files, the same tokenizer and the same two cores, each in a process of its own, and leave rows
of 1,024 tokens: ours in Parquet blocks with splits, counts and hashes, a bare pipeline of Ray Data in Parquet files,
and `datasets.map(batched=True, num_proc=2)`, twice (tokenise, group), in its own Arrow cache.
"""

import functools
import json
import random
import statistics
import sys
import sysconfig
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cluster.core.documents import JsonObject
from cluster.core.storage import Store
from jobs.common.config import from_dict
from jobs.transformer.config import TransformerConfig
from jobs.transformer.text.prepare import prepare
from jobs.transformer.text.tokenizer import train
from tests.benchmarks.apart import answer_of, answer_timed, size_of
from tests.benchmarks.results import Figure, Outcome
from tests.runs import cluster

TITLE = "tokenising and packing JSON Lines on two cores"
LENGTH = 1024
PLACES = {"one task at a time": {"cpus": 1}, "two nodes of one core each": {"nodes": 2}}
OURS, RAY_DATA, DATASETS = "Trainyard", "bare Ray Data", "datasets.map(num_proc=2)"


@dataclass(frozen=True, kw_only=True)
class Settings:
    megabytes: int = 160
    large_megabytes: int = 480
    """A second size: what the driver's memory does not grow with."""
    files: int = 8
    rounds: int = 3


QUICK = Settings(megabytes=10, large_megabytes=20, files=2, rounds=1)
NOTES = (
    "The text is random cuts of 20 to 1,000 words out of the Python standard library; the tokenizer is a byte-level "
    "BPE of 8,192 that was trained before. Seconds are from the call to the last row on disk, without starting Ray.",
    "Seconds are those before the first MB, and so many more for each MB: both follow from the two sizes. With n "
    "cores, on however many nodes, each MB takes an nth of them, up to the number of pieces: 16, or one for each "
    "64 MB.",
    "The driver's memory is what its resident set grew by since the call, sampled ten times a second, under Ray.",
)


def measure(settings: Settings, workspace: Path) -> Outcome:
    corpus, large, model = workspace / "corpus", workspace / "large", workspace / "model"
    write_corpus(corpus, settings.megabytes, settings.files)
    write_corpus(large, settings.large_megabytes, settings.files)
    write_model(model)
    seconds: dict[str, list[float]] = {}
    for round_ in range(settings.rounds):
        for who in (OURS, RAY_DATA, DATASETS):
            seconds.setdefault(who, []).append(done(who, corpus, model, workspace / f"{round_}")["seconds"])
    rates = {who: settings.megabytes / statistics.median(took) for who, took in seconds.items()}
    disk = size_of(workspace / "0" / OURS[:4] / "data")
    small, big = (done(OURS, uri, model, workspace / "driver") for uri in (corpus, large))
    places = {what: done(OURS, corpus, model, workspace / what.replace(" ", "-"), **cluster)
              for what, cluster in PLACES.items()}
    rate = (settings.large_megabytes - settings.megabytes) / (big["seconds"] - small["seconds"])
    figures = (
        *(Figure(name=who, value=rate, unit="MB/s") for who, rate in rates.items()),
        Figure(name="faster than the best of them", value=rates[OURS] / max(rates[RAY_DATA], rates[DATASETS]),
               at_least=1.0, aim_at_least=2.0),
        *(Figure(name=f"Trainyard, {what}", value=settings.megabytes / took["seconds"], unit="MB/s")
          for what, took in places.items()),
        Figure(name="Trainyard, two tasks: each further MB", value=rate, unit="MB/s"),
        Figure(name="and before the first", value=big["seconds"] - settings.large_megabytes / rate, unit="s"),
        Figure(name="Trainyard: on disk, of the text's bytes", value=disk / settings.megabytes / 1e6),
        Figure(name=f"the driver's memory, {settings.megabytes} MB", value=small["grown"] / 1e6, unit="MB"),
        Figure(name=f"the driver's memory, {settings.large_megabytes} MB", value=big["grown"] / 1e6, unit="MB"),
        Figure(name="grown by", value=(big["grown"] - small["grown"]) / 1e6, unit="MB", at_most=100.0),
    )
    samples = {"seconds": seconds, "large": [small, big], "places": places}
    return Outcome(figures=figures, samples=samples, notes=NOTES)


def write_corpus(folder: Path, megabytes: int, files: int) -> None:
    root = Path(sysconfig.get_paths()["stdlib"])
    texts = [path.read_text(errors="ignore") for path in sorted(root.glob("*.py"))]
    words, draw = " ".join(texts).split(), random.Random(0)
    folder.mkdir(parents=True)
    for number in range(files):
        written = 0
        with (folder / f"part-{number}.jsonl").open("w") as file:
            while written < megabytes * 1e6 / files:
                start = draw.randrange(len(words) - 1000)
                text = " ".join(words[start : start + draw.randrange(20, 1000)])
                written += file.write(json.dumps({"text": text}) + "\n")


def write_model(folder: Path) -> None:
    """A folder with a tokenizer, as of a pretrained model."""
    config = from_dict(TransformerConfig, {"task": "generate", "data": {"uri": "stdlib", "vocab_size": 8192}})
    root = Path(sysconfig.get_paths()["stdlib"])
    train(config, (path.read_text(errors="ignore") for path in sorted(root.glob("*.py")))).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", "vocab_size": 8192}))


def done(who: str, corpus: Path, model: Path, folder: Path, cpus: int = 2, nodes: int = 0) -> JsonObject:
    """seconds; grown: the most bytes of memory that the driver had more than before. nodes: of one core each, beside
    a head that has none; by default the head has all."""
    with ExitStack() as stack:
        env: dict[str, str] = {}
        if nodes:
            made = stack.enter_context(cluster(folder / "home", nodes=nodes, cpus_per_node=1))
            env = {**made.environment(), "TRAINYARD_HOME": str(folder / "home")}
        return answer_of(__name__, who, str(corpus), str(model), str(folder / who[:4]), str(cpus), env=env)


# ── in a process of its own ──
def ours(corpus: str, model: str, out: str) -> None:
    config = from_dict(TransformerConfig, {"task": "generate", "data": {"uri": corpus, "max_length": LENGTH},
                                           "model": {"name": model}})
    prepare(config, Store.open(out), use_ray=True)


@functools.cache
def tokenizer_of(model: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)


def packed(batch: dict[str, Any], model: str) -> dict[str, Any]:
    """What a user writes for `map_batches`: a batch of texts becomes packed rows; the rest of a batch is dropped."""
    tokenizer = tokenizer_of(model)
    ids = tokenizer(list(batch["text"]), add_special_tokens=False)["input_ids"]
    stream = np.concatenate([np.array([*each, tokenizer.eos_token_id], np.int32) for each in ids])
    return {"tokens": stream[: len(stream) // LENGTH * LENGTH].reshape(-1, LENGTH)}


def ray_data(corpus: str, model: str, out: str) -> None:
    import ray.data

    rows = ray.data.read_json(corpus, file_extensions=["jsonl"])
    rows.map_batches(packed, fn_kwargs={"model": model}, batch_size=1000).write_parquet(out)


def hugging_face(corpus: str, model: str, out: str) -> None:
    from datasets import load_dataset

    tokenizer = tokenizer_of(model)

    def tokenise(batch: dict[str, Any]) -> dict[str, Any]:
        ids = tokenizer(batch["text"], add_special_tokens=False)["input_ids"]
        return {"ids": [[*each, tokenizer.eos_token_id] for each in ids]}

    def group(batch: dict[str, Any]) -> dict[str, Any]:
        stream = [token for each in batch["ids"] for token in each]
        return {"tokens": [stream[i : i + LENGTH] for i in range(0, len(stream) // LENGTH * LENGTH, LENGTH)]}

    rows = load_dataset("json", data_files=sorted(map(str, Path(corpus).glob("*.jsonl"))), split="train", cache_dir=out)
    tokens = rows.map(tokenise, batched=True, num_proc=2, remove_columns=["text"])
    tokens.map(group, batched=True, num_proc=2, remove_columns=["ids"])


def main(who: str, corpus: str, model: str, out: str, cpus: str) -> None:
    work: Callable[[str, str, str], None] = {OURS: ours, RAY_DATA: ray_data, DATASETS: hugging_face}[who]
    answer_timed(lambda: work(corpus, model, out), cpus=0 if who == DATASETS else int(cpus))


if __name__ == "__main__":
    from tests.benchmarks import preparing  # by its name, by which tasks find its functions

    preparing.main(*sys.argv[1:])
