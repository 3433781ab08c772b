"""A clock that a test hands in: it goes on when the test says so, however busy the machine is.

    clock = Clock()
    monkeypatch.setattr(rate_limit, "time", clock)
    clock.now += 0.25
"""

import time


class Clock:
    """Stands in for the module `time` where a module asks for the seconds that have passed."""

    sleep = staticmethod(time.sleep)

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic
