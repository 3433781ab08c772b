"""How a module of yours is trained: what one pass over some rows computes.
The step around it is of `image_training.py`.

Run it with `python -m jobs.pytorch`. Shapes: m rows of a micro-batch, H × W × C pixels, K classes.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateImportUsage=false

from collections.abc import Iterator
from contextlib import nullcontext

import torch

from cluster.core.errors import ConfigError
from jobs.common.data.dataset import Columns
from jobs.common.evaluation.declared import CLASSIFICATION, chosen
from jobs.common.training.context import TrainContext
from jobs.common.training.fit import fit
from jobs.common.training.trainable import Outcome, Tensors
from jobs.common.vision.build_info import BuildInfo
from jobs.common.vision.robustness import Attack
from jobs.pytorch.config import PytorchConfig
from jobs.pytorch.images.adversary import attacked
from jobs.pytorch.images.augment import augment
from jobs.pytorch.images.training import ImageTraining, share_of_a_row
from jobs.pytorch.model import check, loss_of, new_model
from jobs.pytorch.process_group import Group
from jobs.pytorch.setup import compiled, set_up_torch


def train(context: TrainContext, config: PytorchConfig) -> Outcome:
    """One generation: to the end, or to a stop that all ranks agree on."""
    device = set_up_torch(context, config.run.cpus_per_worker)
    with Group(context, device) as group:
        return fit(context, ModuleTraining(context, config, group, device), context.data_loader(),
                   metric=chosen(CLASSIFICATION, config.metric))


class ModuleTraining(ImageTraining):
    """The module and its optimiser on one worker."""

    config: PytorchConfig

    def __init__(self, context: TrainContext, config: PytorchConfig, group: Group, device: torch.device) -> None:
        info = BuildInfo.of(context.dataset, config.model)
        model = new_model(config, info)
        rows = config.train.global_batch_size // context.num_shards
        check(config, model, info, min(rows, config.train.max_rows_per_pass or rows))
        super().__init__(context, config, group, device, model.to(device), loss_of(config))
        self.forward = compiled(model) if config.hardware.compile else model
        self.attack = Attack.in_training(context.dataset, config)
        self.training_loss = loss_of(config, config.optim.label_smoothing)

    def load_state_dict(self, parts: Iterator[Tensors], optimizer_steps: int) -> None:
        """Raises: ConfigError for another module than the one that the checkpoint is of."""
        try:
            super().load_state_dict(parts, optimizer_steps)
        except (RuntimeError, ValueError) as error:
            name = self.config.model.build
            raise ConfigError(f"--model.build {name} builds another module than this run's checkpoints are of: put the "
                              "function back as it was, or pass another --run.name, or --run.resume never for an "
                              f"attempt with the new one ({' '.join(str(error).split())[:200]})") from error

    def backward(self, rows: Columns, epoch: int) -> float:
        """Adds these rows' share of the global batch's gradient to the parameters'. Returns their share of its loss."""
        config = self.config
        images = torch.from_numpy(rows["image"]).to(self.device, non_blocking=True)
        labels = torch.from_numpy(rows["label"]).to(self.device, non_blocking=True)
        if config.augment.active:
            images = augment(images, rows["row_id"], config.augment, config.run.seed, epoch)
        if self.attack:
            images = attacked(self.forward, images.float(), labels, self.attack)
        with torch.autocast(self.device.type, torch.bfloat16) if config.hardware.precision == "bf16" else nullcontext():
            logits = self.forward(images)
        share = self.training_loss(logits.float(), labels) * len(labels)
        share.backward(share_of_a_row(config.train.global_batch_size,
                                      self.device))  # pyright: ignore[reportUnknownMemberType]
        return share.item() / config.train.global_batch_size
