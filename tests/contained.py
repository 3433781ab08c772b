"""Runs a command, and knows and ends every process that it leaves behind,
also when the test that asked for it is killed.

    done = contained.run(["bash", "-e", "script.sh"], cwd=…, env=…, timeout_s=…)

The command runs below a process of its own that adopts its orphans (Linux: a child subreaper), so that not even a
daemon gets away, and that ends them all when it is told to end or when its own parent dies.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil

_SET_PARENT_DEATH_SIGNAL, _SET_CHILD_SUBREAPER = 1, 36
_SETTLE_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Done:
    """How a command ended. left: the command lines of what was still running 10 s after it."""

    code: int
    output: str
    left: list[str]


def run(command: Sequence[str], *, cwd: Path, env: Mapping[str, str], timeout_s: float, scratch: Path) -> Done:
    """stdout and stderr together go to `scratch`/output. Raises: subprocess.TimeoutExpired, after ending everything."""
    scratch.mkdir(parents=True, exist_ok=True)
    with (scratch / "output").open("wb") as output:
        keeper = subprocess.Popen([sys.executable, "-P", __file__, str(scratch / "left.json"), *command], cwd=cwd,
                                  env=dict(env),
                                  stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
    try:
        code = keeper.wait(timeout_s)
    except BaseException:
        print((scratch / "output").read_text(errors="replace"))
        keeper.terminate()
        keeper.wait(_SETTLE_S + 30)
        raise
    text = (scratch / "output").read_text(errors="replace")
    return Done(code=code, output=text, left=json.loads((scratch / "left.json").read_text()))


def main() -> int:
    """`contained.py LEFT.json COMMAND…`: the command's exit code."""
    libc = ctypes.CDLL(None, use_errno=True)
    signal.signal(signal.SIGTERM, _give_up)
    libc.prctl(_SET_CHILD_SUBREAPER, 1)
    libc.prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
    settle_s = 0.0
    try:
        code = subprocess.Popen(sys.argv[2:]).wait()
        settle_s = _SETTLE_S
        return code
    finally:
        left = _running(settle_s)
        Path(sys.argv[1]).write_text(json.dumps([_command_line(process) for process in left]))
        while left:
            for process in left:
                _kill(process)
            left = _running(0)


def _give_up(number: int, frame: FrameType | None) -> None:
    """Once: whoever ends a group of processes tells this one, and so does the end of its parent."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + number)


def _running(settle_s: float) -> list[psutil.Process]:
    """What is still running below this process, after it was given some time to end."""
    deadline = time.monotonic() + settle_s
    while True:
        _reap()
        left = [process for process in psutil.Process().children(recursive=True) if _runs(process)]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.1)


def _reap() -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _kill(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.kill()


def _command_line(process: psutil.Process) -> str:
    try:
        return f"{process.pid} {' '.join(process.cmdline())}"
    except psutil.Error:
        return str(process.pid)


if __name__ == "__main__":
    sys.exit(main())
