"""Several processes that measure by turns, so that what the machine does meanwhile hits all of them alike.

Each process says `begin` before a measurement and `leave` after its last: exactly one of them runs at a time.
"""

import time
from collections.abc import Callable
from pathlib import Path

_POLL_S = 0.002
_LIMIT_S = 600.0


class Turns:
    """One of `of` processes that meet in `folder`; the first turn begins when all have come."""

    def __init__(self, folder: Path, place: int, of: int) -> None:
        self._folder, self._place, self._of, self._mine = folder, place, of, False
        folder.mkdir(parents=True, exist_ok=True)

    def begin(self) -> None:
        """Passes the turn on if it is ours, and waits until it is ours again."""
        if self._mine:
            self._pass_on()
        else:
            (self._folder / f"here-{self._place}").touch()
            self._until(lambda: all((self._folder / f"here-{i}").exists() for i in range(self._of)))
        self._until(lambda: self._whose() == self._place)
        self._mine = True

    def leave(self) -> None:
        """Takes no further turn."""
        (self._folder / f"left-{self._place}").touch()
        if self._mine:
            self._pass_on()

    def _whose(self) -> int:
        try:
            return int((self._folder / "turn").read_text())
        except FileNotFoundError:
            return 0

    def _pass_on(self) -> None:
        self._mine = False
        following = ((self._place + i) % self._of for i in range(1, self._of + 1))
        present = (place for place in following if not (self._folder / f"left-{place}").exists())
        partial = self._folder / f"turn-{self._place}"
        partial.write_text(str(next(present, self._place)))
        partial.rename(self._folder / "turn")

    def _until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _LIMIT_S
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"no turn in {_LIMIT_S:g} s: another process died? See {self._folder}")
            time.sleep(_POLL_S)
