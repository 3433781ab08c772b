"""Preflight and the room for workers, on real clusters: nodes that hang or see other storage, and a real autoscaler."""

import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

from cluster.capacity import Request, nodes, possible_workers, preflight
from cluster.connect import connect, disconnect
from cluster.core.errors import ClusterError, ResourceError, StorageError, TrainyardError
from cluster.core.network import free_port
from cluster.core.storage import Store
from cluster.local import cluster as local
from cluster.local.cluster import LocalCluster
from jobs.common.execution import ray_executor
from tests.kube_api import in_a_pod
from tests.kube_objects import autoscaling, group, raycluster
from tests.nodes import remove_node
from tests.s3 import BUCKET, s3_server


def request(workers: int, cpus: int = 1, gpus: int = 0) -> Request:
    return Request(num_workers=workers, cpus_per_worker=cpus, gpus_per_worker=gpus)


@contextmanager
def refused(kind: type[TrainyardError], message: str, within_s: float = 15) -> Iterator[None]:
    began = time.monotonic()
    with pytest.raises(kind, match=message) as caught:
        yield
    assert time.monotonic() - began < within_s
    assert len(str(caught.value).splitlines()) == 1


@contextmanager
def joined(patch: pytest.MonkeyPatch, home: Path, **options: object) -> Iterator[LocalCluster]:
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        patch.delenv(name, raising=False)
    patch.setenv("TRAINYARD_HOME", str(home))
    try:
        up = local.up(**options)  # type: ignore[arg-type]
        patch.undo()
        patch.setenv("TRAINYARD_HOME", str(home))
        connect(up.address)
        yield up
    finally:
        disconnect()
        local.down()


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """Before the cluster, whose nodes inherit where it is."""
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def up(s3: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A head without CPUs, through which this process works, and two nodes with two CPUs each."""
    with pytest.MonkeyPatch.context() as patch, joined(patch, tmp_path_factory.mktemp("home"), nodes=2,
                                                       cpus_per_node=2) as cluster:
        yield cluster


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path))


def test_what_can_be_passes_quickly_and_leaves_nothing(up: LocalCluster, store: Store) -> None:
    preflight(request(4), store, 0)  # starts a process on each node
    took: list[float] = []
    for _ in range(5):
        began = time.monotonic()
        preflight(request(4), store, 0)
        took.append(time.monotonic() - began)
    assert min(took) < 2  # 0.03 s on an idle machine
    assert store.files() == []
    assert store.folders() == []


def test_every_node_visits_an_object_store(up: LocalCluster) -> None:
    bucket = Store.open(f"s3://{BUCKET}/runs")
    preflight(request(1), bucket, 0)
    assert bucket.files() == []


@pytest.mark.parametrize(("wanted", "message"), [
    (request(5),
     r"needs 5 workers with 1 CPU each, the cluster has room for 4 and cannot grow: pass --run.workers 4, or"),
    (request(1, cpus=3),
     r"no node has that \(the most CPUs in one node: 2\) and cannot grow: pass --run.cpus-per-worker 2"),
    (request(2, gpus=1),
     r"needs 2 workers with 1 CPU and 1 GPU each, the cluster has no GPU and cannot grow: pass --run.gpus-per"),
])
def test_what_can_never_be_is_refused_at_once(up: LocalCluster, store: Store, wanted: Request, message: str) -> None:
    with refused(ResourceError, message):
        preflight(wanted, store, wait_s=60)
    assert store.folders() == []


def test_a_busy_cluster_is_waited_for_and_said_so(up: LocalCluster, store: Store) -> None:
    said: list[str] = []
    held = ray.util.placement_group([{"CPU": 1}] * 3)
    ray.get(held.ready())
    with refused(ResourceError,
                 r"needs 2 workers .* has room for 1 now and did not get more in 1 s: pass a longer --run.wait"):
        preflight(request(2), store, wait_s=1, say=said.append)
    assert said == ["waiting up to 1 s for 2 workers with 1 CPU each: the cluster is busy"]
    given_back: list[float] = []

    def give_back() -> None:
        given_back.append(time.monotonic())
        ray.util.remove_placement_group(held)

    threading.Timer(1, give_back).start()
    preflight(request(4), store, wait_s=120, say=said.append)
    assert given_back and time.monotonic() - given_back[0] < 60, (
        "it goes on when there is room, not when its time is over")
    preflight(request(4), store, wait_s=60)  # what was granted was given back


def test_storage_that_only_the_driver_sees_is_refused(up: LocalCluster, tmp_path: Path,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that means another folder in another process, as a local disk's does on another machine."""
    monkeypatch.chdir(tmp_path)
    with refused(StorageError,
                 r"on node worker-1 \(127.0.0.1\): storage /proc/self/cwd/runs on this node is not the storage "
                               r"that the driver sees, though its name is the same: use a folder that all nodes "
                                r"share, s3:// "
                               r"or gs:// \(--run.storage\)"):
        preflight(request(1), Store.open("/proc/self/cwd/runs"), 0)
    assert list(tmp_path.iterdir()) == []


def test_a_storage_server_that_never_answers_is_refused(up: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        deaf = Store.open(f"s3://{BUCKET}/x")
        with refused(StorageError, f"storage s3://{BUCKET}/x does not answer within"):
            preflight(request(1), deaf, 0)


def test_a_node_that_hangs_is_named(up: LocalCluster, store: Store) -> None:
    raylet = up.nodes[2].pids["raylet"]
    os.kill(raylet, signal.SIGSTOP)
    try:
        with refused(ClusterError, r"node worker-2 \(127.0.0.1\) does not answer, though the cluster"):
            preflight(request(1), store, 0)
    finally:
        os.kill(raylet, signal.SIGCONT)
    assert store.folders() == []


def test_a_driver_whose_own_node_hangs_is_told_so(up: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_executor, "CLAIM_TIMEOUT_S", 1.0)
    raylet = up.nodes[0].pids["raylet"]
    os.kill(raylet, signal.SIGSTOP)
    try:
        with refused(ClusterError, r"did not start a process within 1 s: look at it with `python -m cluster status`"):
            ray_executor.claim("/nowhere", "r")
    finally:
        os.kill(raylet, signal.SIGCONT)


@pytest.mark.in_order
def test_room_is_what_is_free_and_what_this_run_holds_on_live_nodes(up: LocalCluster) -> None:
    """Ends worker-2."""
    assert possible_workers(request(1)) == 4
    held = ray.util.placement_group([{"CPU": 1}] * 3, strategy="PACK")
    ray.get(held.ready())
    wait_until(lambda: possible_workers(request(1)) == 1)
    assert possible_workers(request(1), held=3) == 4
    assert possible_workers(request(1), held=1) == 2
    assert possible_workers(request(1, cpus=2), held=0) == 0
    remove_node("worker-2")
    wait_until(lambda: possible_workers(request(1), held=3) == 2)
    assert [(node.name, node.is_head, node.alive) for node in nodes()] == [
        ("head", True, True), ("worker-1", False, True), ("worker-2", False, False)]
    ray.util.remove_placement_group(held)


def wait_until(holds: object, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.1)


# ── Ray's own autoscaler (version 2, KubeRay's), with a provider that starts nodes on this machine ──
@pytest.mark.in_order
def test_an_autoscaler_counts_for_what_it_can_add(up: LocalCluster, store: Store, tmp_path: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    """At most three nodes of two CPUs, none of them up yet. Last: it leaves the other cluster."""
    disconnect()
    local.down()
    config, port = tmp_path / "autoscaler.yaml", free_port()
    config.write_text(json.dumps(_autoscaling(port)))
    for name, value in {
        "RAY_enable_autoscaler_v2": "1", "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID, "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
    }.items():
        monkeypatch.setenv(name, value)
    said: list[str] = []
    with joined(monkeypatch, tmp_path / "home", nodes=0, cpus_per_node=0, port=port, autoscaling_config=str(config)):
        wait_until(autoscaler_is_up)
        with refused(ResourceError,
                     r"needs 8 workers .* the autoscaler says that its node types can never hold that: ask"):
            preflight(request(8), store, wait_s=60, say=said.append)
        said.clear()
        preflight(request(3), store, wait_s=60, say=said.append)
        assert said[0] == "waiting up to 60 s for 3 workers with 1 CPU each: the autoscaler may add nodes"
        assert any(re.match(r"waiting: nodes on their way: \d of worker$", line) for line in said[1:]), said
        assert sum(node.alive and node.resources.get("CPU", 0) == 2 for node in nodes()) == 2
        assert possible_workers(request(1)) == 4
        with monkeypatch.context() as patch, in_a_pod(patch, tmp_path) as api:  # what KubeRay's pods can read besides
            api.put(raycluster(spec=autoscaling(group("worker", cpu="2", most=3))))
            what_a_ray_cluster_says_counts(store)


def what_a_ray_cluster_says_counts(store: Store) -> None:
    """What cannot be is known before any wait; what can be is waited for as long as is said."""
    said: list[str] = []
    listed = "group worker: at most 3 nodes with 2 CPUs"
    with refused(ResourceError,
                 rf"needs 8 workers .* can grow to 6 \({listed}\): pass --run.workers 6, or raise maxReplicas"):
        preflight(request(8), store, wait_s=60, say=said.append)
    assert said == []
    with refused(ResourceError, r"needs 6 workers .* has room for 4 now and did not get more in 0.5 s"):
        preflight(request(6), store, wait_s=0.5, say=said.append)
    assert said[0] == f"waiting up to 0.5 s for 6 workers with 1 CPU each: the autoscaler may add nodes ({listed})"


def autoscaler_is_up() -> bool:
    from cluster.capacity import autoscaled
    from cluster.core.control_store import Gcs

    return autoscaled(Gcs(ray.get_runtime_context().gcs_address))


def _autoscaling(port: int) -> dict[str, object]:
    return {
        "cluster_name": "test", "max_workers": 3, "upscaling_speed": 1.0, "idle_timeout_minutes": 5,
        "provider": {
            "type": "external", "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": f"127.0.0.1:{port}", "head_node_id": FAKE_HEAD_NODE_ID, "launch_multiple": True,
            "use_node_id_as_ip": True, "disable_node_updaters": True, "disable_launch_config_check": True,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": {"CPU": 2, "object_store_memory": 80_000_000}, "node_config": {}, "max_workers": 3},
        },
        "head_node_type": "ray.head.default", "auth": {}, "file_mounts": {},
        "setup_commands": [], "head_setup_commands": [], "worker_setup_commands": [], "initialization_commands": [],
        "head_start_ray_commands": [], "worker_start_ray_commands": [], "cluster_synced_files": [], "rsync_exclude": [],
        "rsync_filter": [], "file_mounts_sync_continuously": False,
    }


def test_messages_name_flags_that_exist() -> None:
    """Every `--run.x` in a remedy is a field of the run's configuration."""
    from jobs.common.config import RunConfig

    text = "".join((Path(__file__).parents[2] / "cluster" / name).read_text()
                   for name in ("capacity.py", "preflight.py"))
    named = {flag.replace("-", "_") for flag in re.findall(r"--run\.([a-z-]+)", text)}
    assert named
    assert named <= set(RunConfig.__dataclass_fields__)
