"""The training loop of tests/unit/test_any_workers.py: one group of four workers trains each job as fewer of them, too.
Its workers load it by name."""

from typing import Any, Literal

import torch

from cluster.core.storage import Store
from jobs.common.config import Config, from_dict
from jobs.common.training.session import Session
from jobs.common.vision.prepare import prepare
from jobs.mlp.config import MlpConfig
from jobs.mlp.train import MlpTraining
from jobs.pytorch.config import PytorchConfig
from jobs.pytorch.process_group import Group
from jobs.pytorch.setup import set_up_torch
from jobs.pytorch.train import ModuleTraining
from jobs.transformer.config import TransformerConfig
from jobs.transformer.strategies.spread import strategy
from jobs.transformer.tasks import task_of
from jobs.transformer.train import TransformerTraining
from tests.unit import fewer_workers
from tests.unit.fewer_workers import IMAGES, exactly, steps_made
from tests.unit.token_rows import config_of

CASES: dict[str, Config] = {
    "mlp": from_dict(MlpConfig, {**IMAGES, **exactly(5), "optim": {"clip_norm": 1.0}}),
    "mlp on two shards": from_dict(MlpConfig, {**IMAGES, **exactly(2)}),
    "pytorch": from_dict(PytorchConfig, {**IMAGES, **exactly(5), "model": {"build": "tests.unit.own_classes:Images"}}),
    "transformer": config_of(**exactly(6), model={"dropout": 0.1}, scale={"bucket_mb": 0.02}, optim={"clip_norm": 0.5},
                             train={"max_rows_per_pass": 1}),
}
"""Dropout is on, and the MLP's augmentation; a micro-batch is more than one pass; shards go round unevenly."""


def every_number(session: Session, _: TransformerConfig) -> Literal["finished"]:
    """See fewer_workers.py."""
    device = set_up_torch(session, 1)
    images = prepare(MlpConfig().data, Store.open(session.run_store.local_path().parent.as_posix()), use_ray=False)

    def trained(context: Any, config: Config) -> dict[str, Any]:
        with Group(context, device) as group:
            return _trained(context, config, group, device)

    return fewer_workers.every_number(
        session, CASES, lambda config: session.dataset if isinstance(config, TransformerConfig) else images, trained)


def _trained(context: Any, config: Any, group: Group, device: torch.device) -> dict[str, Any]:
    if isinstance(config, TransformerConfig):
        with strategy(context, config, group) as model:
            task = task_of(context.dataset, config, device)
            return steps_made(context, TransformerTraining(context, config, group, model, task))
    make = MlpTraining if isinstance(config, MlpConfig) else ModuleTraining
    return steps_made(context, make(context, config, group, device))
