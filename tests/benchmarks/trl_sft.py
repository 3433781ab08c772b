"""TRL's SFTTrainer over the conversations of a prepared dataset, in a process of its own: what the Transformer job is
compared with."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cluster.core.storage import Store
from jobs.common.config import from_dict
from jobs.common.data.dataset import Columns, Dataset, SplitName
from jobs.common.data.reader import Reader
from jobs.transformer.chat.packing import BEGINS, LEARNT
from jobs.transformer.config import TransformerConfig
from tests.benchmarks.legs import Legs
from tests.runs import ROOT


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """SFTTrainer's defaults, two threads, and:"""

    data: str
    """Where a prepared dataset lies."""
    config: dict[str, Any]
    """Of the job, whose model, length and optimiser count."""
    packing: bool
    tokens: int
    """To train on in all, in steps of as many tokens on the average as the job's have."""
    steps: int
    legs: dict[str, Any]
    """By turns with whom: see Legs."""


def started(recipe: Recipe) -> "subprocess.Popen[str]":
    """Whose last line has the rates of its legs, the tokens in all, and the loss of the validation rows, as the job
    computes it."""
    return subprocess.Popen([sys.executable, "-m", __name__, json.dumps(asdict(recipe))],
                            env=os.environ | {"OMP_NUM_THREADS": "2"}, cwd=ROOT, text=True,
                            stdout=subprocess.PIPE)


def train(recipe: Recipe) -> dict[str, Any]:
    import datasets
    import torch
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from jobs.transformer.build import build_model
    from jobs.transformer.text.dataset_files import load_tokenizer

    torch.set_num_threads(2)
    dataset = Dataset.load(Store.open(recipe.data))
    config = from_dict(TransformerConfig, recipe.config)
    examples = list(conversations(rows_of(dataset, config, "train")))
    if recipe.packing:
        batch = config.train.global_batch_size
    else:
        mean = sum(len(each["input_ids"]) for each in examples) / len(examples)
        batch = round(recipe.tokens / recipe.steps / mean)
    seen: list[int] = []
    done = iter(range(recipe.steps))
    legs = Legs(Path(recipe.legs["folder"]), **{name: value for name, value in recipe.legs.items() if name != "folder"})

    class ByTurns(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            legs.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            legs.step(seen[next(done)])

    with tempfile.TemporaryDirectory() as folder:
        how = SFTConfig(folder, per_device_train_batch_size=batch, max_steps=recipe.steps, packing=recipe.packing,
                        max_length=config.data.max_length, learning_rate=config.optim.highest_lr,
                        lr_scheduler_type="cosine", warmup_steps=int(config.optim.warmup), weight_decay=0.01,
                        activation_checkpointing=False, bf16=False, use_cpu=True, save_strategy="no", report_to=[],
                        disable_tqdm=True)
        trainer: Any = SFTTrainer(build_model(config, dataset.details, ()), args=how, callbacks=[ByTurns()],
                                  train_dataset=datasets.Dataset.from_list(examples),
                                  processing_class=load_tokenizer(dataset))
        collate = trainer.data_collator

        def counted(rows: list[dict[str, Any]]) -> Any:
            seen.append(sum(len(row["input_ids"]) for row in rows))
            return collate(rows)

        trainer.data_collator = counted
        trainer.train()
    return {"rates": legs.rates, "tokens": sum(seen[: recipe.steps]),
            "loss": validation_loss(trainer.model, rows_of(dataset, config, "validation"))}


def rows_of(dataset: Dataset, config: TransformerConfig, split: SplitName) -> Columns:
    reader = Reader.open(dataset, split, config.data)
    rows = reader.rows(0, dataset.splits[split].num_rows)
    reader.close()
    return rows


def conversations(rows: Columns) -> Iterator[dict[str, list[int]]]:
    """Each by itself, as SFTTrainer takes them when they are tokens already."""
    for tokens, marks in zip(rows["tokens"], rows["marks"], strict=True):
        there = np.flatnonzero(tokens >= 0)
        for part in np.split(there, np.flatnonzero(marks[there] & BEGINS > 0)[1:]):
            labels = np.where(marks[part] & LEARNT > 0, tokens[part], -100)
            yield {"input_ids": tokens[part].tolist(), "labels": labels.tolist()}


def validation_loss(model: Any, rows: Columns) -> float:
    """Nats a token that is learnt."""
    import torch

    from jobs.transformer.inputs import IGNORED, marked_inputs, token_losses

    total = count = 0.0
    with torch.no_grad():
        for start in range(0, len(rows["tokens"]), 8):
            batch, targets = marked_inputs(*(rows[name][start : start + 8] for name in ("tokens", "marks")),
                                           torch.device("cpu"))
            total += float(token_losses(model.eval()(**batch).logits, targets).sum())
            count += int((targets != IGNORED).sum())
    return total / count


if __name__ == "__main__":
    print(json.dumps(train(Recipe(**json.loads(sys.argv[1])))))
