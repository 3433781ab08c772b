"""What a worker holds in memory for others after a death: it is handed out whole or not at all, and chosen only where
it is newer than what storage has, and nothing is lost by it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from cluster.core.errors import CheckpointError
from cluster.core.storage import Store
from jobs.common.checkpoint.manifest import Checkpoint, FileEntry
from jobs.common.checkpoint.peer_memory import Offer, PeerMemory
from jobs.common.checkpoint.store import Checkpoints
from jobs.common.checkpoint.writer import CheckpointWriter
from jobs.common.config import RunConfig
from jobs.common.execution.generation_start import GenerationStart
from jobs.common.execution.run_state import RunState
from jobs.common.training.rendezvous import Rendezvous, WorkerInfo

TENSORS = {"model.weight": np.arange(3_000_000, dtype=np.float32), "optimizer.count": np.array([7], np.int64)}


def at(step: int, best: float | None = None, epoch: int = 0, sha256: str = "a") -> Checkpoint:
    return Checkpoint(generation="1", sequence=0, step=step, epoch=epoch, state={"best_metric": best}, metric=None,
                      config_fingerprint="f", world_size=1, created=0.0, environment={},
                      files=(FileEntry(path="memory", size=1, sha256=sha256, rank=0),))


@pytest.fixture
def memories() -> Iterator[tuple[PeerMemory, PeerMemory]]:
    with PeerMemory("127.0.0.1", 0) as first, PeerMemory("127.0.0.1", 1) as second:
        yield first, second


def held(memory: PeerMemory, step: int = 12) -> Offer:
    memory.hold(TENSORS, at(step))
    assert memory.offer is not None
    return memory.offer


def test_another_worker_and_the_holder_itself_read_what_is_held(memories: tuple[PeerMemory, PeerMemory]) -> None:
    holder, other = memories
    offer = held(holder)
    assert (offer.slot, offer.checkpoint.step) == (0, 12)
    for reader in (holder, other):
        found = reader.read(offer)
        assert found.keys() == TENSORS.keys()
        for name, array in found.items():
            np.testing.assert_array_equal(array, TENSORS[name])
            array[:] = 0  # as an optimiser may that takes it over
    assert other.read(offer)["optimizer.count"][0] == 7, "what one reads is a copy"


def test_who_holds_the_same_bytes_asks_nobody(memories: tuple[PeerMemory, PeerMemory]) -> None:
    holder, other = memories
    offer = held(holder)
    held(other)
    holder.let_go()
    assert other.read(offer)["optimizer.count"][0] == 7


@pytest.mark.parametrize("how", ["with another key", "let go", "held anew", "damaged"])
def test_what_cannot_be_read_whole_is_refused(how: str, memories: tuple[PeerMemory, PeerMemory]) -> None:
    holder, other = memories
    offer, says = held(holder), {"with another key": "401", "damaged": "sha256 differs"}.get(how, "worker 0's memory: ")
    if how == "with another key":
        offer = replace(offer, key="0" * 64)
    elif how == "let go":
        holder.let_go()
    elif how == "held anew":
        held(holder, 13)
    else:
        server: Any = holder._server  # pyright: ignore[reportPrivateUsage]
        server.data[len(server.data) // 2] ^= 1
        with pytest.raises(CheckpointError, match=says):
            holder.read(offer)
    with pytest.raises(CheckpointError, match=says):
        other.read(offer)


def test_nan_is_not_held(memories: tuple[PeerMemory, PeerMemory]) -> None:
    holder, _ = memories
    held(holder)
    holder.hold({"weight": np.array([np.nan], np.float32)}, at(13))
    assert holder.offer is None


# ── what a generation begins with ──
def worker(slot: int, offer: Checkpoint | None = None, **more: Any) -> WorkerInfo:
    return WorkerInfo(slot=slot, worker=f"w{slot}", pid=1, started=0.0, node_id=None, host="127.0.0.1",
                      offer=None if offer is None else Offer(checkpoint=offer, slot=slot, host="", port=1, key=""),
                      **more)


@pytest.mark.parametrize(("workers", "where"), [
    ([worker(0, at(21)), worker(1, at(22)), worker(2)], "continuing at step 22, from worker 1's memory"),
    ([worker(0, at(22)), worker(1, at(22, epoch=1)), worker(2)], "continuing at step 22, from worker 1's memory"),
    ([worker(0, at(20)), worker(1, at(19))], "continuing at step 20"),
    ([worker(0), worker(1)], "continuing at step 20"),
    ([worker(0, at(25, best=0.5)), worker(1)], "continuing at step 25, from worker 0's memory"),
    # the evaluation that was the best died with the worker that was writing its checkpoint
    ([worker(0, at(25, best=0.6)), worker(1, at(21, best=0.5))], "continuing at step 21, from worker 1's memory"),
    ([worker(0, at(25, best=0.6)), worker(1)], "continuing at step 20"),
    ([worker(0, at(22)), worker(1, refused_offer=True, why="step 22 could not be read")], "continuing at step 20"),
    ([worker(0, at(22)), worker(1, bad_steps=(21,))], "continuing at step 20"),
    ([worker(0, at(22)), worker(1, at(22, sha256="b"))], "continuing at step 20"),
    ([worker(0, at(22)), worker(1, at(21, sha256="b"))], "continuing at step 22, from worker 0's memory"),
])
def test_a_generation_begins_with_the_furthest_that_is_held_if_nothing_is_lost_by_it(
        workers: list[WorkerInfo], where: str, tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    generation = Checkpoints(store.child("checkpoints")).begin_generation()
    with CheckpointWriter(store.child("checkpoints"), generation, config_fingerprint="f", environment={},
                          keep_last=2) as writer:
        writer.save(TENSORS, {"best_metric": None}, step=20, epoch=0, metric=0.5)
    state, rendezvous, told = RunState(store=store), Rendezvous(), list[str]()
    start = GenerationStart(RunConfig(), store=store, run_state=state, num_shards=2, rendezvous=cast(Any, rendezvous),
                            tell=lambda says, _: told.append(says))
    found = start.begin(dict(enumerate(workers)), None)[1]
    told = [line for line in told if "bit for bit" not in line]
    assert found == where
    assert state.memory_resumes == ("memory" in where)
    assignment = rendezvous.assignment("w0")
    assert assignment is not None and assignment.checkpoint is not None
    assert assignment.checkpoint.step == 20, "what storage has, for when the next checkpoint is due"
    assert (assignment.offer is not None) == ("memory" in where)
    differ = len({each.offer.file.sha256 for each in workers if each.offer and each.offer.checkpoint.step == 22}) > 1
    assert bool(told) == (differ or any(each.refused_offer for each in workers)), told
