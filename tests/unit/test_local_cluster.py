"""cluster/local/cluster.py without a Ray of its own: what a start that was cut off leaves,
and starts that are refused."""

import argparse
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster import commands
from cluster.__main__ import main
from cluster.core import auth
from cluster.core.errors import ClusterError
from cluster.local import cluster as local
from cluster.local import launch
from cluster.local.launch import await_ready, end_processes
from cluster.local.node import NodeSpec, _parameters, _patient
from cluster.local.processes import MARK, Process
from cluster.monitoring import status
from tests.clock import Clock

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("RAY_ADDRESS", *auth.AUTH_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TRAINYARD_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    """`up` sets its own."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, action in before.items():
        signal.signal(number, action)


@pytest.fixture
def cut_off() -> Iterator[local.LocalCluster]:
    """What a killed `up` leaves: a saved cluster without nodes, and its folder."""
    cluster = local._new_cluster()
    local._save(cluster)
    yield cluster
    shutil.rmtree(cluster.folder, ignore_errors=True)


KEEPER = """
import signal, subprocess, sys, time
child = subprocess.Popen(["sleep", "100"], env={}, start_new_session=True)  # a Ray worker carries no mark either

def end(*_):
    print("told", flush=True)
    child.kill()
    child.wait()
    sys.exit()

signal.signal(signal.SIGTERM, end)
print(child.pid, flush=True)
time.sleep(100)
"""


def test_down_ends_the_nodes_of_a_start_that_was_cut_off(cut_off: local.LocalCluster) -> None:
    keeper = subprocess.Popen([sys.executable, "-c", KEEPER, "cluster.local.node"], stdout=subprocess.PIPE, text=True,
                              env={**os.environ, MARK: cut_off.cluster_id})
    assert keeper.stdout is not None
    child = psutil.Process(int(keeper.stdout.readline()))
    try:
        assert {process.pid for process in cut_off.processes()} == {keeper.pid, child.pid}
        assert local.down() == 2
        assert keeper.communicate(timeout=5)[0] == "told\n"
        assert not Path(cut_off.folder).exists()
        assert local.current() is None
    finally:
        keeper.kill()


@pytest.mark.parametrize(("flags", "message"), [
    (["--dashboard-host", "10.9.9.9"],
     "--dashboard-host 10.9.9.9 cannot be listened on (Cannot assign requested address): give"),
    (["--dashboard-host", "no-such-host.invalid"], "--dashboard-host no-such-host.invalid cannot be listened on ("),
    (["--dashboard-host", "no-such-host.invalid", "--dashboard-port", "8270"],
     "--dashboard-host no-such-host.invalid cannot"),
    (["--dashboard-host", ""], "--dashboard-host  cannot be listened on"),
    (["--port", "70000"], "--port 70000 is no port: give one of 1 to 65535, or none"),
    (["--dashboard-port", "70000"], "--dashboard-port 70000 is no port"),
])
def test_what_cannot_be_listened_on_is_one_message(
        flags: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "mkdtemp", lambda **_: pytest.fail("a folder was made"))
    assert main(["up", *flags]) == 2
    said = capsys.readouterr().err
    assert said.startswith(message)
    assert len(said.splitlines()) == 1
    assert local.current() is None


def test_a_failure_before_the_first_node_leaves_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def fail(num_nodes: int) -> int:
        cluster = local.current()
        assert cluster is not None
        made.append(cluster.folder)
        raise OSError("no shared memory")

    monkeypatch.setattr(local, "object_store_bytes", fail)
    with pytest.raises(OSError, match="no shared memory"):
        local.up()
    assert [Path(folder).exists() for folder in made] == [False]
    assert local.current() is None


def test_a_start_that_fails_in_this_process_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node's log outlives the node."""
    monkeypatch.setenv("TRAINYARD_HOME", str(tmp_path))
    monkeypatch.setattr(local, "object_store_bytes", lambda _: 1)
    made: list[local.LocalCluster] = []
    monkeypatch.setattr(local, "_new_cluster", lambda new=local._new_cluster: made.append(new()) or made[-1])
    with pytest.raises(ClusterError, match=r"node head did not start; the end of its log:\n(.*\n)*.*object store"):
        local.bound_head(1)
    assert not Path(made[0].folder).exists()


@pytest.mark.parametrize(("host", "where"), [
    ("127.0.0.1", "127.0.0.1:8265"), ("0.0.0.0", "127.0.0.1:8265"), ("10.0.0.5", "10.0.0.5:8265"),
    ("fd00::5", "[fd00::5]:8265"),
])
def test_a_dashboard_is_said_to_be_where_it_listens(host: str, where: str) -> None:
    spec = NodeSpec(name="head", address="127.0.0.1:1", folder="/f", is_head=True, num_cpus=1, object_store_bytes=1,
                    dashboard_host=host)
    assert spec.dashboard_at("127.0.0.1:8265") == where


def test_the_dashboard_host_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[NodeSpec] = []

    def start(specs: list[NodeSpec], cluster: local.LocalCluster, timeout_s: float) -> list[local.LocalNode]:
        started.extend(specs)
        raise ClusterError("far enough")

    monkeypatch.setattr(local, "_start", start)  # real nodes take seconds
    assert main(["up", "--nodes", "1", "--dashboard-host", "0.0.0.0"]) == 2
    assert [(spec.name, _parameters(spec).get("dashboard_host")) for spec in started] == [("head", "0.0.0.0"),
                                                                                          ("worker-1", None)]


def test_a_cluster_without_nodes_is_said_to_be_cut_off(cut_off: local.LocalCluster) -> None:
    assert (local.current(), cut_off.dashboard_url) == (cut_off, "")
    for command in (commands.env, commands.status):
        with pytest.raises(ClusterError, match=r"its start was cut off: .*`python -m cluster down`"):
            command(argparse.Namespace(address=None, kubernetes=None, namespace=None, context=None))
    assert local.CUT_OFF in status._node_problems([], cut_off)
    assert local.down() == 0
    assert not Path(cut_off.folder).exists()


def starting(folder: Path) -> NodeSpec:
    """A node that starts, in a folder like Ray's; its log is empty."""
    spec = NodeSpec(name="head", address="127.0.0.1:1", folder=str(folder), is_head=True, num_cpus=1,
                    object_store_bytes=1)
    spec.ray_logs.mkdir(parents=True)
    spec.log_file.touch()
    return spec


def test_a_start_is_waited_for_while_it_gets_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, clock, began = starting(tmp_path), Clock(), 1000.0

    def go_on(_: float) -> None:
        """In place of a look's sleep: half a minute passes, in which a log more appears,
        and after ten the node is there."""
        clock.now += 30.0
        (spec.ray_logs / f"{clock.now}.log").touch()
        if clock.now > began + 600:
            spec.ready_file.write_text(json.dumps({"node_id": "0f", "session_dir": "", "pids": {},
                                                   "dashboard_url": ""}))

    monkeypatch.setattr(clock, "sleep", go_on)
    monkeypatch.setattr(launch, "time", clock)
    assert await_ready(spec, Process.of(os.getpid()), timeout_s=60.0).node_id == "0f"


def test_a_start_that_gets_no_further_is_given_up_with_what_ray_logged_last(tmp_path: Path) -> None:
    spec = starting(tmp_path)
    (spec.ray_logs / "gcs_server.out").write_text("one\ntwo\n")
    (spec.ray_logs / "raylet.err").touch()
    with pytest.raises(ClusterError, match=r"got no further for 0\.1 s .*--start-timeout-s\); the end of its log:\n"
                                           r"  gcs_server\.out:\n  one\n  two$"):
        await_ready(spec, Process.of(os.getpid()), timeout_s=0.1)
    (spec.ray_logs / "gcs_server.out").unlink()
    with pytest.raises(ClusterError, match="nothing has been logged: its process is still loading Ray"):
        await_ready(spec, Process.of(os.getpid()), timeout_s=0.1)


def test_a_raylet_that_is_slow_to_join_is_waited_for_while_it_lives() -> None:
    asked: list[str] = []

    def get_node(address: str, node_id: str) -> str:
        asked.append(node_id)
        if len(asked) < 4:
            raise RuntimeError("no node info")
        return "there"

    assert _patient(get_node)("127.0.0.1:1", "0f") == "there"
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    asked.clear()
    with pytest.raises(RuntimeError, match="no node info"):
        _patient(get_node)("127.0.0.1:1", "0f")
    child.wait()


TAKEN_FOR_DEAD = ("[2026-11-29 10:53:54,000 C 1 1] (raylet) node_manager.cc:1010: [Timeout] Exiting because this node "
                  "manager has mistakenly been marked as dead by the GCS: GCS failed to check the health of this node")


def test_status_says_of_a_cluster_that_ended_why_and_what_to_do(cut_off: local.LocalCluster) -> None:
    """Ray's own text stays in its log."""
    log = Path(cut_off.folder) / "head/session_latest/logs/raylet.out"
    log.parent.mkdir(parents=True)
    log.write_text(TAKEN_FOR_DEAD)
    dead, alive = Process(pid=os.getpid(), started=0.0), Process.of(os.getpid())
    nodes = [local.LocalNode(name=name, node_id="0f", num_cpus=1, process=process, pids={}) for name, process in
             (("head", dead), ("worker-1", alive))]
    local._save(dataclasses.replace(cut_off, nodes=tuple(nodes)))
    said = (r"^head ended by itself: nothing was heard of it for so long that the control store took it for dead .*; "
            rf"Ray's own words are in {log}\. Of the local cluster worker-1 is left: `python -m cluster down`, then")
    with pytest.raises(ClusterError, match=said):
        commands.status(argparse.Namespace(address=None, kubernetes=None, namespace=None, context=None))
    local._save(cut_off)  # this process is none of a cluster's


def test_what_cannot_be_ended_is_named(cut_off: local.LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(self: psutil.Process) -> None:
        raise psutil.AccessDenied(self.pid)

    monkeypatch.setattr(psutil.Process, "kill", deny)  # as for another user's; this test may run as root
    left = subprocess.Popen(["sleep", "100"], env={MARK: cut_off.cluster_id})
    try:
        with pytest.raises(ClusterError, match=rf"^processes {left.pid} of the cluster did not end within 0\.3 s: "):
            end_processes([], Path(cut_off.folder), cut_off.cluster_id, timeout_s=0.3)
        monkeypatch.undo()
        end_processes([], Path(cut_off.folder), cut_off.cluster_id)
    finally:
        left.kill()
        left.wait()


def test_a_temporary_folder_whose_sockets_would_have_too_long_a_path_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with pytest.raises(ClusterError,
                       match=r"TMPDIR is .*x, of \d+ characters: .* set TMPDIR to a folder of 75 or fewer"):
        local.up()
    with socket.socket(socket.AF_UNIX) as listener, pytest.raises(OSError, match="AF_UNIX path too long"):
        listener.bind(f"{folder}/pymp-12345678/listener-12345678")
