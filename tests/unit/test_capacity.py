"""cluster/capacity.py and cluster/preflight.py, as far as they need no cluster: arithmetic and messages."""

import ctypes
import os
import platform
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray

from cluster import capacity
from cluster import preflight as node_probe
from cluster.capacity import Request, preflight
from cluster.core.control_store import Node, within
from cluster.core.errors import ClusterError, ConfigError, StorageError
from cluster.core.storage import Store
from cluster.preflight import Trace, Visit, check_own_node, check_storage, check_versions, remove_traces, versions


def node(cpus: float, gpus: float = 0) -> Node:
    return Node(node_id="ab", name="n", ip="10.0.0.1", port=1, alive=True, is_head=False,
                resources={"CPU": cpus, "GPU": gpus})


def request(workers: int, cpus: int = 1, gpus: int = 0) -> Request:
    return Request(num_workers=workers, cpus_per_worker=cpus, gpus_per_worker=gpus)


@pytest.mark.parametrize(("wanted", "nodes", "room"), [
    (request(1), [node(2), node(3)], 5),
    (request(1, cpus=2), [node(3), node(3)], 2),  # a worker does not lie in two nodes
    (request(1, cpus=4), [node(3), node(3)], 0),
    (request(1, cpus=1, gpus=1), [node(8, 2), node(8)], 2),
    (request(1, cpus=4, gpus=1), [node(6, 2)], 1),
    (request(1), [node(2.9999999999)], 3),  # what is free is a sum of fractions
    (request(1), [], 0),
])
def test_workers_are_counted_node_by_node(wanted: Request, nodes: list[Node], room: int) -> None:
    assert capacity._fits(wanted, (n.resources for n in nodes)) == room


@pytest.mark.parametrize(("wanted", "nodes", "remedy"), [
    (request(4), [node(2)], "pass --run.workers 2, or add nodes"),
    (request(1, cpus=4), [node(2), node(3)], "pass --run.cpus-per-worker 3, or add larger nodes"),
    (request(1, gpus=1), [node(2)], "pass --run.gpus-per-worker 0, or add nodes with GPUs"),
    (request(3, gpus=1), [node(2, 1)], "pass --run.workers 1, or add nodes"),
    (request(1), [node(0)], "add nodes with CPUs"),
])
def test_the_remedy_is_the_nearest_request_that_can_be_met(wanted: Request, nodes: list[Node], remedy: str) -> None:
    assert capacity._remedy(wanted, nodes) == remedy


def test_a_request_reads_as_a_sentence() -> None:
    assert str(request(2)) == "2 workers with 1 CPU each"
    assert str(request(1, 4, 1)) == "1 worker with 4 CPUs and 1 GPU each"


def test_mixed_versions_are_named_with_their_nodes() -> None:
    same = Visit(ray=ray.__version__, python=platform.python_version(), problem=None)
    check_versions({"a": same})
    other = Visit(ray="2.59.0", python="3.12.1", problem=None)
    with pytest.raises(ClusterError,
                       match=r"node b \(10.0.0.2\) runs Ray 2\.59\.0 and Python 3\.12\.1, this process .*install"):
        check_versions({"a": same, "b (10.0.0.2)": other})


def test_a_check_of_storage_leaves_no_trace(tmp_path: Path) -> None:
    with remove_traces(Store.open(str(tmp_path))) as trace:
        check_storage(trace)
        assert len(list(tmp_path.rglob("driver"))) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_check_that_fails_takes_back_the_folders_it_made(tmp_path: Path) -> None:
    with pytest.raises(ClusterError), remove_traces(Store.open(str(tmp_path / "new" / "er"))) as trace:
        check_storage(trace)
        raise ClusterError
    assert list(tmp_path.iterdir()) == []


def test_a_check_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(ClusterError), remove_traces(Store.open(str(tmp_path))) as trace:
        check_storage(trace)
        raise ClusterError
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("place", ["/proc/nothing/here", "/etc/passwd/x", "/dev/null"])
def test_storage_that_cannot_be_is_said_so(place: str) -> None:
    with pytest.raises(StorageError, match=f"storage {place} "), remove_traces(Store.open(place)) as trace:
        check_storage(trace)


def test_a_node_that_sees_another_folder_says_so_and_writes_nothing(tmp_path: Path) -> None:
    visit = node_probe._visit(Trace(Store.open(str(tmp_path)), "check", "secret"), "ab")
    assert (visit.ray, visit.python) == (ray.__version__, platform.python_version())
    assert visit.problem is not None
    assert visit.problem.startswith(f"storage {tmp_path} on this node is not the storage that the driver sees, though")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["CLOUDPICKLE_TENSOR_METADATA", "PYEXTENSIONTYPE", "PICKLE_OBJECT_SCALAR"])
def test_a_driver_or_node_on_which_ray_would_unpickle_data_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable, store = f"RAY_DATA_AUTOLOAD_{name}", Store.open(str(tmp_path))
    monkeypatch.setenv(variable, "0")
    assert node_probe.unsafe_setting() is None
    monkeypatch.setenv(variable, "1")
    says = f"{variable} is set, with which Ray runs code that a data file holds: unset it"
    with pytest.raises(ConfigError, match=says):
        preflight(Request(num_workers=1, cpus_per_worker=1), store, 0)
    assert says in str(node_probe._visit(Trace(store, "check", "secret"), "ab").problem)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def denied(tmp_path: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    (folder / "check").mkdir()
    (folder / "check" / "driver").write_text("secret")
    for path in (folder, folder / "check"):
        path.chmod(0o555)
    ctypes.CDLL(None).setfsuid(65534 if os.geteuid() == 0 else os.geteuid())  # root looks at files as another user
    yield folder
    ctypes.CDLL(None).setfsuid(os.geteuid())
    for path in (folder, folder / "check"):
        path.chmod(0o755)
    (folder / "check" / "driver").unlink()
    (folder / "check").rmdir()
    folder.rmdir()


def test_a_node_that_may_read_and_not_write_says_so(denied: Path) -> None:
    problem = node_probe._visit(Trace(Store.open(str(denied)), "check", "secret"), "ab").problem
    assert problem is not None
    assert problem.startswith(f"storage {denied} cannot be written")


def test_a_deadline_leaves_a_hanging_call_behind() -> None:
    release = threading.Event()
    with pytest.raises(ClusterError, match="late"):
        within(0.05, release.wait, ClusterError("late"))
    release.set()
    assert within(5, lambda: 7, ClusterError("late")) == 7
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 // 0, ClusterError("late"))


@dataclass(frozen=True)
class Hangs(Store):
    """Storage on which nothing ends, as a mount whose server is gone."""

    def exists(self, path: str) -> bool:
        return threading.Event().wait()

    def delete_folder(self, path: str) -> None:
        threading.Event().wait()


def test_storage_that_hangs_when_it_is_looked_at_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_probe, "_LOOK_TIMEOUT_S", 0.1)
    with monkeypatch.context() as patch, pytest.raises(StorageError,
                                                       match=f"storage {tmp_path} does not answer within 0.1 s"):
        patch.setattr(Path, "exists", lambda self: threading.Event().wait())
        with remove_traces(Store.open(str(tmp_path))):
            pass


@pytest.mark.parametrize("kind", [Hangs, Store])
def test_removing_what_a_check_wrote_has_an_end(kind: type[Store], tmp_path: Path,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_probe, "REMOVE_TIMEOUT_S", 0.1)
    store = Store.open(str(tmp_path / "new"))
    began = time.monotonic()
    with monkeypatch.context() as patch, pytest.raises(ClusterError, match="as it was"):
        patch.setattr(Path, "rmdir", lambda self: threading.Event().wait())
        with remove_traces(kind(store.uri, store._fs, store._root)):
            raise ClusterError("as it was")
    assert time.monotonic() - began < 30  # what hangs does so for ever


# ── a worker, on the node where it starts ──
def test_a_worker_that_starts_where_all_is_well_leaves_no_trace(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    check_own_node(Store.open(str(tmp_path)), "run.json", versions(), "n")
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_worker_on_a_node_that_came_later_finds_out_itself(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    with pytest.raises(StorageError, match=rf"^on node n: storage {tmp_path} on this node is not the storage that the"):
        check_own_node(store, "run.json", versions(), "n")
    with pytest.raises(ClusterError,
                       match=r"^node n runs Ray .* and Python .*, the driver Ray 1\.2\.3 and Python 3\.9"):
        check_own_node(store, "run.json", {"Ray": "1.2.3", "Python": "3.9.0"}, "n")
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_may_not_write_says_so(denied: Path) -> None:
    with pytest.raises(StorageError, match=f"^on node n: storage {denied} cannot be written"):
        check_own_node(Store.open(str(denied)), "check/driver", versions(), "n")


def test_looking_for_what_nodes_wrote_has_an_end(tmp_path: Path) -> None:
    node = Node(node_id="0f", name="a", ip="10.0.0.1", port=1, alive=True, is_head=False, resources={})
    store = Store.open(str(tmp_path))
    (tmp_path / "check").mkdir()
    assert node_probe._unseen(Trace(store, "check", "secret"), [node], 1.0) == [node]
    (tmp_path / "check" / "0f").write_text("secret")
    assert node_probe._unseen(Trace(store, "check", "secret"), [node], 1.0) == []
    with pytest.raises(StorageError, match="does not answer within 0"):
        node_probe._unseen(Trace(Hangs(store.uri, store._fs, store._root), "check", "secret"), [node], 0.1)


def test_all_checks_fit_into_what_preflight_promises() -> None:
    assert capacity._CHECKS_S + node_probe.REMOVE_TIMEOUT_S <= 14.5
