"""A worker's part in the checkpoints of its run: when one is due, how it is written, and which is the best."""

import json
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import replace

import numpy as np

from cluster.core.documents import JsonObject, parse_json
from cluster.core.errors import CheckpointError
from cluster.core.storage import Store
from jobs.common.checkpoint.peer_memory import PeerMemory
from jobs.common.checkpoint.schedule import CheckpointSchedule
from jobs.common.checkpoint.shards import plain_state
from jobs.common.checkpoint.store import Checkpoint, Checkpoints
from jobs.common.checkpoint.writer import CheckpointWriter
from jobs.common.config import RunConfig
from jobs.common.provenance import environment, used_libraries
from jobs.common.training.context import PeerLostError
from jobs.common.training.peers import Peers
from jobs.common.training.progress import Progress
from jobs.common.training.rendezvous import Assignment
from jobs.common.training.storage_wait import StorageWait

_REPORTED = "reported"
"""In a checkpoint's state: the last rows of the history, as JSON (they may hold NaN). A worker that dies before its
next beat has not sent them to anybody, and the one that goes on from there does."""


class WorkerCheckpoints:
    """The checkpoints of one worker in one generation."""

    def __init__(self, *, run: RunConfig, run_store: Store, assignment: Assignment, resume_from: Checkpoint | None,
                 config_fingerprint: str, progress: Progress, peers: Peers, storage: StorageWait, memory: PeerMemory,
                 patience_s: Callable[[], float]) -> None:
        """resume_from: None: this generation goes from the beginning. patience_s: how long storage may stand still."""
        self.resume_from, self._offer, self._memory = resume_from, assignment.offer, memory
        self.refused_offer = False
        """Whether this worker could not read what another one offers."""
        self._run, self._store = run, run_store.child("checkpoints")
        self._fingerprint, self._patience_s = config_fingerprint, patience_s
        self._rank, self._world_size, self._generation = assignment.rank, assignment.world_size, assignment.generation
        self._progress, self._peers, self._storage, self._sharded = progress, peers, storage, False
        saved = assignment.checkpoint  # what storage has is what a failure of all workers costs
        self.schedule = CheckpointSchedule(run.checkpoint_every_steps, saved.step if saved else 0, assignment.mtbf_s)
        self.writer = self._new_writer(num_writers=1)

    def _new_writer(self, num_writers: int) -> CheckpointWriter:
        return CheckpointWriter(
            self._store, self._generation, self._rank, num_writers, config_fingerprint=self._fingerprint,
            environment=environment() | {"world_size": self._world_size, "threads": self._run.cpus_per_worker},
            keep_last=self._run.keep_checkpoints, part_timeout_s=self._run.storage_timeout_s,
            patience_s=self._patience_s,
        )

    def shard_checkpoints(self) -> None:
        """From here on each rank writes its own part of a checkpoint; call it before the first."""
        self._sharded, self.writer = self._world_size > 1, self._new_writer(self._world_size)

    def checkpoint_due(self, step: int) -> bool:
        """Whether rank 0 wants one now; with more ranks, all agree as on `stop_wanted`."""
        return self._rank == 0 and self.schedule.due(step)

    def room(self, step: int) -> int:
        """How many steps may be made in one go after `step`, for what a failure may cost; rank 0's answer counts."""
        return self.schedule.room(step)

    def save(self, tensors: Callable[[], Mapping[str, np.ndarray]], state: Mapping[str, object], *, step: int,
             epoch: int, metric: float | None = None) -> None:
        """Begins a checkpoint; the step path pays for a copy only. Rank 0 writes; the others return at once, unless
        `shard_checkpoints` has been called. `state` and `metric` are rank 0's.

        Raises: what went wrong with an earlier one (StorageFullError, …).
        """
        if self._rank and not self._sharded:
            return
        with self._storage.waiting():  # it waits for the one before
            self.writer.environment = {**self.writer.environment, "libraries": used_libraries()}
            self.writer.save(tensors(), self._with_reports(state), step=step, epoch=epoch, metric=metric)
        self.schedule.begun(step)

    def wait_for_due_checkpoint(self, step: int) -> None:
        """Waits for the checkpoint in flight where going on could cost more than `checkpoint_every_steps`."""
        if self._rank == 0:
            limit = self.schedule.must_be_committed_by()
            if limit is not None and step >= limit and self.writer.in_flight:
                self.wait_for_commit()

    def wait_for_commit(self) -> None:
        """Waits until the last checkpoint is committed (a rank with a part of its own: written).

        Raises: what went wrong.
        """
        if self._rank == 0 or self._sharded:
            with self._storage.waiting():
                self.writer.wait()

    def best(self) -> Checkpoint:
        """The best checkpoint by its metric, the same on all ranks. Call it at the end, on every rank.

        Raises: CheckpointError on rank 0 where none that was made at an evaluation is intact,
        which ends this generation.
        """
        self.wait_for_commit()
        with self._storage.waiting():
            return self._peers.broadcast("best", self._best)

    def _best(self) -> Checkpoint:
        if (best := Checkpoints(self._store).best()) is None:
            raise CheckpointError(f"no checkpoint of an evaluation in {self._store.location()} is intact, so there is "
                                  "no model to hand over. Either --eval.metric was never a finite number: look at the "
                                  "history in result.json; or files there are damaged: look at what damages them, then "
                                  "run the same command again, which goes on from the newest one that is intact")
        return best

    def hold(self, tensors: Callable[[], Mapping[str, np.ndarray]], state: Mapping[str, object], *, step: int,
             epoch: int) -> None:
        """Keeps in this process's memory, past this generation, what the next one may go on from; where there is no
        other worker to hand it to, or it has but a part of it, nothing."""
        if self._world_size == 1 or self._sharded:
            return
        self._memory.hold(tensors(), Checkpoint(
            generation=self._generation, sequence=0, step=step, epoch=epoch, metric=None,
            state=plain_state(self._with_reports(state)), config_fingerprint=self._fingerprint, world_size=1,
            created=time.time(), environment={}, files=()))

    def _with_reports(self, state: Mapping[str, object]) -> JsonObject:
        return {**state, _REPORTED: json.dumps(list(self._progress.last_reports))}

    def resumed_parts(self) -> Generator[dict[str, np.ndarray]]:
        """The tensors of `resume_from`: of storage, or from the memory of the worker that offers them.

        Raises: PeerLostError where what is offered is not there, or damaged: then the next generation reads storage.
        """
        assert self.resume_from is not None, "there is nothing to resume from"
        if self._offer is None:
            yield from self.parts(self.resume_from)
            return
        try:
            tensors = self._memory.read(self._offer)
        except CheckpointError as error:
            self.refused_offer = True
            raise PeerLostError(f"step {self._offer.checkpoint.step:,} could not be read from {error}") from error
        yield tensors

    def parts(self, checkpoint: Checkpoint) -> Generator[dict[str, np.ndarray]]:
        """The tensors that each rank wrote, one rank after the other."""
        store = Checkpoints(self._store)
        for entry in checkpoint.files:
            with self._storage.waiting():
                tensors = store.load(checkpoint, entry.rank)
            yield tensors


def taken_apart(checkpoint: Checkpoint | None) -> tuple[Checkpoint | None, list[JsonObject]]:
    """The checkpoint with the loop's own state, and the rows of the history that were reported before it."""
    if checkpoint is None:
        return None, []
    own = {name: value for name, value in checkpoint.state.items() if name != _REPORTED}
    return replace(checkpoint, state=own), parse_json(checkpoint.state.get(_REPORTED, "[]"), list[JsonObject])
