"""The clock of a loop that waits for others, and may be late itself.

A process that is paused (SIGSTOP, a laptop that sleeps, a virtual machine that moves to another host) sees nothing
meanwhile. If it measured a bound with a plain clock, it would wake up, find the bound passed,
and blame others for its own absence.
"""

import time
from collections.abc import Callable

MOST_S = 1.0
"""The time between two looks counts as so many seconds at most, however long the loop was away."""


class LoopClock:
    """Counts the seconds that a loop was there to see.
    The loop calls `look` in each turn; `now` stands still between two looks.

    A pause counts as MOST_S, so a bound should be longer.
    A loop that is slow all the time still comes to its bound, only later.
    """

    def __init__(self, source: Callable[[], float] = time.monotonic) -> None:
        self._source, self._looked_at = source, source()
        self.now = self._looked_at

    def look(self) -> float:
        """Returns `now`, after it has counted the time since the look before."""
        before, self._looked_at = self._looked_at, self._source()
        self.now += min(self._looked_at - before, MOST_S)
        return self.now
