"""The training loop of tests/unit/test_any_workers.py: one group of four workers trains each job as fewer of them, too.
Its workers load it by name."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import torch
import torch.distributed as dist

from cluster.core.storage import Store
from jobs.common.config import Config, from_dict
from jobs.common.data.dataset import Dataset
from jobs.common.declared_metrics import Values
from jobs.common.training.rendezvous import Assignment
from jobs.common.training.session import Session
from jobs.common.training.train_state import TrainState
from jobs.common.training.weight_digest import digest_of_arrays
from jobs.common.training.worker_data import WorkerData
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
from tests.unit.token_rows import config_of

WORKERS, STEPS = 4, 6
_IMAGES: dict[str, Any] = {
    "train": {"global_batch_size": 60, "max_rows_per_pass": 7}, "eval": {"batch_size": 50, "robustness_rows": 0}}
_EXACT = {"exact": "any-workers", "workers": "1"}


def _run(num_shards: int) -> dict[str, Any]:
    return {"run": {"num_shards": num_shards, **_EXACT}}


CASES: dict[str, Config] = {
    "mlp": from_dict(MlpConfig, {**_IMAGES, **_run(5), "optim": {"clip_norm": 1.0}}),
    "mlp on two shards": from_dict(MlpConfig, {**_IMAGES, **_run(2)}),
    "pytorch": from_dict(PytorchConfig, {**_IMAGES, **_run(5), "model": {"build": "tests.unit.own_classes:Images"}}),
    "transformer": config_of(**_run(6), model={"dropout": 0.1}, scale={"bucket_mb": 0.02}, optim={"clip_norm": 0.5},
                             train={"max_rows_per_pass": 1}),
}
"""Dropout is on, and the MLP's augmentation; a micro-batch is more than one pass; shards go round unevenly."""


@dataclass
class Fewer:
    """A session as one of fewer workers sees it, with a case's own config and data."""

    session: Session
    case: str
    config: Any
    dataset: Dataset
    world_size: int

    def __post_init__(self) -> None:
        self.num_shards = self.config.run.shards
        assignment = Assignment(generation=self.session.generation, rank=self.rank, world_size=self.world_size,
                                num_shards=self.num_shards, checkpoint=None)
        self.data = WorkerData(self.config, self.dataset, self.session.run_store, assignment)

    def __getattr__(self, name: str) -> Any:
        own = "shards", "data_loader", "reader", "local_range", "num_parts", "parts", "part_range"
        return getattr(self.data if name in own else self.session, name)

    def broadcast(self, key: str, make: Callable[[], Any]) -> Any:
        return self.session.broadcast(f"{self.case} {self.world_size} {key}", make)

    def all_gather(self, key: str, value: Any) -> list[Any]:
        found: list[Any] = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(found, value)
        return found


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
            return _steps(context, TransformerTraining(context, config, group, model, task))
    make = MlpTraining if isinstance(config, MlpConfig) else ModuleTraining
    return _steps(context, make(context, config, group, device))


def _steps(context: Any, trainable: Any) -> dict[str, Any]:
    state, losses = TrainState(), []
    for batch in islice(context.data_loader().steps(0, 0, frozenset()), STEPS):
        result = trainable.step(batch, state, [1e-3], lambda: [float(context.rank == 0), 1.0])
        assert (result.outcomes, list(result.wishes)) == (["taken"], [1.0, context.world_size])
        losses += result.losses
        state.record("taken", 3)
    metrics: Values = trainable.evaluate("validation")
    answers = context.all_gather("answers", [each[2] for each in trainable.predict("test")])
    return {"digest": digest_of_arrays(trainable.state_dict(STEPS).values()), "losses": losses,
            "metrics": dict(metrics), "answers": digest_of_arrays(batch for share in answers for batch in share)}
