"""The CNN run that fault tests do things to: three workers, a tiny network with batch normalisation,
dropout and augmentation."""

import json
from pathlib import Path
from typing import Any

from tests import runs

INTERVAL = 8
EPOCHS = 8
FLAGS = ["--model.width", "8", "--model.depth", "2", "--model.head", "flatten", "--model.dense", "32",
         "--train.epochs", str(EPOCHS), "--run.checkpoint-every-steps", str(INTERVAL), "--train.global-batch-size",
         "60",
         "--run.tracking-uri", "none", "--run.trace-rows", "--eval.robustness-rows", "0", "--eval.bootstrap-samples",
         "100",
         "--optim.warmup", "10"]
STEPS = EPOCHS * runs.STEPS_PER_EPOCH


def started(folder: Path, workers: int = 3, *flags: str, **how: Any) -> Any:
    return runs.run(folder, *FLAGS, "--run.workers", str(workers), *flags, quick=False, job="cnn", **how)


def keras_digest(folder: Path) -> str:
    manifest = json.loads((folder / "artifact/manifest.json").read_text())
    return next(file["sha256"] for file in manifest["files"] if file["path"] == "model.keras")


def same(folder: Path, reference: Path) -> None:
    mine, theirs = runs.weights(folder), runs.weights(reference)
    assert any("moving_mean" in name for name in theirs) and any(name.startswith("optimizer.second") for name in theirs)
    assert {name: tensor.tobytes() for name, tensor in mine.items()} == {name: t.tobytes()
                                                                         for name, t in theirs.items()}
    assert keras_digest(folder) == keras_digest(reference)
    mine, theirs = runs.consumed_rows(folder), runs.consumed_rows(reference)
    assert mine.items() <= theirs.items()
    assert len(theirs) - len(mine) <= INTERVAL, "who is killed right after a call has not noted the rows of its steps"
    assert len(theirs) == 3 * STEPS
    assert runs.result(folder)["metrics"] == runs.result(reference)["metrics"]
