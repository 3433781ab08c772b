"""The textbook network with Lightning's Trainer, as lean as it can be: no logger, checkpoints, progress bar or summary.

    python -m tests.benchmarks.lightning_trainer SETTINGS.json

Nothing of this project is in it but the turns. Its images are in memory, float32 from 0 to 1, before the first step.
"""

import importlib.metadata
import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

HIDDEN = ("transformers", "matplotlib", "scipy")
"""What Lightning imports where it is installed, and does without elsewhere: 2 s."""
find_spec, distribution = importlib.util.find_spec, importlib.metadata.distribution


def _distribution(name: str) -> importlib.metadata.Distribution:
    if name in HIDDEN:
        raise importlib.metadata.PackageNotFoundError(name)
    return distribution(name)


importlib.util.find_spec = lambda name, package=None: None if name in HIDDEN else find_spec(name, package)
importlib.metadata.distribution = _distribution

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402, N812  (the field's own name)
from pytorch_lightning import Callback, LightningModule, Trainer  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

from tests.benchmarks.textbook import LR, images_of  # noqa: E402
from tests.benchmarks.turns import Turns  # noqa: E402


class Textbook(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self.network(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=LR, fused=True)


class Legs(Callback):
    """Epochs by turns, the seconds of each, and when the first step was done."""

    def __init__(self, turns: Turns) -> None:
        self.turns, self.legs, self.first_step = turns, list[dict[str, Any]](), 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.turns.begin()
        self.began, self.cpu, self.step = time.perf_counter(), time.thread_time(), trainer.global_step

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.legs.append({"seconds": time.perf_counter() - self.began, "cpu": time.thread_time() - self.cpu,
                          "steps": trainer.global_step - self.step})


class FirstStep(Callback):
    """When the first step was done."""

    at = 0.0

    def on_train_batch_end(self, *_: Any) -> None:
        self.at = self.at or time.time()


def run(settings: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(1)
    loader = DataLoader(TensorDataset(*images_of(Path(settings["file"]))), batch_size=settings["batch_size"],
                        shuffle=True, drop_last=True)
    seen = Legs(Turns(Path(settings["turns"][0]), *settings["turns"][1:])) if settings["epochs"] else FirstStep()
    length = {"max_epochs": settings["epochs"]} if settings["epochs"] else {"max_steps": 1}
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
                      enable_model_summary=False, callbacks=[seen], **length)
    trainer.fit(Textbook(), loader)
    if isinstance(seen, FirstStep):
        return {"first_step": seen.at}
    seen.turns.leave()
    return {"legs": seen.legs}


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_text())
    Path(asked["out"]).write_text(json.dumps(run(asked)))
