"""Clusters of this machine that do not start, or not to the end: what is said, and that nothing is left. Each has a
user's folder of its own."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from cluster.core.errors import ClusterError
from cluster.local import cluster as local
from cluster.local.processes import MARK
from tests.integration.test_cluster import RAY_VARIABLES, ROOT, cli, until


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in RAY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TRAINYARD_HOME", str(tmp_path))
    return tmp_path


def test_a_taken_port_is_said_at_once(own_home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = cli("up", "--dashboard-port", str(port))
    assert (done.returncode, done.stderr) == (2, f"port {port} of 127.0.0.1 is taken: pass another --dashboard-port, "
                                                 "or none\n")


def test_a_start_that_fails_halfway_leaves_nothing(own_home: Path) -> None:
    before = set(Path("/tmp").glob("trainyard-*"))
    starting = subprocess.Popen([sys.executable, "-m", "cluster", "up", "--nodes", "1"], stderr=subprocess.PIPE,
                                text=True,
                                cwd=ROOT)
    keeper = wait_for(lambda: [p for p in processes_of(own_home) if '"worker-1"' in " ".join(command_of(p))])[0]
    wait_for(lambda: [p for p in processes_of(own_home) if "gcs_server" in " ".join(command_of(p))])
    keeper.kill()
    _, said = starting.communicate(timeout=60)
    assert starting.returncode == 2
    assert said.startswith("node worker-1 did not start")
    assert local.current() is None
    assert processes_of(own_home) == []
    until(lambda: not [folder for folder in set(Path("/tmp").glob("trainyard-*")) - before if not in_use(folder)], 60)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_an_up_that_is_ended_halfway_leaves_nothing_or_what_down_finds(own_home: Path, number: signal.Signals) -> None:
    code = ("import signal, sys\nfrom cluster.__main__ import main\n"
            "signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored where the tests run below "
            "nohup\nsys.exit(main(['up']))")
    starting = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, start_new_session=True)
    try:
        wait_for(lambda: [p for p in processes_of(own_home) if "cluster.local.node" in command_of(p)])
        cluster = local.current()
        assert cluster is not None
        starting.send_signal(number)
        ended = starting.wait(timeout=60)
        if number == signal.SIGKILL:
            assert processes_of(own_home)
            assert local.down() > 0
        else:
            assert ended == 128 + number
        assert processes_of(own_home) == []
        assert local.current() is None
        assert not Path(cluster.folder).exists()
    finally:
        starting.kill()
        starting.wait()
        local.down()


def test_what_a_crash_has_left_does_not_keep_up_from_starting(own_home: Path) -> None:
    """One node, as `up` starts by default: the head has the CPUs."""
    first = local.up(cpus_per_node=1)
    try:
        assert [(node.name, node.num_cpus) for node in first.nodes] == [("head", 1)]
        left = first.processes()
        assert len(left) > 5
        for process in left:
            if process.pid in (first.nodes[0].process.pid, *first.nodes[0].pids.values()):
                process.kill()
        psutil.wait_procs(left[:1], timeout=60)
        done = cli("status")
        assert (done.returncode, done.stdout) == (2, "")
        folder = f"{first.folder}/head"
        assert done.stderr == (f"head ended by itself: the reason is in {folder}.log and {folder}/session_latest/logs. "
                               "Of the local cluster nothing is left: `python -m cluster down`, then `up` again\n")
        with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ClusterError, match="is taken"):
            local.up(dashboard_port=taken.getsockname()[1])
        assert first.processes() == []
        assert not Path(first.folder).exists()
        assert local.current() is None
    finally:
        local.down()


def wait_for(look: Callable[[], list[psutil.Process]], timeout_s: float = 60) -> list[psutil.Process]:
    deadline = time.monotonic() + timeout_s
    while not (found := look()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def processes_of(home: Path) -> list[psutil.Process]:
    """Those of clusters of this user's folder, and not of another one that starts meanwhile."""
    def of(process: psutil.Process) -> bool:
        try:
            environment = process.environ()
        except psutil.Error:
            return False
        return environment.get("TRAINYARD_HOME") == str(home) and MARK in environment

    return [process for process in psutil.process_iter() if of(process)]


def in_use(folder: Path) -> bool:
    return any(str(folder) in part for process in psutil.process_iter() for part in command_of(process))


def command_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
