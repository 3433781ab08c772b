"""How a module of yours is trained: what one pass over some rows computes.
The step around it is of `trainable.py`.

Run it with `python -m jobs.pytorch`. Shapes: m rows of a micro-batch, H × W × C pixels, K classes.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateImportUsage=false

from collections.abc import Iterator
from contextlib import nullcontext

import torch

from jobs.common.data.dataset import Columns
from jobs.common.declared_metrics import chosen
from jobs.common.training.context import TrainContext
from jobs.common.training.fit import fit
from jobs.common.training.trainable import Outcome, Tensors
from jobs.common.vision.build_info import BuildInfo
from jobs.common.vision.robustness import Attack
from jobs.pytorch.config import PytorchConfig
from jobs.pytorch.data import metrics
from jobs.pytorch.images.adversary import attacked
from jobs.pytorch.images.augment import augment
from jobs.pytorch.images.training import ImageTraining
from jobs.pytorch.model import loss_of, new_model, trial
from jobs.pytorch.own_module import check, other_module
from jobs.pytorch.process_group import Group
from jobs.pytorch.setup import TorchProfiler, compiled, set_up_torch


def train(context: TrainContext, config: PytorchConfig) -> Outcome:
    """One generation: to the end, or to a stop that all ranks agree on."""
    device = set_up_torch(context, config.run.cpus_per_worker)
    with Group(context, device) as group:
        return fit(context, ModuleTraining(context, config, group, device), context.data_loader(),
                   metric=chosen(metrics(config), config.metric), profiler=TorchProfiler)


class ModuleTraining(ImageTraining):
    """The module and its optimiser on one worker."""

    config: PytorchConfig
    within = "module."

    def __init__(self, context: TrainContext, config: PytorchConfig, group: Group, device: torch.device) -> None:
        info = BuildInfo.of(context.dataset, config.model)
        model = new_model(config, info)
        rows = config.train.global_batch_size // context.num_shards
        check(config.own, str(config.model.loss), model, loss_of(config), trial(info),
              min(rows, config.train.max_rows_per_pass or rows))
        super().__init__(context, config, group, device, model.to(device), loss_of(config), config.own)
        self.forward = compiled(model) if config.hardware.compile else model.forward
        self.attack = Attack.in_training(context.dataset, config)
        self.training_loss = loss_of(config, config.optim.label_smoothing)

    def load_state_dict(self, parts: Iterator[Tensors], optimizer_steps: int) -> None:
        """Raises: ConfigError for another module than the one that the checkpoint is of."""
        try:
            super().load_state_dict(parts, optimizer_steps)
        except (RuntimeError, ValueError) as error:
            raise other_module(self.config.model.build, error) from error

    def backward(self, rows: Columns, epoch: int) -> float:
        """Adds these rows' share of the global batch's gradient to the parameters'. Returns their share of its loss."""
        config = self.config
        images = torch.from_numpy(rows["image"]).to(self.device, non_blocking=True)
        labels = torch.from_numpy(rows["label"]).to(self.device, non_blocking=True)
        if config.augment.active:
            images = augment(images, rows["row_id"], config.augment, config.run.seed, epoch)
        if self.attack:
            images = attacked(self.forward, images.float(), labels, self.attack)
        if self.whole_loss:
            return self.lower(self.whole_loss(self.forward, self.batch(rows, images)), len(rows["label"]))
        with torch.autocast(self.device.type, torch.bfloat16) if config.hardware.precision == "bf16" else nullcontext():
            logits = self.forward(images)
        return self.lower(self.training_loss(logits.float(), labels), len(rows["label"]))
