"""Work in a process of its own, which answers with one line of JSON, such as its seconds and its memory."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from cluster.connect import connect, disconnect
from cluster.core.documents import JsonObject
from tests.runs import ROOT

TIMEOUT_S = 900


def answer_of(module: str, *arguments: str, path: str = "") -> JsonObject:
    """What `python -m module arguments` answers. path: a folder in which it finds more packages."""
    done = subprocess.run([sys.executable, "-m", module, *arguments], cwd=ROOT, capture_output=True, text=True,
                          timeout=TIMEOUT_S, env=os.environ | ({"PYTHONPATH": path} if path else {}), check=False)
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    return json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{")))


def answer_timed(work: Callable[[], None], *, with_ray: bool) -> None:
    """Answers with the seconds of a piece of work, and `grown`: the most bytes of memory that this process had more
    than before, sampled ten times a second. with_ray: connected to a local cluster of two cores, which is not timed."""
    if with_ray:
        connect("local", num_cpus=2)
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
    if with_ray:
        disconnect()
    print(json.dumps({"seconds": took, "grown": most - before}))


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
