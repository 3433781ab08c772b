"""A base with random weights, and adapters that are trained on it: with the job's own loop and export, without text."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cluster.core.storage import Store
from jobs.common.artifact.artifact import Artifact, Probe, write_artifact
from jobs.common.checkpoint.store import Checkpoints
from jobs.common.training.job import EvaluationResult, TrainingResult
from jobs.transformer import data
from jobs.transformer.export import hugging_face_files
from jobs.transformer.model import Classifier, LanguageModel
from jobs.transformer.text import tokenizer
from tests.unit.language_model import language_model
from tests.unit.token_rows import config_of, run_group, token_rows


def save_base(folder: Path, seed: int = 0) -> Path:
    """A small language model as `save_pretrained` writes it."""
    made = language_model(seed)
    made.model.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    return folder


def train_adapter(folder: Path, base: Path, classes: int = 0, *, merge: bool = False, **model: Any) -> Artifact:
    """What a run of a few steps hands over. classes: 0 to generate."""
    made = tokenizer.train(
        config_of(task="classify", data={"uri": "languages", "tokenizer": "characters"}), ["one two words", "3"]
    ) if classes else tokenizer.train(config_of(data={"tokenizer": "bytes", "max_length": 64}), ())
    dataset = token_rows(folder, classes=classes)
    dataset = replace(dataset, details={**dataset.details, "vocab_size": len(made), "special_ids": [0]})
    config = config_of(
        task="classify" if classes else "generate", data={"uri": "languages" if classes else "stdlib"},
        model={"name": str(base), "layers": None, "heads": None, "width": None, "lora_rank": 4, **model},
        optim={"lr": 1e-2}, train={"max_steps": 4}, run={"checkpoint_every_steps": 4, "name": "adapter"},
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
    verdict = EvaluationResult(metrics=metrics, probe=_probe(classes))
    return write_artifact(store, "artifact", description=data.describe(trained, verdict), probe=verdict.probe,
                          files={f"model/{name}": content for name, content in files.items()})


def _probe(classes: int) -> Probe:
    if classes:
        return Probe(inputs={"text": np.array(["ab"], object)},
                     outputs={"probabilities": np.full((1, classes), 1 / classes, np.float32)})
    return Probe(inputs={"tokens": np.ones((1, 33), np.int32)},
                 outputs={"negative_log_likelihood": np.ones(1, np.float32)})


def answers(model: Classifier | LanguageModel) -> np.ndarray:
    if isinstance(model, Classifier):
        return model.predict(["one", "two words", "3"])
    return model.negative_log_likelihood(np.arange(66, dtype=np.int32).reshape(2, 33))
