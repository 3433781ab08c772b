"""Lets a program that is told to end run its `finally` blocks first."""

import signal
import sys


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
