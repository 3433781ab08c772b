"""The last step of each worker, in a file that outlives it,
so that the steps which a death costs are counted to the last one.

A beat comes five times a second, and hundreds of steps may have been done since; a number written over itself in a file
costs two microseconds a step.
Only on a file system: an object store takes whole objects, and there the last beat is what is known.
"""

import os
from contextlib import suppress

from cluster.core.storage import Store

_FOLDER = "logs/steps"
_FORMAT = b"%020d"


class StepMark:
    """One worker's mark in one generation."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    @staticmethod
    def open(run_store: Store, generation: str, rank: int) -> "StepMark":
        """Raises: StorageFullError, StorageError."""
        if not run_store.is_local:
            return StepMark(None)
        path = f"{_FOLDER}/{generation}-{rank}"
        run_store.write_bytes(path, _FORMAT % 0, durable=False)  # what is written later needs no more room
        return StepMark(os.open(run_store.local_path(path), os.O_WRONLY))

    def write(self, step: int) -> None:
        """A storage that has become read-only or is gone is noticed elsewhere: then there are no more marks."""
        if self._descriptor is not None:
            try:  # (a `with suppress` would double what a mark costs)
                os.pwrite(self._descriptor, _FORMAT % step, 0)
            except OSError:
                self.close()

    def close(self) -> None:
        if self._descriptor is not None:
            with suppress(OSError):  # a network file system says so late
                os.close(self._descriptor)
            self._descriptor = None


def take_marks(run_store: Store) -> int:
    """The highest step that any worker of any earlier generation has done; the marks are removed. 0: there are none."""
    if not run_store.is_local:
        return 0
    highest = 0
    for file in run_store.files(_FOLDER):
        with suppress(ValueError, FileNotFoundError):
            highest = max(highest, int(run_store.read_text(file.path)))
        run_store.delete(file.path)
    return highest
