"""Contract 3: one worker of one generation. The same loop runs under Ray Train, Ray Tune, and locally.

A session has four parts, and the loop (fit.py) uses each by itself: `data`, its rows; `progress`, the notes that the
loop leaves; `peers`, the other workers; `checkpoints`. A thread beats: it sends the notes to the controller, and hears
whether to stop or to leave. A job's code sees a session as a `TrainContext` (context.py), which has none of the parts.
"""

import os
import threading
from collections.abc import Callable

from cluster.core.background import in_background
from cluster.core.storage import Store
from jobs.common.checkpoint.peer_memory import PeerMemory
from jobs.common.config import Config
from jobs.common.data.dataset import Dataset, SplitName
from jobs.common.data.loader import DataLoader
from jobs.common.data.reader import Reader
from jobs.common.extras import Extras
from jobs.common.training import predictions
from jobs.common.training.context import PeerLostError, T
from jobs.common.training.peers import Peers
from jobs.common.training.predictions import Predictions
from jobs.common.training.progress import Progress
from jobs.common.training.rendezvous import Assignment, Heartbeat, RendezvousClient
from jobs.common.training.storage_wait import StorageWait
from jobs.common.training.worker_checkpoints import WorkerCheckpoints, taken_apart
from jobs.common.training.worker_data import WorkerData

BEAT_S = 0.2


class Session:
    """One worker's view of one generation."""

    def __init__(self, *, config: Config, run_store: Store, dataset: Dataset, assignment: Assignment,
                 rendezvous: RendezvousClient, slot: int, worker: str, host: str, device: str, config_fingerprint: str,
                 memory: PeerMemory, until_epoch: int | None = None) -> None:
        self.config, self.run_store, self.dataset = config, run_store, dataset
        self.rank, self.world_size = assignment.rank, assignment.world_size
        self.num_shards, self.generation = assignment.num_shards, assignment.generation
        self.excluded_steps = frozenset(assignment.excluded_steps)
        self.host, self.device = host, device
        self._rendezvous, self._slot, self._worker = rendezvous, slot, worker
        offer = assignment.offer
        checkpoint, reported = taken_apart(offer.checkpoint if offer else assignment.checkpoint)
        self.data = WorkerData(config, dataset, run_store, assignment)
        self.progress = Progress(run_store=run_store, assignment=assignment, data=self.data,
                                 step=checkpoint.step if checkpoint else 0, reported=reported, until_epoch=until_epoch,
                                 go_on=self._go_on, on_first_step=memory.let_go)
        self.peers = Peers(assignment=assignment, rendezvous=rendezvous, run_store=run_store, host=host,
                           step=self.progress.step, check_every_steps=config.run.check_weights_every_steps)
        self.extras = Extras(config.eval.extras_budget_s, agree=self.peers.broadcast)
        self.storage = StorageWait()
        self.checkpoints = WorkerCheckpoints(
            run=config.run, run_store=run_store, assignment=assignment, resume_from=checkpoint,
            config_fingerprint=config_fingerprint, progress=self.progress, peers=self.peers, storage=self.storage,
            memory=memory, patience_s=self._patience_s)
        self._left, self._closed = threading.Event(), threading.Event()
        self._beating = in_background("trainyard-beat", self._beat_forever)

    # ── what a job sees, too: see TrainContext ──
    @property
    def shards(self) -> tuple[int, ...]:
        return self.data.shards

    @property
    def median_step_s(self) -> float:
        return self.progress.pace.median_s

    def data_loader(self, length_group_steps: int = 1) -> DataLoader:
        return self.data.data_loader(length_group_steps)

    def reader(self, split: SplitName) -> Reader:
        return self.data.reader(split)

    def local_range(self, split: SplitName) -> range:
        return self.data.local_range(split)

    @property
    def num_parts(self) -> int:
        return self.data.num_parts

    @property
    def parts(self) -> range:
        return self.data.parts

    def part_range(self, split: SplitName, part: int) -> range:
        return self.data.part_range(split, part)

    def broadcast(self, key: str, make: Callable[[], T]) -> T:
        return self.peers.broadcast(key, make)

    def all_gather(self, key: str, value: T) -> list[T]:
        return self.peers.all_gather(key, value)

    def count_waiting(self, seconds: float) -> None:
        self.progress.pace.waited(seconds)

    def update_status(self, **values: object) -> None:
        self.progress.update_status(**values)

    def heartbeat(self) -> None:
        self.progress.heartbeat()

    def write_predictions(self, name: str, share: Predictions) -> None:
        with self.storage.waiting():
            predictions.write(self.run_store, self.generation, name, self.rank, share)

    def write_extras(self) -> None:
        """Tells the driver what is left of the budget for extras."""
        if self.rank == 0:
            with self.storage.waiting():
                predictions.write_extras(self.run_store, self.generation, self.extras.account)

    # ── the end ──
    def close(self, *, failed: bool = False) -> None:
        """Ends the threads, and sends what is left to send. Also after a failure a checkpoint in flight is finished."""
        self._left.set()
        try:
            with self.storage.waiting():
                self.data.close()
                self.checkpoints.writer.close(wait=True, raise_errors=not failed)
        finally:
            self._closed.set()
            self._beating.exception()
        self.progress.close()
        self._beat()

    # ── the beat ──
    def _beat_forever(self) -> None:
        while not self._closed.wait(BEAT_S):
            self._beat()
            if self.peers.reply.leave and not self._left.is_set():
                self._give_up_soon()

    def _beat(self) -> None:
        wait_s, still_s = self.storage.seconds(self.checkpoints.writer.moved_at)
        self.progress.state |= {"storage_wait_s": wait_s, "storage_still_s": still_s}
        if wait_s > 0 and still_s <= self._patience_s():
            self.progress.state["ticks"] += 1
        losses = [self.progress.losses.popleft() for _ in range(len(self.progress.losses))]
        costs = self.checkpoints.writer.timings
        pace = self.progress.pace
        self.progress.state |= {
            "median_step_s": pace.median_s, "samples_per_s": pace.samples_per_s, "busy_s": pace.busy_s,
            "data_wait_s": sum(loader.wait_s for loader in self.data.loaders), "marks": dict(self.progress.marks),
            "checkpoint": costs, "committed_step": self.checkpoints.writer.committed_step,
        }
        if losses:
            self.progress.state["loss"] = sum(losses) / len(losses)
            self.progress.keep_curve(losses)
        reports = [self.progress.reports.get() for _ in range(self.progress.reports.qsize())]
        cost = (costs.blocking_s, costs.write_s, costs.background_s) if costs else ()
        self.checkpoints.schedule.observe(pace.median_s, *cost)
        try:
            self.peers.reply = self._rendezvous.heartbeat(self._slot, self._worker, Heartbeat(**self.progress.state),
                                                          reports)
        except (EOFError, OSError, ConnectionError):
            os._exit(70)  # the driver is gone, and with it anybody to train for

    def _go_on(self) -> None:
        if self._beating.done():
            self._beating.result()  # raises what ended it: nobody would hear of this worker, nor it of a stop
        if self.peers.reply.leave:
            raise PeerLostError("this generation has been given up")

    def _give_up_soon(self) -> None:
        """The loop may sit in a collective that never ends (NCCL): then this process ends instead.

        Ten short waits, since a pause of this process ends a wait at once: it would take one of them, not all.
        """
        if self.world_size > 1 and not any(self._left.wait(1) for _ in range(10)):
            os._exit(71)

    def _patience_s(self) -> float:
        """How long storage may stand still."""
        run = self.config.run
        return min(run.hang_timeout_s, run.storage_timeout_s) if self.peers.stop_wanted else run.storage_timeout_s
