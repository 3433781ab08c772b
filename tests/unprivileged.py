"""A user without capabilities, as every pod of k8s/ and every ordinary user of a cluster is one,
for tests that root runs as well.

    with unprivileged.user() as user:
        env = newcomer.environment(user.folder / "home")
        done = contained.run(user.runs("make", "demo"), cwd=newcomer.clone(user.folder / "tree"), env=env, …)
    unprivileged.require_none(done.output)

CI runs as root, whom the system refuses nothing. So a command is run as the first of these users that can run this
interpreter: another one; root under another number, without capabilities (a user namespace: where Python is in root's
own home folder); root without capabilities (a container that may make no namespaces).
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

_UID = 10001
"""Of nobody."""
_BARE = ("setpriv", "--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all", "--no-new-privs")
WAYS = {
    "another user": (*_BARE, f"--reuid={_UID}", f"--regid={_UID}", "--clear-groups"),
    "root under another number": ("unshare", "--user", f"--map-user={_UID}", f"--map-group={_UID}", "setpriv",
                                  "--no-new-privs"),
    "root without capabilities": (*_BARE, "--securebits=+noroot,+noroot_locked"),
}
_CHECK = r"""
import os, re, sys
with open("/proc/self/status") as file:
    status = file.read()
assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE) and re.search(r"^CapPrm:\s+0+$", status, re.MULTILINE)
os.setpriority(os.PRIO_PROCESS, 0, 15)
try:
    os.setpriority(os.PRIO_PROCESS, 0, 10)
except PermissionError:
    print(sys.base_prefix, end="")
"""


@dataclass(frozen=True)
class User:
    """folder: is theirs, for temporary files too."""

    folder: Path

    def runs(self, *command: str) -> list[str]:
        """The command as this user runs it, who owns all that is in the folder by now.
        Its first line says what it may do."""
        if way() == WAYS["another user"]:
            subprocess.run(["chown", "-hR", f"{_UID}:{_UID}", self.folder], check=True)
        start = 'grep ^CapEff: /proc/self/status && TMPDIR="$0" exec "$@"'
        return [*(way() or ()), "sh", "-c", start, str(self.folder), *command]


@contextmanager
def user() -> Iterator[User]:
    """The folder goes when the block ends. It is none of pytest's, which are closed to other users.
    Skips where there is no way."""
    if way() is None:
        pytest.skip(f"none of {', '.join(WAYS)} runs {sys.executable} without capabilities here")
    folder = Path(tempfile.mkdtemp(prefix="unprivileged-"))
    try:
        yield User(folder)
    finally:
        shutil.rmtree(folder)


def require_none(output: str) -> None:
    """Raises: AssertionError if what a User ran had a capability."""
    assert re.match(r"CapEff:\s+0{16}\n", output), output[:200]


@cache
def way() -> Sequence[str] | None:
    """What goes before a command: nothing where the tests do not run as root. None: there is no way."""
    ways = [(), *WAYS.values()] if os.geteuid() else list(WAYS.values())
    return next((way for way in ways if is_one(way)), None)


def is_one(way: Sequence[str]) -> bool:
    """Whether this interpreter and its library run so, without any capability. It is started by a process that has none
    either: the one that gives them up can still open what is closed to the other."""
    try:
        done = subprocess.run([*way, "sh", "-c", '"$0" -c "$1"', sys.executable, _CHECK], capture_output=True,
                              text=True, cwd="/",
                              check=False)
    except OSError:  # there is no such program
        return False
    return done.stdout == sys.base_prefix
