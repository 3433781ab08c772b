"""A base with random weights, and adapters that are trained on it: with the job's own loop and export, without text."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from cluster.core.storage import Store
from jobs.common.artifact.artifact import Artifact, Probe, write_artifact
from jobs.common.checkpoint.store import Checkpoints
from jobs.common.training.job import EvaluationResult, TrainingResult
from jobs.transformer import data
from jobs.transformer.export import hugging_face_files
from jobs.transformer.model import Classifier, LanguageModel, load
from jobs.transformer.text import tokenizer
from tests.unit.language_model import language_model
from tests.unit.token_rows import config_of, run_group, token_rows

TEXTS = ["one", "two words", "3"]
TOKENS = (np.arange(66, dtype=np.int32) % 13).reshape(2, 33)


def save_base(folder: Path, seed: int = 0) -> Path:
    """A small language model as `save_pretrained` writes it."""
    made = language_model(seed)
    made.model.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    return folder


def train_adapter(folder: Path, base: Path, classes: int = 0, *, merge: bool = False, seed: int = 0,
                  **model: Any) -> Artifact:
    """What a run of a few steps hands over. classes: 0 to generate."""
    made = tokenizer.train(
        config_of(task="classify", data={"uri": "languages", "tokenizer": "characters"}), ["one two words", "3"]
    ) if classes else AutoTokenizer.from_pretrained(base)
    dataset = token_rows(folder, classes=classes, vocabulary=min(64, len(made)))
    dataset = replace(dataset, details={**dataset.details, "vocab_size": len(made), "special_ids": [0]})
    config = config_of(
        task="classify" if classes else "generate", data={"uri": "languages" if classes else "stdlib"},
        model={"name": str(base), "layers": None, "heads": None, "width": None, "lora_rank": 4, **model},
        optim={"lr": 1e-2}, train={"max_steps": 4}, run={"checkpoint_every_steps": 4, "name": "adapter", "seed": seed},
        export={"merge": merge})
    run_group(folder / "run", dataset, config, "jobs.transformer.train:train", 1)
    store = Store.open(str(folder / "run"))
    checkpoints = Checkpoints(store.child("checkpoints"))
    best, generation = checkpoints.best(), checkpoints.current_generation()
    assert best is not None and generation is not None
    trained = TrainingResult(job="transformer", config=config, dataset=dataset, store=store, generation=generation,
                             best=best)
    files = {**hugging_face_files(trained), **tokenizer.files_of(made)}
    metrics = {"test": {"accuracy": 0.5} if classes else {"loss": 1.0}}
    name, rows = ("text", np.array(TEXTS, object)) if classes else ("tokens", TOKENS)
    output = "probabilities" if classes else "negative_log_likelihood"
    artifact = None
    for outputs in (np.zeros((len(rows), *([classes] if classes else [])), np.float32), None):
        probe = Probe(inputs={name: rows}, outputs={
            output: outputs if artifact is None else answers(load(artifact))})  # its own answers, once it is there
        verdict = EvaluationResult(metrics=metrics, probe=probe)
        artifact = write_artifact(store, "artifact", description=data.describe(trained, verdict), probe=probe,
                                  files={f"model/{name}": content for name, content in files.items()})
    assert artifact is not None
    return artifact


def answers(model: Classifier | LanguageModel) -> np.ndarray:
    return model.predict(TEXTS) if isinstance(model, Classifier) else model.negative_log_likelihood(TOKENS)
