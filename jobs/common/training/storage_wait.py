"""While a worker waits for storage that moves, its beats are signs of progress: slow storage is not a hang."""

import threading
import time
from collections.abc import Generator
from contextlib import contextmanager

from cluster.core.storage import moved_at


class StorageWait:
    """Whether the thread of a worker's loop waits for storage, and for how long."""

    def __init__(self) -> None:
        self._waits, self._since, self._thread = 0, 0.0, 0

    @contextmanager
    def waiting(self) -> Generator[None]:
        """Around all that reads or writes storage in the loop; may be nested."""
        if not self._waits:
            self._since, self._thread = time.monotonic(), threading.get_ident()
        self._waits += 1
        try:
            yield
        finally:
            self._waits -= 1

    def seconds(self, writer_moved_at: float) -> tuple[float, float]:
        """For how long the loop has waited for storage, and for how long that has stood still; 0 if it does not wait.

        writer_moved_at: when the thread that writes checkpoints last got on.
        """
        if not self._waits:
            return 0.0, 0.0
        now, since = time.monotonic(), self._since
        return now - since, now - max(since, moved_at(self._thread), writer_moved_at)
