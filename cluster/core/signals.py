"""What a program does that is told to end: its `finally` blocks first, or what it was asked to."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable

_LOOK_S = 0.05


class Told(threading.Event):
    """A flag that the handler of a signal may set while the program waits for it.

    The handler runs in the middle of whatever the main thread does. Where that is inside `Event.wait`, an `Event.set`
    of the handler waits for a lock that is never released; this flag has none.
    """

    def __init__(self) -> None:
        super().__init__()
        self._told = False

    def set(self) -> None:
        self._told = True

    def is_set(self) -> bool:
        return self._told

    def wait(self, timeout: float | None = None) -> bool:
        end = None if timeout is None else time.monotonic() + timeout
        while not self._told and (end is None or time.monotonic() < end):
            time.sleep(_LOOK_S if end is None else max(0.0, min(_LOOK_S, end - time.monotonic())))
        return self._told


def say(text: str) -> None:
    """Prints a line from a signal's handler, where `print` fails if the program was just printing."""
    os.write(sys.stdout.fileno(), f"{text}\n".encode())


def exit_when_told() -> None:
    """Turns SIGTERM and SIGHUP into SystemExit(128 + number), once:
    what the program then undoes is not cut off by another.

    A signal that is ignored already (SIGHUP under nohup) stays so. Call it in the main thread.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _exit)


def _exit(number: int, frame: object) -> None:
    for each in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


def on_stop_signal(asked: Callable[[str], None]) -> None:
    """Calls `asked` with the name of the first SIGTERM, Ctrl-C or SIGHUP; a third one ends the process at once.

    SIGHUP comes from a terminal that is closed; where it is ignored already (under nohup) it stays so. Does nothing
    outside the main thread, which alone hears signals.
    """
    presses = 0

    def pressed(number: int, _: object) -> None:
        nonlocal presses
        presses += 1
        if presses >= 3:
            os._exit(130)
        if presses == 1:
            asked(signal.Signals(number).name)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, pressed)
