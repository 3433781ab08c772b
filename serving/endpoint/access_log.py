"""The access log's file: one that may be moved away, and that requests never fail for."""

import logging
import logging.handlers
import sys
import time

from serving.endpoint.pipeline import ACCESS_LOG

_SAY_EVERY_S = 60.0
_log = logging.getLogger(__name__)


def write_access_log(path: str) -> None:
    """Has a line for each request written to this file. Raises: OSError if it cannot be opened."""
    log = logging.getLogger(ACCESS_LOG)
    log.addHandler(AccessLog(path))
    log.setLevel(logging.INFO)
    log.propagate = False


class AccessLog(logging.handlers.WatchedFileHandler):
    """Lets requests be answered also where the file cannot be written any more (a full disk, a folder that is gone).

    Once a minute the replica's log says so then, with how many lines are missing.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._missing, self._silent_until = 0, 0.0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:  # the file cannot be opened again, which the standard library leaves to whoever logs
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (the standard library's name)
        self._missing += 1
        if time.monotonic() >= self._silent_until:
            self._silent_until = time.monotonic() + _SAY_EVERY_S
            _log.error("%s cannot be written (%s): %d requests are missing in it so far; make room, or move it away",
                       self.baseFilename, sys.exception(), self._missing)
