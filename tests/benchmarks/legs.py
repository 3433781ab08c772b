"""Steps of several processes by turns, some at a time, so that what else the machine does hits all of them alike.

    legs = Legs(folder, place=0, of=3, steps=40, size=4)
    legs.begin()                      # before the first step
    legs.step(tokens)                 # after each
"""

import time
from pathlib import Path

from tests.benchmarks.turns import Turns


class Legs:
    """Those of one process. A leg is so many steps (`size`)."""

    def __init__(self, folder: Path, *, place: int, of: int, steps: int, size: int) -> None:
        self._turns, self._left, self._size = Turns(folder, place, of), steps, size
        self._began = 0.0
        self._tokens: list[int] = []
        self.rates: list[float] = []
        """Tokens a second of each leg."""

    def begin(self) -> None:
        self._turns.begin()
        self._tokens, self._began = [], time.perf_counter()

    def step(self, tokens: int) -> None:
        """tokens: of the step that has just ended."""
        self._tokens.append(tokens)
        self._left -= 1
        if len(self._tokens) == self._size or not self._left:
            self.rates.append(sum(self._tokens) / (time.perf_counter() - self._began))
            if self._left:
                self.begin()
            else:
                self._turns.leave()
