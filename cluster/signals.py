"""What a program does that is told to end: its `finally` blocks first, or what it was asked to."""

import os
import signal
import sys
import threading
from collections.abc import Callable


def exit_when_told() -> None:
    """Turns SIGTERM and SIGHUP into SystemExit(128 + number), once: what the program then undoes is not cut off by another.

    A signal that is ignored already (SIGHUP under nohup) stays so. Call it in the main thread.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _exit)


def _exit(number: int, frame: object) -> None:
    for each in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


def heed(asked: Callable[[str], None]) -> None:
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
