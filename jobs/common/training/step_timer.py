"""How long a worker's steps take, and how much of that it waited for others."""

import statistics
import time
from collections import deque
from dataclasses import dataclass, field

_WARMUP_STEPS = 20


@dataclass
class StepTimer:
    """How long steps take. Times in seconds; the first steps of a generation are left out of the rate."""

    rows: int = 0
    seconds: float = 0.0
    recent: "deque[float]" = field(default_factory=lambda: deque(maxlen=1000))
    count: int = 0
    busy: "deque[float]" = field(default_factory=lambda: deque(maxlen=200))
    """Of recent steps, what was not spent waiting for other workers."""
    _last: float = 0.0
    _waited: float = 0.0

    def start(self) -> None:
        """From here on time counts; call it again after anything that is not training."""
        self._last, self._waited = time.perf_counter(), 0.0

    def waited(self, seconds: float) -> None:
        """So much of the present step was spent inside collectives, where a fast worker waits for a slow one."""
        self._waited += seconds

    def step(self, rows: int, steps: int = 1) -> None:
        """rows: of one step. steps: how many were made since the last call."""
        now = time.perf_counter()
        taken, self._last = now - self._last, now
        self.count += steps
        self.recent.extend([taken / steps] * steps)
        if self.count > steps:  # the first one sets up much that comes once
            self.busy.append(max(0.0, taken - self._waited) / steps)
        self._waited = 0.0
        if self.count - steps >= _WARMUP_STEPS:
            self.rows += rows * steps
            self.seconds += taken

    @property
    def started(self) -> bool:
        return self._last > 0

    @property
    def since_last_s(self) -> float:
        return time.perf_counter() - self._last

    @property
    def median_s(self) -> float:
        return statistics.median(self.recent) if self.recent else 0.0

    @property
    def busy_s(self) -> float:
        """Median, of a step."""
        return statistics.median(self.busy) if self.busy else 0.0

    @property
    def samples_per_s(self) -> float:
        return self.rows / self.seconds if self.seconds else 0.0
