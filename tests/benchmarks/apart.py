"""Work in a process of its own, which answers with one line of JSON, such as its seconds and its memory."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import psutil

from cluster.connect import connect, disconnect
from cluster.core.documents import JsonObject
from tests.runs import ROOT

TIMEOUT_S = 900


def answer_of(module: str, *arguments: str, env: Mapping[str, str] = MappingProxyType({})) -> JsonObject:
    """What `python -m module arguments` answers. env: beside this process's environment."""
    done = subprocess.run([sys.executable, "-m", module, *arguments], cwd=ROOT, capture_output=True, text=True,
                          timeout=TIMEOUT_S, env={**os.environ, **env}, check=False)
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    return json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{")))


def answer_timed(work: Callable[[], None], *, cpus: int) -> None:
    """Answers with the seconds of a piece of work, and `grown`: the most bytes of memory that this process had more
    than before, sampled ten times a second. cpus: of a local cluster that it joins before, unless RAY_ADDRESS
    names another; 0: none."""
    if cpus:
        connect(None if "RAY_ADDRESS" in os.environ else "local", num_cpus=cpus)
    process, over = psutil.Process(), threading.Event()
    before = most = process.memory_info().rss

    def watch() -> None:
        nonlocal most
        while not over.wait(0.1):
            most = max(most, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    work()
    took = time.perf_counter() - began
    over.set()
    watcher.join()
    if cpus:
        disconnect()
    print(json.dumps({"seconds": took, "grown": most - before}))


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
