"""Contract 4, the writing side: a snapshot in the step path, everything else in the background.

    with CheckpointWriter(store, generation, config_fingerprint=…, environment=…, keep_last=2) as writer:
        for step in …:
            …
            writer.save(tensors, state, step=step, epoch=epoch)   # copies the tensors (12 GB/s measured), and returns

A thread of low priority then hashes, checks and writes them; one manifest commits them; older checkpoints are pruned.
What it meets (storage full, a NaN in the weights) is raised by the next `save` or `wait`, in the loop's own thread, and
so is storage that stands still: slow storage is waited for as long as it moves.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from contextlib import suppress
from dataclasses import dataclass, replace
from types import TracebackType

from cluster.core.background import in_background, logged
from cluster.core.errors import (
    FolderGoneError,
    NonFiniteStateError,
    RunConflictError,
    StorageError,
    StorageFullError,
    TrainyardError,
)
from cluster.core.loop_clock import LoopClock
from cluster.core.storage import Store, moved_at
from jobs.common.checkpoint import direct_io
from jobs.common.checkpoint.fencing import newest_generation
from jobs.common.checkpoint.manifest import Checkpoint, FileEntry, write_manifest
from jobs.common.checkpoint.safetensors_image import FileImage, Tensors, write_pieces
from jobs.common.checkpoint.shards import announce, collect, plain_state
from jobs.common.checkpoint.store import Checkpoints

__all__ = ["CheckpointWriter", "NonFiniteStateError", "Timings"]

_log = logging.getLogger(__name__)
_LOOK_S = 0.5
# by the scheduler's weights a tenth of a busy core; at 19 a hundredth, and the next save would wait for this one
_NICE = 10


@dataclass(frozen=True, kw_only=True)
class Timings:
    """What the last finished checkpoint cost."""

    step: int
    bytes: int
    """Written by this rank."""
    blocking_s: float
    """The step path waited: for the checkpoint before it, and for the copy."""
    snapshot_s: float
    """Of which the copy took this."""
    write_s: float
    """From the copy to the commit, in the background."""
    background_s: float
    """CPU time of the background thread: at most so much was taken from the steps."""


class CheckpointWriter:
    """Writes one rank's part of each checkpoint; rank 0 also commits it and prunes older ones.

    `world_size` is the number of ranks that write. All of them save at the same steps; `step` and `state` are rank 0's.
    `generation` comes from `Checkpoints.begin_generation`.
    """

    def __init__(self, store: Store, generation: str, rank: int = 0, world_size: int = 1, *, config_fingerprint: str,
                 environment: Mapping[str, object], keep_last: int, part_timeout_s: float = 600.0,
                 patience_s: Callable[[], float] = lambda: 600.0) -> None:
        """patience_s: how long storage may stand still, asked while it does."""
        self._store, self._generation, self._rank, self._world_size = store, generation, rank, world_size
        self._config_fingerprint = config_fingerprint
        self.environment: Mapping[str, object] = environment
        """What the next checkpoints say of where they come from."""
        self._keep_last, self._part_timeout_s = keep_last, part_timeout_s
        self._patience_s = patience_s
        self._given_up: StorageError | None = None
        self._image, self._sequence = FileImage(), 0
        self._work: Future[None] | None = None
        self._thread = 0
        self._idle, self._abandoned = threading.Event(), threading.Event()
        self._idle.set()
        self._error: BaseException | None = None
        self._committed_step: int | None = None
        self.timings: Timings | None = None
        """What the last finished checkpoint cost; None before the first."""

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close(raise_errors=error is None)

    @property
    def committed_step(self) -> int | None:
        """Step of the last checkpoint that this writer committed (on other ranks than 0: whose part it wrote)."""
        return self._committed_step

    @property
    def in_flight(self) -> bool:
        """Whether a checkpoint is not committed yet."""
        return not self._idle.is_set()

    @property
    def moved_at(self) -> float:
        """When the thread last got on with storage, by time.monotonic()."""
        return moved_at(self._thread)

    def save(self, tensors: Tensors, state: Mapping[str, object], *, step: int, epoch: int,
             metric: float | None = None) -> None:
        """Takes a snapshot and returns; first waits until the checkpoint before it is committed.

        tensors: name -> array; memory of the same size is held from the first save on. state: JSON values. metric: the
        validation metric, more is better; one that is not finite is kept as none, and is never the best.
        Raises: what went wrong with the checkpoint before it (StorageFullError, StorageError, CheckpointError);
            NonFiniteStateError if the state holds NaN or infinity.
        """
        began = time.perf_counter()
        self.wait()
        kept_state = plain_state(state)
        copying = time.perf_counter()
        self._image.fill(tensors)
        copied = time.perf_counter()
        self._sequence += 1
        draft = Checkpoint(
            generation=self._generation, sequence=self._sequence, step=step, epoch=epoch, state=kept_state,
            metric=_finite(metric), config_fingerprint=self._config_fingerprint, world_size=self._world_size,
            created=time.time(), environment=plain_state(self.environment), files=(),
        )
        timings = Timings(step=step, bytes=len(self._image.data), blocking_s=copied - began,
                          snapshot_s=copied - copying,
                          write_s=0.0, background_s=0.0)
        self._start(lambda: self._commit(draft, timings))

    def wait(self) -> None:
        """Returns when the last checkpoint is committed (on other ranks than 0: when their part is written).

        Raises: what went wrong with it, once; StorageError where storage stands still.
        """
        self._await(self._idle.wait)
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self, *, wait: bool = True, raise_errors: bool = True) -> None:
        """Finishes what is in flight and ends the thread.

        wait: False gives other ranks 5 s for their parts. raise_errors: False only logs what went wrong (after another
        failure), and gives them 5 s too.
        """
        if not wait or not raise_errors:
            self._abandoned.set()
        try:
            self.wait()
            if (work := self._work) is not None:  # it may still be pruning
                self._await(lambda seconds: bool(wait_for([work], seconds).done))
        except TrainyardError as error:
            if raise_errors:
                raise
            _log.warning("%s", error)

    def _await(self, done: Callable[[float], bool]) -> None:
        """Until `done`, which waits for some seconds, says so. Storage that has been given up is waited for no more."""
        clock, moved = LoopClock(), self.moved_at
        since = clock.now
        while not done(_LOOK_S):
            if clock.look() and moved != self.moved_at:
                moved, since = self.moved_at, clock.now
            still_s = clock.now - since
            if self._given_up is None and still_s > self._patience_s():
                self._given_up = StorageError(
                    f"storage {self._store.location()} has neither taken nor given anything for {still_s:.0f} s, and a "
                    "checkpoint waits for it: look whether its server, its disk or the way there hangs")
            if self._given_up is not None:
                raise self._given_up

    def _start(self, work: Callable[[], bool]) -> None:
        before = self._work
        self._idle.clear()
        try:
            self._work = in_background("trainyard-checkpoint", lambda: self._run(work, before))
        except BaseException:
            self._idle.set()  # there is no thread that would
            raise
        self._work.add_done_callback(logged("the removal of older checkpoints"))

    def _run(self, work: Callable[[], bool], before: "Future[None] | None") -> None:
        try:
            _lower_priority()
            if before is not None:
                before.exception()  # until it has ended: it may still be pruning
            self._thread = threading.get_ident()
            prune = work()
        except BaseException as error:  # noqa: BLE001  crosses to the loop's thread, where `wait` raises it
            self._error = error
            return
        finally:
            self._idle.set()
        if prune:
            self._prune()

    def _commit(self, draft: Checkpoint, timings: Timings) -> bool:
        """In the background. Returns whether there is something to prune."""
        began, cpu = time.perf_counter(), time.thread_time()
        try:
            own = self._write(draft)
            if self._rank == 0:
                others = collect(self._store, draft.name, self._world_size, self._part_timeout_s, self._abandoned)
                self._require_newest(draft)
                self._write_manifest(replace(draft, files=(own, *others)))
        except OSError as error:
            with suppress(OSError):
                self._require_newest(draft)  # a newer generation may have removed what this one was writing
            raise self._store.explain(error, draft.name.folder) from error
        self._committed_step = draft.step
        self.timings = replace(timings, write_s=time.perf_counter() - began, background_s=time.thread_time() - cpu)
        return self._rank == 0

    def _write(self, draft: Checkpoint) -> FileEntry:
        path, size = draft.name.part(self._rank), len(self._image.data)
        try:
            with direct_io.writing(self._store, path, size) as write:
                size, digest = write_pieces(self._image.pieces(), write)
        except NonFiniteStateError as error:
            error = NonFiniteStateError(f"checkpoint at step {draft.step} is refused: {error}")
            if self._rank:
                announce(self._store, draft.name, self._rank, error)
            raise error from None
        entry = FileEntry(path=path, size=size, sha256=digest, rank=self._rank)
        if self._rank:
            announce(self._store, draft.name, self._rank, entry)
        return entry

    def _write_manifest(self, checkpoint: Checkpoint) -> None:
        try:
            write_manifest(self._store, checkpoint)
        except StorageFullError:
            with suppress(OSError):  # else what cannot be used takes the room that the user has to make
                self._store.delete(checkpoint.name.manifest)
                self._store.delete_folder(checkpoint.name.folder)
            raise

    def _require_newest(self, draft: Checkpoint) -> None:
        newest = newest_generation(self._store)
        if newest is None:
            raise FolderGoneError(f"checkpoint at step {draft.step} is not committed: {self._store.location()} is "
                                  "gone: the run's folder was deleted while it trained")
        if newest != self._generation:
            raise RunConflictError(
                f"checkpoint at step {draft.step} is not committed: this worker belongs to generation "
                f"{self._generation} of the run, and {newest} has begun in the meantime: end this process"
            )

    def _prune(self) -> None:
        try:
            Checkpoints(self._store).prune(self._keep_last, generation=self._generation)
        except (TrainyardError, OSError) as error:
            _log.warning("older checkpoints were not deleted: %s", error)


def _finite(metric: float | None) -> float | None:
    return float(metric) if metric is not None and abs(metric) < float("inf") else None


def _lower_priority() -> None:
    """Lets this thread yield to the steps. It never raises a priority: Ray's workers run at nice 15, and going back to
    10 takes a privilege (CAP_SYS_NICE) that few have."""
    if sys.platform != "linux":
        return  # elsewhere it would be the whole process's
    thread = threading.get_native_id()
    with suppress(OSError):  # a system that refuses it, as some sandboxes do, costs some speed and no checkpoint
        if os.getpriority(os.PRIO_PROCESS, thread) < _NICE:
            os.setpriority(os.PRIO_PROCESS, thread, _NICE)


