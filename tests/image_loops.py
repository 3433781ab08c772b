"""Loops of image jobs in this very process, a generation at a time, and data for them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.core.storage import Store
from jobs.common.checkpoint.peer_memory import PeerMemory
from jobs.common.checkpoint.store import Checkpoints
from jobs.common.data.dataset import Dataset
from jobs.common.training.rendezvous import Assignment, Rendezvous
from jobs.common.training.session import Session
from jobs.common.vision.config import ImageDataConfig
from jobs.common.vision.prepare import prepare

Loop = Callable[[Session, Any], Any]


class StopAfterEachStep(Session):
    """Is asked to stop from the first step on."""

    def __init__(self, **arguments: Any) -> None:
        arguments["rendezvous"].request_stop()
        super().__init__(**arguments)
        self._beat()


def train(loop: Loop, folder: Path, dataset: Dataset, config: Any, kind: type[Session] = Session,
          num_shards: int = 1) -> tuple[str, list[dict[str, Any]]]:
    """One generation, from the newest checkpoint. Returns the outcome, and the evaluations it reported."""
    store, rendezvous = Store.open(str(folder)), Rendezvous()
    checkpoints = Checkpoints(store.child("checkpoints"))
    assignment = Assignment(generation=checkpoints.begin_generation(), rank=0, world_size=1, num_shards=num_shards,
                            checkpoint=checkpoints.newest_intact(pytest.fail))
    rendezvous.begin({"w": assignment}, {0: "w"})
    session = kind(config=config, run_store=store, dataset=dataset, assignment=assignment, rendezvous=rendezvous,
                   slot=0,
                   worker="w", host="127.0.0.1", device="cpu", config_fingerprint="f",
                   memory=PeerMemory("127.0.0.1", 0))
    try:
        outcome = loop(session, config)
    except BaseException:
        session.close(failed=True)
        raise
    session.close()
    return outcome, [row for row in rendezvous.poll().reports if row["kind"] == "evaluation"]


def in_pieces(loop: Loop, folder: Path, dataset: Dataset, config: Any, num_shards: int = 1) -> int:
    """A run that is stopped after each of its steps, and gone on with. Returns how many pieces it took."""
    pieces = 1
    while train(loop, folder, dataset, config, StopAfterEachStep, num_shards)[0] == "stopped":
        pieces += 1
    return pieces


def tensors(folder: Path) -> dict[str, np.ndarray]:
    """Model and optimiser as the newest checkpoint has them."""
    checkpoints = Checkpoints(Store.open(str(folder)).child("checkpoints"))
    newest = checkpoints.newest_intact(pytest.fail)
    assert newest is not None
    return checkpoints.load(newest)


def same(a: Path, b: Path) -> bool:
    """Whether two runs ended with the same bits."""
    mine, theirs = tensors(a), tensors(b)
    return {name: array.tobytes() for name, array in mine.items()} == {name: array.tobytes()
                                                                       for name, array in theirs.items()}


def digits(folder: Path) -> Dataset:
    return prepare(ImageDataConfig(), Store.open(str(folder)), use_ray=False)


def odd(folder: Path) -> Dataset:
    """5 × 6 pixels of 3 channels in 4 classes, each with a column that is brighter; 192 training rows."""
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 4
    images = rng.integers(0, 150, (300, 5, 6, 3), np.uint8)
    images[np.arange(300), :, labels] += 100
    pq.write_table(pa.table({"image": images.tolist(), "label": [f"kind {label}" for label in labels]}),
                   folder / "odd.parquet")
    return prepare(ImageDataConfig(uri=str(folder / "odd.parquet")), Store.open(str(folder)), use_ray=False)
