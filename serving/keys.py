"""API keys: names and hashes in a file or the environment, changed without a restart.

    python -m serving key NAME          prints a new key once, and the line to put into the file

A line is `NAME:SHA256`; several lines may have one name, so that a new key works before the old one goes. Keys are random and
long, so a plain hash does; they are compared in constant time.
"""

import hashlib
import hmac
import os
import re
import secrets
import time
from pathlib import Path

from cluster.errors import ConfigError

VARIABLE = "TRAINYARD_API_KEYS"
"""The file's lines, separated by spaces or commas."""
_LINE = re.compile(r"([\w.\-]{1,64}):([0-9a-f]{64})")
_CHECK_EVERY_S = 1.0


def new_key(name: str) -> tuple[str, str]:
    """A key, and its line for the file."""
    key = f"ty_{secrets.token_urlsafe(32)}"
    return key, f"{name}:{digest(key)}"


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


class Keys:
    """Who may ask. A file is read again when it has changed."""

    def __init__(self, file: str | None) -> None:
        """file: None for the environment's. Raises: ConfigError if there is no key, or a line is none."""
        self._file, self._checked, self._stamp = file, 0.0, (0, 0)
        self._known: list[tuple[str, bytes]] = []
        self._read()

    def name_of(self, key: str) -> str | None:
        """The name that a key was given; None if it is not known."""
        self._look()
        raw = key.encode(errors="surrogateescape")
        found = hashlib.sha256(raw).digest()
        name: str | None = None
        for known, each in self._known:  # all of them, whichever it is
            if hmac.compare_digest(found, each):
                name = known
        return name

    def _look(self) -> None:
        now = time.monotonic()
        if self._file is None or now - self._checked < _CHECK_EVERY_S:
            return
        self._checked = now
        try:
            stat = os.stat(self._file)  # noqa: PTH116
            if (stat.st_mtime_ns, stat.st_size) != self._stamp:
                self._read()
        except (OSError, ConfigError):
            return  # a file that is being replaced, or is damaged: the keys that were known go on

    def _read(self) -> None:
        if self._file is not None:
            path = Path(self._file)
            try:
                stat, text = path.stat(), path.read_text()
            except OSError as error:
                raise ConfigError(f"--keys {self._file} cannot be read ({error.strerror}): make one with "
                                  "`python -m serving key NAME`") from error
            self._stamp = (stat.st_mtime_ns, stat.st_size)
        else:
            text = os.environ.get(VARIABLE, "")
        self._known = parse(text, self._file or VARIABLE)


def parse(text: str, where: str) -> list[tuple[str, bytes]]:
    """(name, sha256) of each line. Raises: ConfigError."""
    lines = [line.partition("#")[0] for line in text.splitlines()]
    words = [word for line in lines for word in re.split(r"[\s,]+", line) if word]
    found = [_LINE.fullmatch(word) for word in words]
    if not words or not all(found):
        raise ConfigError(f"{where} has no keys, or a line that is no NAME:SHA256: make one with `python -m serving key NAME`, "
                          "or pass --no-auth, which serves this machine only")
    return [(match[1], bytes.fromhex(match[2])) for match in found if match]
