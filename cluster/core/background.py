"""Work beside the caller's, in a thread or in the event loop, none of whose errors is lost: whoever started it
raises or logs it.

    connecting = in_background("mlflow-connect", connect)
    connecting.result()                                             # raises what it met
    in_background("pod-log", show).add_done_callback(logged("the log of the pod"))      # nobody waits for it
    self._watching = in_loop(self._watch(), "the watch over drift")                     # nor for this coroutine
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")
_log = logging.getLogger(__name__)


def in_background(name: str, work: Callable[[], T]) -> "Future[T]":
    """Starts a daemon thread of this name. Whatever ends the work, SystemExit too, is the future's."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001  (the future has it)
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


def in_loop(work: Coroutine[object, object, T], what: str) -> "asyncio.Task[T]":
    """Starts a task that nobody awaits. It ends when it is let go of: the caller keeps it."""
    task = asyncio.ensure_future(work)
    task.add_done_callback(logged(what))
    return task


def logged(what: str) -> Callable[["Future[T] | asyncio.Future[T]"], None]:
    """A callback for a future or a task: logs the error that ended it."""

    def say(done: "Future[T] | asyncio.Future[T]") -> None:
        if not done.cancelled() and (error := done.exception()) is not None:
            _log.error("%s has ended with an error", what, exc_info=error)

    return say
