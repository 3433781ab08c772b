"""The training loop of tests/unit/test_any_workers.py for the CNN, in processes that know no PyTorch."""

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
from tests.unit import fewer_workers
from tests.unit.fewer_workers import IMAGES, exactly, steps_made

_SMALL: dict[str, Any] = {**IMAGES, "model": {"width": 4, "depth": 1, "convolutions": 1, "dense": [8]},
                          "optim": {"clip_norm": 1.0}}
CASES = {"cnn": from_dict(CnnConfig, {**_SMALL, **exactly(5)}), "cnn on two shards": from_dict(
    CnnConfig, {**_SMALL, **exactly(2)})}
"""Batch normalisation, dropout and augmentation are on; a micro-batch is more than one pass."""


def every_number(session: Session, _: Any) -> Literal["finished"]:
    """See fewer_workers.py."""
    images = prepare(CnnConfig().data, Store.open(session.run_store.local_path().parent.as_posix()), use_ray=False)

    def trained(context: Any, config: CnnConfig) -> dict[str, Any]:
        with Group(context, 1) as group:
            pipeline = Pipeline(context.data_loader(), config, ImageFacts.of(images))
            return steps_made(context, CnnTraining(context, config, pipeline, group), pipeline)

    return fewer_workers.every_number(session, CASES, lambda _: images, trained)
