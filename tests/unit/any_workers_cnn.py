"""The training loop of tests/unit/test_any_workers.py for the CNN, in processes that know no PyTorch."""

import json
from typing import Any, Literal

from cluster.core.storage import Store
from jobs.cnn.config import CnnConfig
from jobs.cnn.group import Group
from jobs.cnn.pipeline import Pipeline
from jobs.cnn.train import CnnTraining
from jobs.common.config import from_dict
from jobs.common.training.session import Session
from jobs.common.vision.dataset import ImageFacts
from jobs.common.vision.prepare import prepare
from tests.unit.fewer_workers import IMAGES, WORKERS, Fewer, exactly, steps_made

_SMALL: dict[str, Any] = {**IMAGES, "model": {"width": 4, "depth": 1, "convolutions": 1, "dense": [8]},
                          "optim": {"clip_norm": 1.0}}
CASES = {"cnn": from_dict(CnnConfig, {**_SMALL, **exactly(5)}), "cnn on two shards": from_dict(
    CnnConfig, {**_SMALL, **exactly(2)})}
"""Batch normalisation, dropout and augmentation are on; a micro-batch is more than one pass."""


def every_number(session: Session, _: Any) -> Literal["finished", "stopped"]:
    """The CNN with 1 to 4 workers: writes the digests of weights and moments, losses and metrics as JSON."""
    session.update_status(total_steps=1, epochs=1, epoch=0)
    images = prepare(CnnConfig().data, Store.open(session.run_store.local_path().parent.as_posix()), use_ray=False)
    found: dict[str, list[Any]] = {}
    for case, config in CASES.items():
        for workers in range(1, min(WORKERS, config.run.shards) + 1):
            if session.rank < workers:
                context: Any = Fewer(session, case, config, images, workers)
                with Group(context, 1) as group:
                    pipeline = Pipeline(context.data_loader(), config, ImageFacts.of(images))
                    made = CnnTraining(context, config, pipeline, group)
                    found.setdefault(case, []).append(steps_made(context, made, pipeline))
                context.data.close()
            session.all_gather(f"{case} {workers} done", True)
            session.heartbeat()
    if session.rank == 0:
        session.run_store.write_text("found.json", json.dumps(found))
    return "finished"
