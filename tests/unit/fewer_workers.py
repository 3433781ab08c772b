"""A group of workers that trains as fewer of them, too: the loops of tests/unit/test_any_workers.py are made of it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from jobs.common.data.dataset import Dataset
from jobs.common.declared_metrics import Values
from jobs.common.training.peers import Peers
from jobs.common.training.rendezvous import Assignment
from jobs.common.training.session import Session
from jobs.common.training.train_state import TrainState
from jobs.common.training.weight_digest import digest_of_arrays
from jobs.common.training.worker_data import WorkerData

WORKERS, STEPS = 4, 6
IMAGES: dict[str, Any] = {
    "train": {"global_batch_size": 60, "max_rows_per_pass": 7}, "eval": {"batch_size": 50, "robustness_rows": 0}}


def exactly(num_shards: int) -> dict[str, Any]:
    """A config's groups that ask for the same bits on any number of workers."""
    return {"run": {"num_shards": num_shards, "exact": "any-workers", "workers": "1"}}


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
        self.peers = Peers(assignment=assignment, rendezvous=self.session.peers._rendezvous, host=self.session.host,
                           run_store=self.session.run_store, step=0, check_every_steps=0)
        self.data = WorkerData(self.config, self.dataset, self.session.run_store, assignment)

    def __getattr__(self, name: str) -> Any:
        own = "shards", "data_loader", "reader", "local_range", "num_parts", "parts", "part_range"
        return getattr(self.data if name in own else self.session, name)

    def broadcast(self, key: str, make: Callable[[], Any]) -> Any:
        return self.session.broadcast(f"{self.case} {self.world_size} {key}", make)

    def all_gather(self, key: str, value: Any) -> list[Any]:
        return self.peers.all_gather(f"{self.case} {self.world_size} {key}", value)


def every_number(session: Session, cases: Mapping[str, Any], dataset_of: Callable[[Any], Dataset],
                 trained: Callable[[Any, Any], dict[str, Any]]) -> Literal["finished"]:
    """Each case with 1 to 4 workers: writes as JSON what `trained` gives for a context and a config."""
    session.update_status(total_steps=1, epochs=1, epoch=0)
    found: dict[str, list[Any]] = {}
    for case, config in cases.items():
        for workers in range(1, min(WORKERS, config.run.shards) + 1):
            if session.rank < workers:
                context = Fewer(session, case, config, dataset_of(config), workers)
                found.setdefault(case, []).append(trained(context, config))
                context.data.close()
            session.all_gather(f"{case} {workers} done", True)
            session.heartbeat()
    if session.rank == 0:
        session.run_store.write_text("found.json", json.dumps(found))
    return "finished"


def steps_made(context: Any, trainable: Any, pipeline: Any = None) -> dict[str, Any]:
    """The digests of weights and moments and of answers, the losses, and the metrics."""
    state, losses = TrainState(), []
    for batch in islice((pipeline or context.data_loader()).steps(0, 0, frozenset()), STEPS):
        result = trainable.step(batch, state, [1e-3], lambda: [float(context.rank == 0), 1.0])
        assert (result.outcomes, list(result.wishes)) == (["taken"], [1.0, context.world_size])
        losses += result.losses
        state.record("taken", 3)
    metrics: Values = trainable.evaluate("validation")
    answers = context.all_gather("answers", [each[2] for each in trainable.predict("test")])
    return {"digest": digest_of_arrays(trainable.state_dict(STEPS).values()), "losses": losses,
            "metrics": dict(metrics), "answers": digest_of_arrays(batch for share in answers for batch in share)}
