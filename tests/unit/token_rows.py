"""Prepared data of random tokens, and a group of local workers to use it:
for tests of the Transformer's loop without any text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cluster.core.storage import Store
from jobs.common.config import from_dict, to_dict
from jobs.common.config_changes import decisive_fingerprint
from jobs.common.data.dataset import Column, Dataset
from jobs.common.data.prepared import content_fingerprint, find_or_build, split_writers
from jobs.common.execution.controller import Controller
from jobs.common.execution.executors import InProcessExecutor, ProcessExecutor
from jobs.common.execution.generation_state import ControllerCallbacks
from jobs.common.execution.run_state import RunState
from jobs.common.execution.worker import WorkerSpec
from jobs.transformer.chat.packing import LEARNT
from jobs.transformer.config import TransformerConfig

VOCABULARY = 64


def token_rows(folder: Path, rows: int = 240, length: int = 32, classes: int = 0, vocabulary: int = VOCABULARY, *,
               pairs: bool = False) -> Dataset:
    """Rows to generate (documents of about 20 tokens that repeat themselves), with classes to classify, or pairs."""
    rng = np.random.default_rng(0)
    width = length + (not classes)
    tokens = np.repeat(rng.integers(1, vocabulary, (rows, -(-width // 2))), 2, axis=1)[:, :width].astype(np.int32)
    columns = [Column("tokens", "int32", (width,)), Column("row_id", "int64")]
    values: dict[str, Any] = {"tokens": tokens, "row_id": np.arange(rows)}
    if classes:
        lengths = rng.integers(4, length + 1, rows).astype(np.int32)
        tokens[np.arange(length)[None] >= lengths[:, None]] = -1
        labels = (tokens[:, 0] % classes).astype(np.int32)
        columns[1:1] = [Column("length", "int32"), Column("label", "int32")]
        values |= {"length": lengths, "label": labels}
    elif pairs:
        both = np.stack([tokens, rng.permuted(tokens, axis=1)], axis=1)
        both[np.arange(width) >= rng.integers(12, width + 1, (rows, 2, 1))] = -1
        columns[:1] = [Column("tokens", "int32", (2, width)), Column("marks", "uint8", (2, width))]
        values |= {"tokens": both, "marks": ((both >= 0) & (np.arange(width) >= 8)).astype(np.uint8) * LEARNT}
    else:
        tokens[rng.random(tokens.shape) < 0.05] = 0

    def build(store: Store, blocks: str) -> Dataset:
        parts = {"train": slice(0, rows * 3 // 4), "validation": slice(rows * 3 // 4, rows * 7 // 8),
                 "test": slice(rows * 7 // 8, rows)}
        with split_writers(store, blocks, columns, classes) as writers:
            for name, writer in writers.items():
                writer.append({key: column[parts[name]] for key, column in values.items()})
            splits = {name: writer.finish() for name, writer in writers.items()}
        details = {"task": "classify" if classes else "generate", "max_length": length, "vocab_size": vocabulary,
                   "pad_id": 0,
                   "start_id": 0, "end_id": None, "tokenizer_sha256": "", "bytes": dict.fromkeys(parts, rows)}
        return Dataset(store=store, blocks=blocks, fingerprint=content_fingerprint({}, writers), splits=splits,
                       columns=tuple(columns), class_names=tuple("abcdefgh"[:classes]), details=details)

    return find_or_build(Store.open(str(folder)), f"tokens-{rows}-{length}-{classes}{'-pairs' * pairs}", build)


def config_of(**groups: Any) -> TransformerConfig:
    """A tiny model without dropout, 32 tokens a row."""
    model = {"name": "tiny", "layers": 2, "heads": 2, "width": 32, "dropout": 0.0}
    base: dict[str, Any] = {
        "task": "generate", "data": {"uri": "stdlib", "max_length": 32}, "model": model,
        "optim": {"lr": 1e-3, "warmup": 0},
        "train": {"global_batch_size": 12, "epochs": 4}, "run": {"checkpoint_every_steps": 5},
        "eval": {"robustness_rows": 0},
    }
    for name, values in groups.items():
        base[name] = base.get(name, {}) | values if isinstance(values, dict) else values
    return from_dict(TransformerConfig, base)


def run_group(folder: Path, dataset: Dataset, config: TransformerConfig, train: str, workers: int,
              preload: Sequence[str] = ()) -> None:
    """Carries a training function out on local workers, under the controller,
    without a driver's preparations and its finish. preload: what is imported once for all of them."""
    run_store = Store.open(str(folder))
    values = to_dict(config)
    task = WorkerSpec(train=train, config_type="jobs.transformer.config:TransformerConfig", config=values,
                      run_uri=run_store.location(), config_fingerprint=decisive_fingerprint(config),
                      dataset_uri=dataset.store.location())
    executor = InProcessExecutor() if workers == 1 else ProcessExecutor(1, preload)
    callbacks = ControllerCallbacks(on_update=lambda _: None, log=print, stop_requested=lambda: False)
    controller = Controller(run=config.run, executor=executor, spec=task, run_store=run_store,
                            num_shards=config.run.max_workers,
                            run_state=RunState.open(run_store), callbacks=callbacks)
    controller.start(workers)
    assert executor.run(controller.supervise) == "finished"
