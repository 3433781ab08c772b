"""The local executors: N worker processes on this machine without Ray; one worker is this very process.

An executor starts a group of workers, replaces those that die, and ends them. It decides nothing about training.
"""

import os
import secrets
import signal
import sys
import threading
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, Protocol, TypeVar

from cluster.core.background import in_background, logged
from cluster.core.errors import StoppedError
from cluster.core.network import collective_interface_kept
from cluster.remote_processes import dump_stack, kill
from jobs.common.execution import memory
from jobs.common.execution.fork_server import ForkedWorker, ForkServer
from jobs.common.execution.worker import Place, RendezvousServer, WorkerSpec, work
from jobs.common.training.rendezvous import Rendezvous, RendezvousClient, WorkerInfo

T = TypeVar("T")
_AT_ONCE = 32
_LAST_S = 10.0


class GroupLostError(Exception):
    """The executor has lost its whole group of workers, and does not replace it by itself."""


class HungError(StoppedError):
    """The worker makes no progress, and only the end of its process ends it."""


class Executor(Protocol):
    """What the controller needs of whoever starts its workers."""

    rendezvous: RendezvousClient
    can_replace: bool
    """Whether a dead worker is started again by the executor while the others live on."""

    def start(self, spec: WorkerSpec, num_workers: int) -> None:
        """Begins to start a group."""
        ...

    def possible_workers(self) -> int:
        """How many workers there could be now, those running included."""
        ...

    def queued(self, num_workers: int) -> AbstractContextManager[Callable[[], bool]]:
        """Asks for room for so many workers, so that nodes are added where they can be.
        Gives what says whether it is there."""
        ...

    def leaving(self, members: list[WorkerInfo]) -> Literal["", "workers", "driver"]:
        """Who is on a node that is about to be taken away: some of these workers, or this driver itself."""
        ...

    def maintain(self) -> None:
        """Replaces dead workers where that is the executor's part.
        Raises: GroupLostError if the whole group is gone."""
        ...

    def ended(self) -> bool:
        """Whether the whole group has ended."""
        ...

    def stacks(self, members: list[WorkerInfo]) -> dict[int, str]:
        """The stack of each member's threads, by slot."""
        ...

    def kill(self, members: list[WorkerInfo]) -> None: ...

    def starved(self, members: list[WorkerInfo]) -> str:
        """Who has ended one of these workers, which are lost, for want of memory; "" if nobody has, or it is not
        known."""
        ...

    def end(self) -> None:
        """Ends what is left of the group."""
        ...

    def run(self, supervise: Callable[[], T]) -> T:
        """Carries out the supervision of a started group and returns its result."""
        ...


def stacks(members: list[WorkerInfo]) -> dict[int, str]:
    """The stacks of worker processes, on their nodes, by slot.
    All are asked at once: one that does not answer delays nobody."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        asked = {member.slot: pool.submit(dump_stack, member.pid, member.node_id) for member in members}
        return {slot: stack.result() for slot, stack in asked.items()}


def kill_all(members: list[WorkerInfo]) -> None:
    """SIGKILL to worker processes, on their nodes, all at once."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for member in members:
            ended = pool.submit(kill, member.pid, member.node_id, member.started)
            ended.add_done_callback(logged(f"the ending of worker {member.slot} on {member.host}"))


class InProcessExecutor:
    """One worker, in the thread that calls `run`: for a debugger, a benchmark on a GPU, or a trial of Ray Tune."""

    can_replace = False

    def __init__(self, device: str = "cpu") -> None:
        self.rendezvous: RendezvousClient = Rendezvous()
        self._device, self._done = device, threading.Event()
        self._spec: WorkerSpec | None = None

    def start(self, spec: WorkerSpec, num_workers: int) -> None:
        assert num_workers == 1
        self._spec, self._done = spec, threading.Event()

    def possible_workers(self) -> int:
        return 1

    def queued(self, num_workers: int) -> AbstractContextManager[Callable[[], bool]]:
        return nullcontext(lambda: False)

    def leaving(self, members: list[WorkerInfo]) -> Literal["", "workers", "driver"]:
        return ""

    def maintain(self) -> None:
        pass

    def ended(self) -> bool:
        return self._done.is_set()

    def stacks(self, members: list[WorkerInfo]) -> dict[int, str]:
        return {}

    def kill(self, members: list[WorkerInfo]) -> None:
        pass

    def starved(self, members: list[WorkerInfo]) -> str:
        return ""

    def end(self) -> None:
        pass

    def run(self, supervise: Callable[[], T]) -> T:
        assert self._spec is not None
        cause: BaseException | None = None
        watching = in_background("trainyard-controller", lambda: self._watch(supervise))
        try:
            with collective_interface_kept():
                work(self._spec, self.rendezvous, Place(slot=0, host="127.0.0.1", node_id=None, device=self._device))
        except (Exception, SystemExit) as error:  # noqa: BLE001  (the controller has its report, and decides)
            cause = error
        finally:
            self._done.set()
            error = watching.exception()
        if error is not None:
            raise error from cause
        return watching.result()

    def _watch(self, supervise: Callable[[], T]) -> T:
        try:
            return supervise()
        except BaseException as error:
            self.rendezvous.abort()
            if isinstance(error, HungError) and not self._done.wait(_LAST_S):
                print(f"error: {error}", file=sys.stderr, flush=True)
                os._exit(error.exit_code)  # the worker is this very process
            raise


class ProcessExecutor:
    """N worker processes, each replaced when it dies. One that has done their imports forks them (fork_server.py)."""

    can_replace = True

    def __init__(self, cpus_per_worker: int, preload: Sequence[str] = ()) -> None:
        """preload: see Job."""
        self._cpus_per_worker, self._preload = cpus_per_worker, preload
        self._key = secrets.token_bytes(32)
        rendezvous = Rendezvous()
        self._address = f"\0trainyard-{uuid.uuid4().hex}"  # an abstract socket: there is no file to leave behind
        RendezvousServer.register("rendezvous", callable=lambda: rendezvous)
        server = RendezvousServer(address=self._address, authkey=self._key).get_server()
        serving = in_background("trainyard-rendezvous", server.serve_forever)
        serving.add_done_callback(logged("the workers' way to their driver"))
        self.rendezvous: RendezvousClient = rendezvous
        self._spec: WorkerSpec | None = None
        self._num_workers = 0
        self._server: ForkServer | None = None
        self._workers: dict[int, ForkedWorker] = {}
        self._kills, self._starved = 0, set[int]()

    def start(self, spec: WorkerSpec, num_workers: int) -> None:
        self._spec, self._num_workers = spec, num_workers
        self._server, self._kills = ForkServer(self._preload), memory.kills()
        self._workers = {slot: self._fork(self._server, slot) for slot in range(num_workers)}

    def possible_workers(self) -> int:
        """As many as the machine has cores for, where the run leaves a choice, and no fewer than there were."""
        return max(1, (os.cpu_count() or 1) // self._cpus_per_worker, self._num_workers)

    def queued(self, num_workers: int) -> AbstractContextManager[Callable[[], bool]]:
        return nullcontext(lambda: False)

    def leaving(self, members: list[WorkerInfo]) -> Literal["", "workers", "driver"]:
        return ""

    def maintain(self) -> None:
        if self._server is not None:
            self._server.look()
            for slot, worker in self._workers.items():
                if worker.exit_code not in (None, 0):
                    if worker.exit_code == -signal.SIGKILL and memory.kills() > self._kills:
                        self._starved.add(worker.pid)
                    self._workers[slot] = self._fork(self._server, slot)

    def ended(self) -> bool:
        if self._server is not None:
            self._server.look()
        return all(worker.exit_code is not None for worker in self._workers.values())

    def stacks(self, members: list[WorkerInfo]) -> dict[int, str]:
        return stacks(members)

    def kill(self, members: list[WorkerInfo]) -> None:
        kill_all(members)

    def starved(self, members: list[WorkerInfo]) -> str:
        return "the machine's kernel" if self._starved & {member.pid for member in members} else ""

    def end(self) -> None:
        if self._server is not None:
            self._server.end(patience_s=5)
        self._server, self._workers = None, {}

    def run(self, supervise: Callable[[], T]) -> T:
        return supervise()

    def _fork(self, server: ForkServer, slot: int) -> ForkedWorker:
        return server.fork((self._spec, slot, self._address, self._key))
