"""The process that local workers are forked from: it has imported what they need, so that each of them starts at once.

It waits for a request, forks, tells the driver which workers have ended, and ends with the driver. A fork is safe only
where no other thread runs: what starts threads when it is imported (TensorFlow) is left to the workers. `ForkServer` is
the driver's end.
"""

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import ModuleType
from typing import cast

import numpy as np

_WORKER = "jobs.common.execution.worker"
_ARROW = "JE_ARROW_MALLOC_CONF"
_ROOT = Path(__file__).parents[3]


@dataclass
class ForkedWorker:
    """What the driver knows of a worker. pid: 0 until it has been forked. exit_code: None until it has ended."""

    pid: int = 0
    exit_code: int | None = None


class ForkServer:
    """Starts the server, and another one should it die, with the driver's environment and working directory."""

    def __init__(self, preload: Sequence[str]) -> None:
        """preload: the modules to import, besides those of every worker."""
        self._preload = preload
        self._start()

    def fork(self, call: tuple[object, ...]) -> ForkedWorker:
        """Asks for a worker, without waiting for it. call: the arguments of `worker.main`."""
        self.look()
        if self._process.poll() is not None:
            self._connection.close()
            self._start()
        worker = ForkedWorker()
        self._workers.append(worker)
        with suppress(OSError):  # it has died just now: the next look finds that out
            self._connection.send((len(self._workers) - 1, call))
        return worker

    def look(self, timeout_s: float = 0.0) -> None:
        """Takes in which workers have begun and ended; waits for such news for timeout_s.

        Where the server has died its workers are ended, too: nobody could say any more when they do.
        """
        try:
            while self._connection.poll(timeout_s):
                number, pid, exit_code = cast(tuple[int, int, int | None], self._connection.recv())
                self._workers[number].pid, self._workers[number].exit_code = pid, exit_code
                timeout_s = 0.0
        except (EOFError, OSError):
            for worker in self._workers:
                _kill(worker)
                worker.exit_code = -signal.SIGKILL if worker.exit_code is None else worker.exit_code

    def end(self, patience_s: float) -> None:
        """Ends the workers that do not end by themselves within patience_s each, and the server."""
        for worker in self._workers:
            self._wait(worker, patience_s)
            if _kill(worker):
                self._wait(worker, float("inf"))
        self._process.kill()
        self._process.wait()
        self.look()  # a worker that was forked at the last moment
        self._connection.close()

    def _start(self) -> None:
        self._workers: list[ForkedWorker] = []
        self._connection, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno()), *self._preload], stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()], start_new_session=True, cwd=Path.cwd(),
                env=os.environ | {"PYTHONPATH": os.pathsep.join([str(_ROOT), *sys.path])},
            )

    def _wait(self, worker: ForkedWorker, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while worker.exit_code is None and (left_s := deadline - time.monotonic()) > 0:
            self.look(min(left_s, 60.0))


def _kill(worker: ForkedWorker) -> bool:
    """Returns whether there was something to kill."""
    if not worker.pid or worker.exit_code is not None:
        return False
    with suppress(ProcessLookupError):
        os.kill(worker.pid, signal.SIGKILL)
    return True


# ── in the server ──
def main() -> None:
    """`python -m jobs.common.execution.fork_server DESCRIPTOR MODULE...`: the server, and in each fork the worker."""
    driver = Connection(int(sys.argv[1]))
    os.set_inheritable(driver.fileno(), False)
    worker = _import(sys.argv[2:])
    worker.main(*_serve(driver))


def _import(preload: Sequence[str]) -> ModuleType:
    """Imports what the workers need, and returns the module of a worker.

    Two libraries start threads when they are imported. OpenBLAS ends its own at a fork, and starts them again where it
    needs them; that of an allocator of Arrow's is kept away by this variable, which the workers do not see.
    """
    given = _ARROW in os.environ
    os.environ.setdefault(_ARROW, "background_thread:false")
    worker = importlib.import_module(_WORKER)
    for module in preload:
        with suppress(Exception):  # the worker imports it again, and reports what is wrong with it
            importlib.import_module(module)
    if not given:
        del os.environ[_ARROW]
    return worker


def _noticed(_number: int, _frame: object) -> None:
    """Without a handler of Python's own a signal would not be written to the wakeup descriptor."""


def _serve(driver: Connection) -> tuple[object, ...]:
    """Forks a worker for each request, and reports each that ends. Returns the request's arguments, in the worker."""
    woken, waking = os.pipe()
    os.set_blocking(waking, False)
    signal.signal(signal.SIGCHLD, _noticed)
    signal.set_wakeup_fd(waking)
    numbers: dict[int, int] = {}
    try:
        while True:
            ready = wait([driver, woken])
            if woken in ready:
                os.read(woken, 4096)
                while numbers and (ended := os.waitpid(-1, os.WNOHANG))[0]:
                    driver.send((numbers.pop(ended[0]), ended[0], os.waitstatus_to_exitcode(ended[1])))
            if driver in ready:
                number, call = driver.recv()
                if (pid := os.fork()) == 0:
                    break
                numbers[pid] = number
                driver.send((number, pid, None))
    except (EOFError, OSError):  # the driver is gone
        os._exit(0)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for descriptor in (woken, waking):
        os.close(descriptor)
    driver.close()
    os.setsid()
    np.random.seed()  # from the system's entropy, as in a process of its own; Python's generator does so by itself
    return call


if __name__ == "__main__":
    main()
