"""The textbook recipe with transformers.Trainer, in a process of its own: what the Transformer job is compared with."""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.core.storage import Store
from jobs.common.config import from_dict
from jobs.common.data.dataset import Dataset
from jobs.common.data.reader import Reader
from jobs.transformer.config import TransformerConfig
from tests.runs import ROOT

SKIPPED = 5
"""Steps that are left out of times."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Trainer's defaults (fp32, random batches padded to their longest row, AdamW in one kernel), two threads, and:"""

    data: str
    """Where a prepared dataset lies."""
    model: str
    steps: int
    lr: float = 5e-5
    warmup_steps: int = 500
    seed: int = 0
    judge: bool = False
    """Whether the validation loss is wanted."""


def trained(recipe: Recipe) -> dict[str, float]:
    """tokens_per_s: real ones; seconds: from the first step that counts to the last; loss: of the validation rows."""
    done = subprocess.run([sys.executable, "-m", __name__, json.dumps(asdict(recipe))],
                          env=os.environ | {"OMP_NUM_THREADS": "2"},
                          cwd=ROOT, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def train(recipe: Recipe) -> dict[str, float]:
    import torch
    from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments

    from jobs.transformer.build import build_model
    from jobs.transformer.text.dataset_files import load_tokenizer

    torch.set_num_threads(2)
    dataset = Dataset.load(Store.open(recipe.data))
    config = from_dict(TransformerConfig, {"data": {"uri": "x", "max_length": 128}, "model": {"name": recipe.model},
                                           "run": {"seed": recipe.seed}})
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
        arguments = TrainingArguments(folder, per_device_train_batch_size=16, per_device_eval_batch_size=64,
                                      max_steps=recipe.steps,
                                      save_strategy="no", report_to=[], learning_rate=recipe.lr,
                                      warmup_steps=recipe.warmup_steps,
                                      weight_decay=0.01, seed=recipe.seed, use_cpu=True, disable_tqdm=True)
        trainer = Trainer(model=build_model(config, dataset.details, dataset.class_names), args=arguments,
                          train_dataset=examples(dataset, "train"), data_collator=counted, callbacks=[clock])
        trainer.train()
        skipped = min(SKIPPED, recipe.steps - 2)
        seconds = clock.at[recipe.steps - 1] - clock.at[skipped]
        found = {"seconds": seconds,
                 "tokens_per_s": sum(count for _, count in seen[skipped + 1 : recipe.steps]) / seconds}
        if recipe.judge:
            found["loss"] = trainer.evaluate(examples(dataset, "validation"))["eval_loss"]
    return found


def examples(dataset: Dataset, split: str) -> Any:
    reader = Reader.open(dataset, split, from_dict(TransformerConfig, {"data": {"uri": "x"}}).data)
    rows: dict[str, npt.NDArray[np.int32]] = reader.rows(0, dataset.splits[split].num_rows)
    reader.close()
    return [{"input_ids": tokens[:length].tolist(), "labels": int(label)} for tokens, length, label in
            zip(rows["tokens"], rows["length"].tolist(), rows["label"].tolist(), strict=True)]


if __name__ == "__main__":
    print(json.dumps(train(Recipe(**json.loads(sys.argv[1])))))
