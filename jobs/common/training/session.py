"""Contract 3: one worker of one generation. The same loop runs under Ray Train, Ray Tune, and locally.

A job's code sees a `Session` as a `TrainContext` (context.py): its rank, the shards that it owns, its rows. The rest is for the
loop (fit.py), which calls `on_step_end` after each step and `report` for metrics (both only leave a note; a thread sends it),
`save` for a checkpoint, and reads `stop_wanted`, which all ranks must agree on through their own collective before they act on it.
"""

import json
import math
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from cluster.core.background import in_background
from cluster.core.documents import parse_json
from cluster.core.errors import DivergedError, TrainyardError
from cluster.core.storage import Store, moved_at
from jobs.common.checkpoint.schedule import CheckpointSchedule
from jobs.common.checkpoint.store import Checkpoint, Checkpoints
from jobs.common.checkpoint.writer import CheckpointWriter
from jobs.common.config import Config
from jobs.common.data.dataset import Dataset, Reader, SplitName
from jobs.common.data.length_bucketing import LengthGroups
from jobs.common.data.loader import DataLoader
from jobs.common.data.sampling import SamplingOrder, resolve_window_rows, shards_of
from jobs.common.provenance import environment
from jobs.common.training import predictions
from jobs.common.training import weight_digest as weights
from jobs.common.training.context import PeerLostError
from jobs.common.training.predictions import Predictions
from jobs.common.training.rendezvous import Assignment, Heartbeat, HeartbeatReply, RendezvousClient
from jobs.common.training.step_file import StepMark
from jobs.common.training.step_timer import StepTimer

BEAT_S = 0.2
_REPORTED, _REPORTS_KEPT = "reported", 64
"""In a checkpoint's state: the last rows of the history, as JSON (they may hold NaN). A worker that dies before its next beat has
not sent them to anybody, and the one that goes on from there does."""


class NonFiniteError(Exception):
    """Too many steps in a row had a non-finite loss or gradient: back to a checkpoint, and leave `steps` out."""

    def __init__(self, steps: tuple[int, ...]) -> None:
        super().__init__(f"non-finite loss or gradient at steps {', '.join(map(str, steps))}")
        self.steps = steps


class Session:
    """One worker's view of one generation."""

    def __init__(self, *, config: Config, run_store: Store, dataset: Dataset, assignment: Assignment, rendezvous: RendezvousClient,
                 slot: int, worker: str, host: str, device: str, config_fingerprint: str,
                 until_epoch: int | None = None) -> None:
        self.config, self.run_store, self.dataset = config, run_store, dataset
        self.rank, self.world_size = assignment.rank, assignment.world_size
        self.num_shards, self.generation = assignment.num_shards, assignment.generation
        self.excluded_steps = frozenset(assignment.excluded_steps)
        self.checkpoint, reported = _taken_apart(assignment.checkpoint)
        self.shards = shards_of(self.rank, self.world_size, self.num_shards)
        self.host, self.device = host, device
        self.pace, self.marks = StepTimer(), dict[str, float]()
        self.step = self.checkpoint.step if self.checkpoint else 0
        self.cadence = CheckpointSchedule(config.run.checkpoint_every_steps, self.step, assignment.mtbf_s)
        self._same_weights_at = self.step
        self._rendezvous, self._slot, self._worker = rendezvous, slot, worker
        self._state: dict[str, Any] = {"step": self.step, "ticks": 0, "passes": len(self.shards)}
        self._curve: list[float] = []
        self._next_point = 0
        self._losses: deque[float] = deque(maxlen=100_000)
        self._reports: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._reported: deque[dict[str, Any]] = deque(maxlen=_REPORTS_KEPT)
        for row in reported if self.rank == 0 else ():
            self._send_report(row)
        self._reply, self._left, self._closed = HeartbeatReply(), threading.Event(), threading.Event()
        self._waits, self._waits_since, self._loop_thread = 0, 0.0, 0
        self._mark = StepMark.open(run_store, self.generation, self.rank)
        self._trace = _Trace(run_store, self.generation, self.rank) if config.run.trace_rows else None
        self._config_fingerprint, self._sharded, self._until_epoch = config_fingerprint, False, until_epoch
        self._writer = self._new_writer(num_writers=1)
        self._loaders: list[DataLoader] = []
        self._readers: dict[SplitName, Reader] = {}
        self._beating = in_background("trainyard-beat", self._beat_forever)

    def _new_writer(self, num_writers: int) -> CheckpointWriter:
        config = self.config
        return CheckpointWriter(
            self.run_store.child("checkpoints"), self.generation, self.rank, num_writers,
            config_fingerprint=self._config_fingerprint,
            environment=environment() | {"world_size": self.world_size, "threads": config.run.cpus_per_worker},
            keep_last=config.run.keep_checkpoints, part_timeout_s=config.run.storage_timeout_s,
            patience_s=self._patience_s,
        )

    def shard_checkpoints(self) -> None:
        """From here on each rank writes its own part of a checkpoint; call it before the first."""
        self._sharded, self._writer = self.world_size > 1, self._new_writer(self.world_size)

    # ── data ──
    def data_loader(self, length_group_steps: int = 1) -> DataLoader:
        """The training rows of the shards that this worker owns, in order.

        length_group_steps: more than 1 sorts the rows of that many steps by their column `length` (see length_bucketing.py).
        """
        split = self.dataset.splits["train"]
        window = resolve_window_rows(
            self.config.data.shuffle_window_rows, self.num_shards, self.dataset.row_bytes, split.block_rows
        )
        order = SamplingOrder(num_rows=split.num_rows, num_shards=self.num_shards, block_rows=split.block_rows,
                              global_batch_size=self.config.train.global_batch_size, window_rows=window, seed=self.config.run.seed)
        grouped = order if length_group_steps == 1 else LengthGroups(order, length_group_steps)
        loader = DataLoader(grouped, self.dataset.reader("train", self.config.data), self.shards)
        self._loaders.append(loader)
        return loader

    def reader(self, split: SplitName) -> Reader:
        """Rows of an evaluation split."""
        if split not in self._readers:
            self._readers[split] = self.dataset.reader(split, self.config.data)
        return self._readers[split]

    def local_range(self, split: SplitName) -> range:
        """The rows of an evaluation split that this worker evaluates: each row belongs to one worker."""
        rows = self.dataset.splits[split].num_rows
        return range(rows * self.rank // self.world_size, rows * (self.rank + 1) // self.world_size)

    # ── progress: leaves a note, a thread sends it ──
    def on_step_end(self, *, step: int, epoch: int, rows: int, loss: float | Sequence[float], skipped: int) -> None:
        """After each step. step: steps done in the run, of which so many were skipped; rows: of all workers; loss: their mean, or
        of several steps that were made in one go the loss of each.

        Raises: PeerLostError if this worker is to leave the generation.
        """
        losses = loss if isinstance(loss, Sequence) else [loss]
        self.pace.step(rows, len(losses))
        if "first_step" not in self.marks:
            self.marks["first_step"] = time.time()
        self.step = step
        self._mark.write(step)
        self._losses.extend(filter(math.isfinite, losses))
        self._state["step"], self._state["epoch"], self._state["skipped_steps"] = step, epoch, skipped
        self._go_on()

    @property
    def median_step_s(self) -> float:
        """Median time of recent steps, in seconds; 0 before the first."""
        return self.pace.median_s

    def count_waiting(self, seconds: float) -> None:
        """Tells that this worker spent these seconds of the present step in collectives, where it waits for slower workers."""
        self.pace.waited(seconds)

    @property
    def traces_rows(self) -> bool:
        """Whether `--run.trace-rows` asks for `trace`."""
        return self._trace is not None

    def trace(self, epoch: int, step: int, rows: Mapping[int, np.ndarray]) -> None:
        """With `--run.trace-rows`: writes the ids of the rows of each shard's micro-batch at this step."""
        if self._trace:
            self._trace.write(epoch, step, rows)

    def heartbeat(self) -> None:
        """A sign of progress in what has no steps, such as an evaluation: else it would be taken for a hang.

        Raises: PeerLostError if this worker is to leave the generation.
        """
        self._state["ticks"] += 1
        self._go_on()

    def update_status(self, **values: Any) -> None:
        """Puts values into the next heartbeats: fields of `Heartbeat`, by name."""
        self._state |= values

    def report(self, kind: str, **values: Any) -> None:
        """A row of the run's history, such as an evaluation's metrics. Rank 0 only has an audience."""
        if self.rank == 0:
            more = self._costs() if kind == "evaluation" and self._until_epoch is not None else {}
            self._send_report({"kind": kind, **values, **more})

    def _send_report(self, row: dict[str, Any]) -> None:
        self._reported.append(row)
        self._reports.put(row)

    def _costs(self) -> dict[str, float]:
        """What a search may weigh against a metric. The evaluation that is reported has run since the last step."""
        rows = len(self.local_range("validation"))
        return {"parameters": self._state["parameters"], "validation_ms_per_row": 1000 * self.pace.since_last_s / max(1, rows)}

    def should_pause(self, epoch: int) -> bool:
        """Whether a trial goes no further for now, with so many epochs done: its search says how it goes on."""
        return self._until_epoch is not None and epoch >= self._until_epoch

    # ── stopping and sharing ──
    @property
    def stop_wanted(self) -> bool:
        """A hint to this rank: act on it only when all ranks have agreed on the step."""
        return self._reply.stop

    def broadcast(self, key: str, make: Callable[[], Any]) -> Any:
        """Rank 0's value of `make()`, on every rank. Raises: PeerLostError if rank 0 never gives it."""
        if self.rank == 0:
            value = make()
            self._rendezvous.put(self.generation, key, value)
            return value
        return self._wait_for(key, 0)

    def all_gather(self, key: str, value: Any) -> list[Any]:
        """Each rank's value, in their order, on every rank. Raises: PeerLostError if one never gives it."""
        self._rendezvous.put(self.generation, f"{key}/{self.rank}", value)
        return [self._wait_for(f"{key}/{rank}", rank) for rank in range(self.world_size)]

    def _wait_for(self, key: str, rank: int) -> Any:
        while not self._reply.leave:  # a rank that is gone, or hangs, is the controller's to notice
            if (value := self._rendezvous.get(self.generation, key)) is not None:
                return value
            time.sleep(0.02)
        raise PeerLostError(f"rank {rank} did not share {key!r}")

    def _go_on(self) -> None:
        if self._beating.done():
            self._beating.result()  # raises what ended it: nobody would hear of this worker, nor it of a stop
        if self._reply.leave:
            raise PeerLostError("this generation has been given up")

    # ── do all have the same weights? ──
    def weights_due(self, step: int) -> bool:
        """Whether the weights are to be compared now that `step` steps are done: the same answer on all ranks."""
        every = self.config.run.check_weights_every_steps
        return self.world_size > 1 and every > 0 and step // every > self._same_weights_at // every

    def compare_weights(self, step: int, digest: int, total: Callable[[np.ndarray], np.ndarray]) -> None:
        """Call it on every rank. digest: of this rank's weights (weights.py). total: the sum over all ranks of a float64 array.

        Raises: DivergedError on all ranks, naming those whose weights are not those of most; PeerLostError.
        """
        began = time.perf_counter()
        odd = weights.mismatched_ranks(total(weights.placed(digest, self.rank, self.world_size)).tolist())
        self._state["weights_check_s"] = time.perf_counter() - began
        if odd:
            hosts = self.all_gather("diverged", self.host)
            raise DivergedError(self._divergence(step, {rank: hosts[rank] for rank in odd}))
        self._same_weights_at = step

    def _divergence(self, step: int, odd: Mapping[int, str]) -> str:
        who = ", ".join(f"rank {rank} ({host})" for rank, host in odd.items())
        what = "do not agree" if len(odd) == self.world_size else f"differ from those of the other {self.world_size - len(odd)}"
        return (f"after step {step} the weights of {who} {what}; after step {self._same_weights_at} all were the same. Memory, "
                "processor or network of a host is at fault, or code that does not do the same on every rank: leave that host out, "
                f"and delete the checkpoints of later steps ({self.run_store.location('checkpoints/manifests')}), which may hold "
                "it; then run the same command again")

    # ── checkpoints ──
    def checkpoint_due(self, step: int) -> bool:
        """Whether rank 0 wants one now; with more ranks, all agree as on `stop_wanted`."""
        return self.rank == 0 and self.cadence.due(step)

    def parts(self, checkpoint: Checkpoint) -> Generator[dict[str, np.ndarray]]:
        """The tensors that each rank wrote, one rank after the other."""
        store = Checkpoints(self.run_store.child("checkpoints"))
        for entry in checkpoint.files:
            with self._storage():
                tensors = store.load(checkpoint, entry.rank)
            yield tensors

    def save(self, tensors: Callable[[], Mapping[str, np.ndarray]], state: Mapping[str, Any], *, step: int, epoch: int,
             metric: float | None = None) -> None:
        """Begins a checkpoint; the step path pays for a copy only. Rank 0 writes; the others return at once, unless
        `shard_checkpoints` has been called. `state` and `metric` are rank 0's.

        Raises: what went wrong with an earlier one (StorageFullError, …).
        """
        if self.rank and not self._sharded:
            return
        with self._storage():  # it waits for the one before
            state = {**state, _REPORTED: json.dumps(list(self._reported))}
            self._writer.save(tensors(), state, step=step, epoch=epoch, metric=metric)
        self.cadence.begun(step)

    def room(self, step: int) -> int:
        """How many steps may be made in one go after `step`, for what a failure may cost; rank 0's answer counts."""
        return self.cadence.room(step)

    def wait_for_due_checkpoint(self, step: int) -> None:
        """Waits for the checkpoint in flight where going on could cost more than `checkpoint_every_steps`."""
        if self.rank == 0:
            limit = self.cadence.must_be_committed_by()
            if limit is not None and step >= limit and self._writer.in_flight:
                self.wait_for_commit()

    def wait_for_commit(self) -> None:
        """Waits until the last checkpoint is committed (a rank with a part of its own: written). Raises: what went wrong."""
        if self.rank == 0 or self._sharded:
            with self._storage():
                self._writer.wait()

    def best(self) -> Checkpoint:
        """The best checkpoint by its metric, the same on all ranks. Call it at the end, on every rank."""
        self.wait_for_commit()
        store = Checkpoints(self.run_store.child("checkpoints"))
        with self._storage():
            return self.broadcast("best", store.best)

    def write_predictions(self, name: str, share: Predictions) -> None:
        """Writes this worker's share of the predictions of a split, or of rows under another name; the driver judges them."""
        with self._storage():
            predictions.write(self.run_store, self.generation, name, self.rank, share)

    def close(self, *, failed: bool = False) -> None:
        """Ends the threads and sends what is left to send. After a failure, a checkpoint in flight is still finished."""
        self._left.set()
        try:
            with self._storage():
                for source in (*self._loaders, *self._readers.values()):
                    source.close()
                self._writer.close(wait=True, raise_errors=not failed)
        finally:
            self._closed.set()
            self._beating.exception()
        self._mark.close()
        if self._trace:
            self._trace.close()
        self._beat()

    @contextmanager
    def _storage(self) -> Generator[None]:
        """While this worker waits for storage that moves, its beats are signs of progress: slow storage is no hang."""
        if not self._waits:
            self._waits_since, self._loop_thread = time.monotonic(), threading.get_ident()
        self._waits += 1
        try:
            yield
        finally:
            self._waits -= 1

    def _patience_s(self) -> float:
        """How long storage may stand still."""
        run = self.config.run
        return min(run.hang_timeout_s, run.storage_timeout_s) if self._reply.stop else run.storage_timeout_s

    def _storage_s(self) -> tuple[float, float]:
        """For how long this worker has waited for storage, and for how long that has stood still; 0 if it does not."""
        if not self._waits:
            return 0.0, 0.0
        now, since = time.monotonic(), self._waits_since
        return now - since, now - max(since, moved_at(self._loop_thread), self._writer.moved_at)

    # ── the beat ──
    def _beat_forever(self) -> None:
        while not self._closed.wait(BEAT_S):
            self._beat()
            if self._reply.leave and not self._left.is_set():
                self._give_up_soon()

    def _beat(self) -> None:
        wait_s, still_s = self._storage_s()
        self._state |= {"storage_wait_s": wait_s, "storage_still_s": still_s}
        if wait_s > 0 and still_s <= self._patience_s():
            self._state["ticks"] += 1
        reports: list[dict[str, Any]] = []
        while not self._reports.empty():
            reports.append(self._reports.get())
        losses = [self._losses.popleft() for _ in range(len(self._losses))]
        data_wait_s = sum(loader.wait_s for loader in self._loaders)
        costs = self._writer.timings()
        self._state |= {
            "median_step_s": self.pace.median_s, "samples_per_s": self.pace.samples_per_s, "data_wait_s": data_wait_s,
            "busy_s": self.pace.busy_s, "marks": dict(self.marks), "checkpoint": costs,
            "committed_step": self._writer.committed_step,
        }
        if losses:
            self._state["loss"] = sum(losses) / len(losses)
            self._keep_curve(losses)
        cost = {name: costs[name] for name in ("blocking_s", "write_s", "background_s") if name in costs}
        self.cadence.observe(self.pace.median_s, **cost)
        try:
            self._reply = self._rendezvous.heartbeat(self._slot, self._worker, Heartbeat.of(self._state), reports)
        except (EOFError, OSError, ConnectionError):
            os._exit(70)  # the driver is gone, and with it anybody to train for

    def _keep_curve(self, losses: list[float]) -> None:
        """A point of the training curve: often at first, and ever more rarely, so that a long run's history stays short."""
        self._curve += losses
        if self.step >= self._next_point:
            mean = sum(self._curve) / max(1, len(self._curve))
            rate = {"samples_per_s": self.pace.samples_per_s} if self.pace.seconds else {}  # not known in the first steps
            self.report("progress", step=self.step, epoch=self._state.get("epoch", 0), train_loss=mean, **rate)
            self._curve = []
            self._next_point = self.step + max(1, self.step // 50)

    def _give_up_soon(self) -> None:
        """The loop may sit in a collective that never ends (NCCL): then this process ends instead.

        Ten short waits, since a pause of this process ends a wait at once: it would take one of them, not all.
        """
        if self.world_size > 1 and not any(self._left.wait(1) for _ in range(10)):
            os._exit(71)


def _taken_apart(checkpoint: Checkpoint | None) -> tuple[Checkpoint | None, list[dict[str, Any]]]:
    """The checkpoint with the loop's own state, and the rows of the history that were reported before it."""
    if checkpoint is None:
        return None, []
    own = {name: value for name, value in checkpoint.state.items() if name != _REPORTED}
    return replace(checkpoint, state=own), parse_json(checkpoint.state.get(_REPORTED, "[]"), list[dict[str, Any]])


class _Trace:
    """Row ids of each micro-batch as JSON Lines: logs/rows/<generation>-<rank>.jsonl (a local storage only)."""

    def __init__(self, run_store: Store, generation: str, rank: int) -> None:
        if not run_store.is_local:
            raise TrainyardError("--run.trace-rows writes line by line: it needs a local storage")
        path = run_store.local_path(f"logs/rows/{generation}-{rank}.jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w")

    def write(self, epoch: int, step: int, rows: Mapping[int, np.ndarray]) -> None:
        for shard, ids in rows.items():
            self._file.write(f'{{"epoch": {epoch}, "step": {step}, "shard": {shard}, "rows": {ids.tolist()}}}\n')
        self._file.flush()

    def close(self) -> None:
        self._file.close()
