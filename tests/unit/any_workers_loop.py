"""The training loop of tests/unit/test_any_workers.py: one group of four workers trains each job as fewer of them, too.
Its workers load it by name."""

import json
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
from tests.unit.fewer_workers import IMAGES, WORKERS, Fewer, exactly, steps_made
from tests.unit.token_rows import config_of

CASES: dict[str, Config] = {
    "mlp": from_dict(MlpConfig, {**IMAGES, **exactly(5), "optim": {"clip_norm": 1.0}}),
    "mlp on two shards": from_dict(MlpConfig, {**IMAGES, **exactly(2)}),
    "pytorch": from_dict(PytorchConfig, {**IMAGES, **exactly(5), "model": {"build": "tests.unit.own_classes:Images"}}),
    "transformer": config_of(**exactly(6), model={"dropout": 0.1}, scale={"bucket_mb": 0.02}, optim={"clip_norm": 0.5},
                             train={"max_rows_per_pass": 1}),
}
"""Dropout is on, and the MLP's augmentation; a micro-batch is more than one pass; shards go round unevenly."""


def every_number(session: Session, config: TransformerConfig) -> Literal["finished", "stopped"]:
    """Each case with 1 to 4 workers: writes the digests of weights and moments, losses and metrics as JSON."""
    session.update_status(total_steps=1, epochs=1, epoch=0)
    device = set_up_torch(session, 1)
    images = prepare(MlpConfig().data, Store.open(session.run_store.local_path().parent.as_posix()), use_ray=False)
    found: dict[str, list[Any]] = {}
    for case, of_case in CASES.items():
        dataset = session.dataset if isinstance(of_case, TransformerConfig) else images
        for workers in range(1, min(WORKERS, of_case.run.shards) + 1):
            if session.rank < workers:
                context: Any = Fewer(session, case, of_case, dataset, workers)
                with Group(context, device) as group:
                    found.setdefault(case, []).append(_trained(context, of_case, group, device))
                context.data.close()
            session.all_gather(f"{case} {workers} done", True)
            session.heartbeat()
    if session.rank == 0:
        session.run_store.write_text("found.json", json.dumps(found))
    return "finished"


def _trained(context: Any, config: Any, group: Group, device: torch.device) -> dict[str, Any]:
    if isinstance(config, TransformerConfig):
        with strategy(context, config, group) as model:
            task = task_of(context.dataset, config, device)
            return steps_made(context, TransformerTraining(context, config, group, model, task))
    make = MlpTraining if isinstance(config, MlpConfig) else ModuleTraining
    return steps_made(context, make(context, config, group, device))
