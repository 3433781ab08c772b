"""What a worker process does, under every executor: register, train in one generation after another, deregister.

A survivor of a dead peer registers again in the same process, with all its imports done and its data in the cache.
"""

import os
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.managers import BaseManager
from typing import Literal, cast

from cluster.core.errors import OutOfMemoryError, TrainingFailedError, TrainyardError
from cluster.core.network import set_collective_interface
from cluster.core.storage import Store
from cluster.preflight import check_own_node
from jobs.common.checkpoint.peer_memory import PeerMemory
from jobs.common.checkpoint.writer import NonFiniteStateError
from jobs.common.config import Config, from_dict
from jobs.common.data.dataset import Dataset
from jobs.common.execution.memory import is_out_of_memory, remedy
from jobs.common.execution.run_state import RUN_FILE
from jobs.common.own_code import load_object
from jobs.common.training.context import PeerLostError
from jobs.common.training.rendezvous import Assignment, Outcome, RendezvousClient, WorkerExit, WorkerInfo
from jobs.common.training.session import Session
from jobs.common.training.train_state import NonFiniteError

Train = Callable[[Session, Config], Literal["finished", "stopped"]]


@dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """What all workers of a run are given. `train` and `config_type` are `module:name`, loaded in the worker only."""

    train: str
    config_type: str
    config: Mapping[str, object]
    config_fingerprint: str
    run_uri: str
    dataset_uri: str
    until_epoch: int | None = None
    """Of a trial: the epochs after which it rests, with a checkpoint; its search says how it goes on."""
    versions: Mapping[str, str] | None = None
    """The driver's, where workers run on other nodes: each one probes its own node before it begins."""

    def load(self) -> tuple[Train, Config]:
        return load_object(self.train), self.parsed()

    def parsed(self) -> Config:
        return from_dict(load_object(self.config_type), self.config)


@dataclass(frozen=True)
class Place:
    """Where this process runs. host: address that the other workers reach. device: `cpu` or `cuda:N`."""

    slot: int
    host: str
    node_id: str | None
    device: str
    group: str = ""


def work(spec: WorkerSpec, rendezvous: RendezvousClient, place: Place) -> None:
    """Trains until the run is finished or stopped, or this worker is told to go.

    Raises: what is not a TrainyardError, after having reported it, so that the process ends and is replaced.
    """
    with suppress(TrainyardError), PeerMemory(place.host, place.slot) as memory:
        _work(spec, rendezvous, place, memory)


def _work(spec: WorkerSpec, rendezvous: RendezvousClient, place: Place, memory: PeerMemory) -> None:
    began = time.time()
    set_collective_interface(place.host)
    with _reporting(rendezvous, place.slot, ""):
        if spec.versions is not None:
            check_own_node(Store.open(spec.run_uri), RUN_FILE, spec.versions, place.host)
        train, config = spec.load()
    marks = {"worker_began": began, "imported": time.time()}
    last_step, bad_steps, why, refused = -1, (), "", False
    while True:
        worker = uuid.uuid4().hex
        info = WorkerInfo(slot=place.slot, worker=worker, pid=os.getpid(), started=began, node_id=place.node_id,
                          host=place.host, group=place.group, last_step=last_step, bad_steps=bad_steps, why=why,
                          offer=memory.offer, refused_offer=refused)
        assignment = _assignment(rendezvous, info)
        if assignment.abort:
            return
        if assignment.offer is None:
            memory.let_go()
        with _reporting(rendezvous, place.slot, worker):
            session = _session(spec, config, assignment, rendezvous, place, worker, marks, memory)
        last_step, bad_steps, why, refused = session.progress.step, (), "", False
        try:
            with _reporting(rendezvous, place.slot, worker):
                outcome = _attempt(train, session, config)
            rendezvous.deregister(WorkerExit(slot=place.slot, worker=worker, outcome=outcome))
            return
        except PeerLostError as error:
            last_step, why = session.progress.step, str(error.__cause__ or error)
            refused = session.checkpoints.refused_offer
        except NonFiniteError as error:
            last_step, bad_steps = session.progress.step, error.steps


@contextmanager
def _reporting(rendezvous: RendezvousClient, slot: int, worker: str) -> Generator[None]:
    """Tells the controller of an error before it ends this worker."""
    try:
        yield
    except (PeerLostError, NonFiniteError):
        raise
    except Exception as error:
        rendezvous.deregister(_exit(slot, worker, error))
        raise


def _attempt(train: Train, session: Session, config: Config) -> Outcome:
    try:
        outcome = train(session, config)
    except BaseException as error:
        short = _short_of_memory(session, config, error) if is_out_of_memory(error) else None
        session.close(failed=True)
        if short is not None:
            raise short from error
        raise
    session.close()
    return outcome


def _short_of_memory(session: Session, config: Config, error: BaseException) -> OutOfMemoryError:
    phase: str | None = session.progress.state.get("phase")
    begun = session.progress.pace.started
    where = phase or (f"in step {session.progress.step + 1:,}" if begun else "before its first step")
    what = str(error).partition("\n")[0] or type(error).__name__
    return OutOfMemoryError(f"worker {session.rank} ran out of memory {where} ({what}): "
                            + remedy(config, session.num_shards, phase=phase, fits=begun))


def _assignment(rendezvous: RendezvousClient, info: WorkerInfo) -> Assignment:
    """Registers a worker and waits for its place in the next generation."""
    rendezvous.register(info)
    while True:
        if (assignment := rendezvous.assignment(info.worker)) is not None:
            return assignment
        time.sleep(0.02)


def _session(spec: WorkerSpec, config: Config, assignment: Assignment, rendezvous: RendezvousClient, place: Place,
             worker: str, marks: dict[str, float], memory: PeerMemory) -> Session:
    session = Session(
        config=config, run_store=Store.open(spec.run_uri), dataset=Dataset.load(Store.open(spec.dataset_uri)),
        assignment=assignment, rendezvous=rendezvous, slot=place.slot, worker=worker, host=place.host,
        device=place.device, memory=memory,
        config_fingerprint=spec.config_fingerprint, until_epoch=spec.until_epoch,
    )
    session.progress.marks |= marks | {"assigned": time.time()}
    return session


def _exit(slot: int, worker: str, error: Exception) -> WorkerExit:
    if isinstance(error, NonFiniteStateError):
        error = TrainingFailedError(str(error))
    return WorkerExit(slot=slot, worker=worker, outcome="error", kind=type(error).__name__, message=str(error),
                      traceback=traceback.format_exc())


class RendezvousServer(BaseManager):
    """Offers a rendezvous on a Unix socket, to processes of this machine."""


def connect_to(address: str, key: bytes) -> RendezvousClient:
    """Returns the rendezvous that a RendezvousServer offers. Raises: EOFError, OSError if the driver is gone."""
    RendezvousServer.register("rendezvous")
    manager = RendezvousServer(address=address, authkey=key)
    manager.connect()
    return cast(RendezvousClient, manager.rendezvous())  # type: ignore[attr-defined]


def main(spec: WorkerSpec, slot: int, address: str, key: bytes) -> None:
    """A local worker, in a process of its own (fork_server.py). address, key: of its driver's RendezvousServer."""
    rendezvous = connect_to(address, key)
    try:
        work(spec, rendezvous, Place(slot=slot, host="127.0.0.1", node_id=None, device="cpu"))
    except (EOFError, ConnectionError):
        sys.exit(70)
