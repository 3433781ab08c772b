"""API keys: names and hashes in a file or the environment, changed without a restart.

    python -m serving key NAME          prints a new key once, and the line to put into the file

A line is `NAME:SHA256`; several lines may have one name, so that a new key works before the old one goes. Keys are
random and long, so a plain hash does; they are compared in constant time. What is in the file now is what holds: a key
whose line is gone, is damaged, or cannot be read works no more.
"""

import hashlib
import hmac
import logging
import math
import os
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.core.errors import ConfigError

VARIABLE = "TRAINYARD_API_KEYS"
"""The file's lines, separated by spaces or commas."""
_NAME = r"[\w.\-]{1,64}"
_LINE = re.compile(rf"({_NAME}):([0-9a-f]{{64}})")
_LOOK_EVERY_S = 0.25
_GONE_S = 1.0
"""A file that was readable within so many seconds may be one that is being replaced: its keys hold until then,
and no longer."""
_log = logging.getLogger(__name__)


def new_key(name: str) -> tuple[str, str]:
    """A key, and its line for the file. Raises: ConfigError for a name that a line cannot hold."""
    if not re.fullmatch(_NAME, name):
        raise ConfigError(f"key {name!r}: a name has 1 to 64 letters, digits, `.`, `_` or `-`, which is all that a "
                          "line of the key file can hold")
    key = f"ty_{secrets.token_urlsafe(32)}"
    return key, f"{name}:{digest(key)}"


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Lines:
    """What a key file says. known: name and SHA-256 of each key. bad: numbers of the lines that are not NAME:SHA256."""

    known: Sequence[tuple[str, bytes]] = ()
    bad: Sequence[int] = ()

    @property
    def problem(self) -> str:
        """What is wrong with them, without what they hold: it may be a key that was put there by mistake."""
        if self.bad:
            return f"line {', '.join(map(str, self.bad[:5]))} is not NAME:SHA256"
        return "" if self.known else "it has no keys"


def parse(text: str) -> Lines:
    known: list[tuple[str, bytes]] = []
    bad: list[int] = []
    for number, line in enumerate(text.splitlines(), 1):
        for word in filter(None, re.split(r"[\s,]+", line.partition("#")[0])):
            if match := _LINE.fullmatch(word):
                known.append((match[1], bytes.fromhex(match[2])))
            else:
                bad.append(number)
    return Lines(known=known, bad=bad)


def check(file: str | None) -> None:
    """Raises: ConfigError if an endpoint that starts has no keys, or a line is not a key's.
    file: None for the environment's."""
    where = VARIABLE if file is None else f"--keys {file}"
    try:
        problem = parse(_text(file)).problem
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    if problem:
        raise ConfigError(f"{where}: {problem}: make a key with `python -m serving key NAME`, or pass --no-auth, which "
                          "serves this machine only")


class Keys:
    """Who may ask, as the file says now.
    Lines that are damaged are left out; where no key is left, nobody is let in."""

    def __init__(self, file: str | None) -> None:
        """file: None for the environment's, which stays as it was when the process began."""
        self._file = file
        self._text: str | None = None
        self._lines, self._problem = Lines(), ""
        self._look_at = self._read_at = -math.inf
        self._look()

    @property
    def count(self) -> int:
        self._look()
        return len(self._lines.known)

    def name_of(self, key: str) -> str | None:
        """The name that a key was given; None if it is not known."""
        self._look()
        raw = key.encode(errors="surrogateescape")
        found = hashlib.sha256(raw).digest()
        name: str | None = None
        for known, each in self._lines.known:  # all of them, whichever it is
            if hmac.compare_digest(found, each):
                name = known
        return name

    def _look(self) -> None:
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + _LOOK_EVERY_S if self._file is not None else math.inf
        try:
            text = _text(self._file)
        except OSError as error:
            if now - self._read_at >= _GONE_S:
                self._text, self._lines = None, Lines()
                self._say(f"cannot be read ({error.strerror}): nobody is let in until it can be")
            return
        self._read_at = now
        if text != self._text:
            self._text, self._lines = text, parse(text)
        self._say(self._lines.problem)

    def _say(self, problem: str) -> None:
        if problem and problem != self._problem:
            _log.error("the keys of %s: %s (%d keys are known)", self._file or VARIABLE, problem,
                       len(self._lines.known))
        self._problem = problem


def _text(file: str | None) -> str:
    """Raises: OSError, also for what is not a file (to read a pipe would take forever)."""
    if file is None:
        return os.environ.get(VARIABLE, "")
    path = Path(file)
    if path.exists() and not path.is_file():
        raise OSError(0, "it is not a file", file)
    return path.read_bytes().decode(errors="replace")
