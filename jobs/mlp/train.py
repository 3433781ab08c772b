"""How the MLP is trained: what one pass over some rows computes.
The step around it is of `jobs/pytorch/trainable.py`.

Run it with `python -m jobs.mlp`. Shapes: m rows of a micro-batch, H × W × C pixels, K classes.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateImportUsage=false

from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F  # noqa: N812  (the field's own name)
from torch import Tensor

from jobs.common.data.dataset import Columns
from jobs.common.declared_metrics import CLASSIFICATION, chosen
from jobs.common.training.context import TrainContext
from jobs.common.training.fit import fit
from jobs.common.training.trainable import Outcome
from jobs.common.vision.robustness import Attack
from jobs.mlp.config import MlpConfig
from jobs.mlp.model import new_model
from jobs.pytorch.images.adversary import attacked
from jobs.pytorch.images.augment import augment
from jobs.pytorch.images.training import ImageTraining
from jobs.pytorch.process_group import Group
from jobs.pytorch.setup import TorchProfiler, compiled, set_up_torch
from jobs.pytorch.trainable import share_of_a_row


def train(context: TrainContext, config: MlpConfig) -> Outcome:
    """One generation: to the end, or to a stop that all ranks agree on."""
    device = set_up_torch(context, config.run.cpus_per_worker)
    with Group(context, device) as group:
        return fit(context, MlpTraining(context, config, group, device), context.data_loader(),
                   metric=chosen(CLASSIFICATION, config.metric), profiler=TorchProfiler)


class MlpTraining(ImageTraining):
    """The perceptron and its optimiser on one worker."""

    config: MlpConfig

    def __init__(self, context: TrainContext, config: MlpConfig, group: Group, device: torch.device) -> None:
        model = new_model(config, context.dataset).to(device)
        super().__init__(context, config, group, device, model)
        self.forward = compiled(model) if config.hardware.compile else model
        self.attack = Attack.in_training(context.dataset, config)
        self.draws = bool(config.model.dropout or self.attack)

    def backward(self, rows: Columns, epoch: int) -> float:
        return backward(self.forward, rows, self.config, epoch, self.device, self.attack)


def backward(forward: Callable[[Tensor], Tensor], rows: Columns, config: MlpConfig, epoch: int, device: torch.device,
             attack: Attack | None = None) -> float:
    """Adds these rows' share of the global batch's gradient to the parameters'. Returns their share of its loss."""
    images = torch.from_numpy(rows["image"]).to(device, non_blocking=True)
    labels = torch.from_numpy(rows["label"]).to(device, non_blocking=True)
    if config.augment.active:
        images = augment(images, rows["row_id"], config.augment, config.run.seed, epoch)
    if attack:
        images = attacked(forward, images.float(), labels, attack)
    with torch.autocast(device.type, torch.bfloat16) if config.hardware.precision == "bf16" else nullcontext():
        logits = forward(images)
    loss = F.cross_entropy(logits.float(), labels, reduction="sum", label_smoothing=config.optim.label_smoothing)
    loss.backward(share_of_a_row(config.train.global_batch_size, device))  # pyright: ignore[reportUnknownMemberType]
    return loss.item() / config.train.global_batch_size
