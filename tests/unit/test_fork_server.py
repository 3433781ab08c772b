"""Workers that are forked: each begins as a process of its own would, its end is noticed, and none is left."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobs.cnn.job import JOB as CNN
from jobs.common.execution.executors import ProcessExecutor
from jobs.common.execution.worker import WorkerSpec
from jobs.mlp.job import JOB as MLP
from jobs.transformer.job import JOB as TRANSFORMER

SEEN = """
import json, os, random, signal, sys, threading
from pathlib import Path
import numpy
signals = sorted(signal.valid_signals())
seen = {
    "signals": [str(signal.getsignal(number)) for number in signals], "wakeup": signal.set_wakeup_fd(-1),
    "blocked": list(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))), "threads": threading.active_count(),
    "folder": os.getcwd(), "environment": dict(os.environ), "path": sys.path, "input": os.readlink("/proc/self/fd/0"),
    "session": os.getsid(0) == os.getpid(), "draws": [random.random(), numpy.random.random()], "parent": os.getppid(),
}
sys.stdout.write(f"imported {VERSION}\\n")  # in one piece: two workers write
sys.stdout.flush()
Path(f"{os.getpid()}.part").write_text(json.dumps(seen))
os.rename(f"{os.getpid()}.part", f"{os.getpid()}.json")
"""
GIVEN = ("PYTHONPATH", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
OWN = {"draws", "parent"}


def write(folder: Path, version: int) -> None:
    """The module that the workers are given to train."""
    (folder / "seen_by_worker.py").write_text(f"VERSION = {version}\n{SEEN}\n\ndef train(session, config): ...\n")


def until(true: Callable[[], Any], timeout_s: float = 120.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := true()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write(tmp_path, 1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("AWS_REGION", f"region-{random.random()}")
    return tmp_path


@contextmanager
def group(workers: int = 2) -> Generator[ProcessExecutor]:
    executor = ProcessExecutor(1)
    spec = WorkerSpec(train="seen_by_worker:train", config_type="jobs.mlp.config:MlpConfig", config={}, run_uri="run",
                      config_fingerprint="f", dataset_uri="data")
    executor.start(spec, workers)
    try:
        yield executor
    finally:
        executor.rendezvous.abort()
        executor.end()


def pids(executor: ProcessExecutor) -> dict[int, int]:
    return {slot: worker.pid for slot, worker in executor.rendezvous.poll().registered.items()}


def both(executor: ProcessExecutor) -> dict[int, int]:
    return until(lambda: found if len(found := pids(executor)) == 2 else None)


def test_a_worker_begins_as_a_process_of_its_own_would(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with group() as executor:
        found = [json.loads((folder / f"{pid}.json").read_text()) for pid in both(executor).values()]
        tasks = list(Path(f"/proc/{found[0]['parent']}/task").iterdir())
    assert len(tasks) == 1, "a fork is safe where one thread runs"
    assert capfd.readouterr().out == "imported 1\n" * 2
    fresh = subprocess.run(
        [sys.executable, "-c", "import os, seen_by_worker; print(os.getpid())"], stdin=subprocess.DEVNULL, text=True,
        env=os.environ | {name: found[0]["environment"][name] for name in GIVEN}, cwd=folder, start_new_session=True,
        capture_output=True, check=True,
    )
    expected = json.loads((folder / f"{fresh.stdout.split()[-1]}.json").read_text())
    expected["path"][0] = str(folder)  # `python -c` has it as ''
    same = expected.keys() - OWN
    for seen in found:
        assert {name: seen[name] for name in same} == {name: expected[name] for name in same}
    assert found[0]["parent"] == found[1]["parent"]
    assert len({draw for seen in (*found, expected) for draw in seen["draws"]}) == 6, "each draws its own numbers"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_worker_that_dies_is_replaced(folder: Path, number: int) -> None:
    with group() as executor:
        before = both(executor)
        os.kill(before[0], number)
        until(lambda: not psutil.pid_exists(before[0]))
        until(lambda: executor.maintain() or pids(executor)[0] != before[0])
        assert pids(executor)[1] == before[1] and psutil.pid_exists(before[1]), "the other one lives on"
        assert not executor.ended()


def test_a_group_whose_server_dies_is_started_again(folder: Path) -> None:
    with group() as executor:
        before = both(executor)
        psutil.Process(before[0]).parent().kill()  # type: ignore[union-attr]
        until(lambda: executor.maintain() or not set(pids(executor).values()) & set(before.values()))
        assert not any(map(runs, before.values()))


def runs(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def test_a_worker_that_is_told_to_go_ends_and_is_not_replaced(folder: Path) -> None:
    with group() as executor:
        before = both(executor)
        executor.rendezvous.abort()
        until(executor.ended)
        executor.maintain()
        assert executor.ended() and not any(map(runs, before.values()))


def test_end_leaves_nothing_not_even_what_is_stopped(folder: Path) -> None:
    with group() as executor:
        before = both(executor)
        server = psutil.Process(before[0]).ppid()
        os.kill(before[0], signal.SIGSTOP)
        executor.rendezvous.abort()
        executor.end()
        assert not any(map(psutil.pid_exists, (server, *before.values())))
        assert executor.ended()


def test_code_that_changed_between_two_groups_is_the_new_one(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for version in (1, 22):
        write(folder, version)
        with group() as executor:
            both(executor)
        assert capfd.readouterr().out == f"imported {version}\n" * 2


DRIVER = """
import time
from tests.unit.test_fork_server import both, group
with group() as executor:
    print(*both(executor).values(), flush=True)
    time.sleep(1000)
"""


def test_nothing_is_left_of_a_driver_that_is_killed(folder: Path) -> None:
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", DRIVER], stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL,
                          env=os.environ | {"PYTHONPATH": f"{root}:{folder}"}) as driver:
        try:
            assert driver.stdout is not None
            line = until(lambda: next((line for line in driver.stdout or () if "imported" not in line), None))
            workers = [psutil.Process(int(pid)) for pid in line.split()]
            left = [workers[0].parent(), *workers]
        finally:
            driver.kill()
        until(lambda: not any(process is not None and runs(process.pid) for process in left))


THREADS = """
import os, sys
from jobs.common.execution.fork_server import _import
before = dict(os.environ)
_import(sys.argv[1:])
assert os.environ == before
assert all(module in sys.modules for module in sys.argv[1:])
assert not {"tensorflow", "torch._dynamo", "triton"} & set(sys.modules)
print(len(os.listdir("/proc/self/task")))
"""


@pytest.mark.parametrize("preload", [CNN.preload, MLP.preload, TRANSFORMER.preload], ids=["cnn", "mlp", "transformer"])
def test_what_is_imported_beforehand_starts_no_thread(preload: list[str]) -> None:
    """But OpenBLAS's, which ends at a fork (above)."""
    done = subprocess.run([sys.executable, "-c", THREADS, *preload], env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
                          cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("1\n", 0), done.stderr
