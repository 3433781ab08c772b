"""cluster/local.py without a Ray of its own: what a start that was cut off leaves, and starts that are refused."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from cluster import auth, commands, local, status
from cluster.errors import ClusterError
from cluster.owned import MARK

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("RAY_ADDRESS", *auth.AUTH_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TRAINYARD_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def cut_off() -> local.LocalCluster:
    """What a killed `up` leaves: a saved cluster without nodes, and its folder."""
    cluster = local._new_cluster()
    local._save(cluster)
    return cluster


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
    keeper = subprocess.Popen([sys.executable, "-c", KEEPER, "cluster.node"], stdout=subprocess.PIPE, text=True,
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


def test_a_cluster_without_nodes_is_said_to_be_cut_off(cut_off: local.LocalCluster) -> None:
    assert (local.current(), cut_off.dashboard_url) == (cut_off, "")
    for command in (commands.env, commands.status):
        with pytest.raises(ClusterError, match=r"its start was cut off: .*`python -m cluster down`"):
            command(argparse.Namespace(address=None))
    with pytest.raises(ClusterError, match="its start was cut off"):
        local.add_node(1)
    assert local.CUT_OFF in status._node_problems([], cut_off)
    assert local.down() == 0
    assert not Path(cut_off.folder).exists()
