"""Visits every node with a small task: does it see the storage as the driver does,
and does it run the same versions?"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import contextlib
import importlib.metadata
import os
import platform
import time
import uuid
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.core.auth import no_home
from cluster.core.control_store import Node, silent_nodes, within
from cluster.core.errors import ClusterError, StorageError, StorageFullError
from cluster.core.storage import Store
from cluster.core.tls_remedy import tls_remedy

# pyarrow gives up an S3 server after 6 s (it refuses) or 7 (its certificate), and then says why
STORAGE_TIMEOUT_S = 8.0
REMOVE_TIMEOUT_S = 2.0
_LOOK_TIMEOUT_S = 3.0
_LAST_LOOK_S = 1.0
_DRIVER = "driver"
_OFF = ("", "0", "false")


@dataclass(frozen=True)
class Trace:
    """A folder of the store, for the time of a check. secret: what the driver writes and each node must read."""

    store: Store
    folder: str
    secret: str

    def path(self, who: str) -> str:
        return f"{self.folder}/{who}"


@dataclass(frozen=True, kw_only=True)
class Visit:
    """What a task found on its node. problem: with the storage or the environment there; None if there is none."""

    ray: str
    python: str
    problem: str | None


@contextmanager
def remove_traces(store: Store) -> Generator[Trace]:
    """Whatever a check has written is removed after it;
    so are the store's own folders, if it fails and they were not there.

    Removing takes REMOVE_TIMEOUT_S at most; what hangs stays. Raises: StorageError if the storage hangs from the start.
    """
    trace = Trace(store, f".trainyard-check-{uuid.uuid4().hex[:12]}", uuid.uuid4().hex)
    made = within(_LOOK_TIMEOUT_S, lambda: _missing_folders(store), _late(store, _LOOK_TIMEOUT_S))
    try:
        yield trace
    except BaseException:
        _remove(trace, made)
        raise
    _remove(trace, [])


def check_storage(trace: Trace) -> None:
    """Raises: StorageError within STORAGE_TIMEOUT_S if this process cannot write to the storage and read it back."""
    late = _late(trace.store, STORAGE_TIMEOUT_S)
    problem = within(STORAGE_TIMEOUT_S, lambda: _write_and_read(trace, _DRIVER), late)
    if problem is not None:
        raise StorageError(problem)


def check_nodes(trace: Trace, nodes: Sequence[Node], timeout_s: float) -> None:
    """Visits all nodes at once, but for this process's own, which `check_storage` has seen to.

    Raises: StorageError if a node cannot write to the storage, or does not see what the driver wrote; ClusterError if
    it does not answer within timeout_s, cannot run this project, or runs other versions than this process. Takes at
    most timeout_s, or 3 s where that is less.
    """
    import ray

    own = ray.get_runtime_context().get_node_id()
    others = [node for node in nodes if node.node_id != own]
    deadline = time.monotonic() + timeout_s
    if silent := silent_nodes(others):
        raise ClusterError(f"{_plural('node', [_name(node) for node in silent])} does not answer, though the cluster "
                           "takes it for alive: restart it, or remove it from the cluster")
    visits = _visit_all(trace, others, max(0.0, deadline - time.monotonic() - _LAST_LOOK_S))
    check_versions({_name(node): visit for node, visit in zip(others, visits, strict=True)})
    for node, visit in zip(others, visits, strict=True):
        if visit.problem is not None:
            raise StorageError(f"on node {_name(node)}: {visit.problem}")
    if unseen := _unseen(trace, others, max(_LAST_LOOK_S, deadline - time.monotonic())):
        raise StorageError(_not_shared(trace, f"node {_name(unseen[0])}"))


def versions() -> dict[str, str]:
    """What must be the same on all nodes."""
    return {"Ray": importlib.metadata.version("ray"), "Python": platform.python_version()}


def unsafe_setting() -> str | None:
    """Which of this process's variables lets Ray Data run code that a data file holds (CVE-2026-41486);
    None if none does."""
    on = [name for name, value in os.environ.items() if name.startswith("RAY_DATA_AUTOLOAD_")
          and value.lower() not in _OFF]
    return (f"{on[0]} is set, with which Ray runs code that a data file holds: unset it, where Ray is started too"
            if on else None)


def check_own_node(store: Store, sign: str, of_driver: Mapping[str, str], node: str) -> None:
    """By a worker at its start, on its own node, which may have come after the run began,
    so that preflight never saw it.

    sign: a file that the driver has written. Raises: ClusterError for other versions than the driver's, StorageError
    within STORAGE_TIMEOUT_S if the storage is not the one that the driver sees, or cannot be written.
    """
    if (own := versions()) != of_driver:
        def listed(each: Mapping[str, str]) -> str:
            return " and ".join(f"{name} {version}" for name, version in each.items())

        raise ClusterError(f"node {node} runs {listed(own)}, the driver {listed(of_driver)}: install the same versions "
                           "everywhere")
    trace = Trace(store, f".trainyard-check-{uuid.uuid4().hex[:12]}", uuid.uuid4().hex)

    def look() -> str | None:
        try:
            return _write_and_read(trace, node) if store.exists(sign) else _not_shared(trace, "this node")
        except (OSError, StorageError) as error:
            return _explain(store, error)

    try:
        problem = within(STORAGE_TIMEOUT_S, look, _late(store, STORAGE_TIMEOUT_S))
    finally:
        _remove(trace, [])
    if problem is not None:
        raise StorageError(f"on node {node}: {problem}")


def check_versions(visits: dict[str, Visit]) -> None:
    """visits: by the node's name. Raises: ClusterError if one runs another Ray or Python than this process."""
    import ray

    here = f"Ray {ray.__version__} and Python {platform.python_version()}"
    there = {name: f"Ray {visit.ray} and Python {visit.python}" for name, visit in visits.items()}
    if wrong := {name: versions for name, versions in there.items() if versions != here}:
        found = "; ".join(f"node {name} runs {versions}" for name, versions in wrong.items())
        raise ClusterError(f"{found}, this process {here}: install the same versions on all nodes")


def _unseen(trace: Trace, nodes: Sequence[Node], timeout_s: float) -> list[Node]:
    """Those of which this process does not find what they wrote. Raises: StorageError after timeout_s."""
    return within(timeout_s, lambda: [node for node in nodes if not trace.store.exists(trace.path(node.node_id))],
                  _late(trace.store, timeout_s))


def _visit_all(trace: Trace, nodes: Sequence[Node], timeout_s: float) -> list[Visit]:
    import ray
    from ray.exceptions import GetTimeoutError, RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(_visit)
    pinned = {node.node_id: NodeAffinitySchedulingStrategy(node.node_id, soft=False) for node in nodes}
    pending = {node_id: task.options(scheduling_strategy=pin).remote(trace, node_id) for node_id, pin in pinned.items()}
    done, late = ray.wait(list(pending.values()), num_returns=len(pending), timeout=timeout_s) if pending else ([], [])
    for reference in late:
        ray.cancel(reference, force=True)
    silent = [_name(node) for node in nodes if pending[node.node_id] not in done]
    if silent:
        raise ClusterError(f"{_plural('node', silent)} did not run a task within {timeout_s:.0f} s: the storage "
                           f"{trace.store.location()} may hang there, or the node is overloaded; look at it, or remove "
                           "it from the cluster")
    visits: list[Visit] = []
    for node in nodes:
        try:
            visits.append(ray.get(pending[node.node_id], timeout=1))
        except (RayError, GetTimeoutError, RuntimeError) as error:
            raise ClusterError(f"node {_name(node)} cannot run this project ({_last_line(error)}): submit it with `ray "
                               "job submit --working-dir .`, or install it on all nodes") from error
    return visits


def _visit(trace: Trace, node_id: str) -> Visit:
    """On the node."""
    import ray

    try:
        problem = no_home() or unsafe_setting()
        problem = problem or (_write_and_read(trace, node_id)
                              if _sees_driver(trace) else _not_shared(trace, "this node"))
    except (OSError, StorageError) as error:
        problem = _explain(trace.store, error)
    return Visit(ray=ray.__version__, python=platform.python_version(), problem=problem)


def _sees_driver(trace: Trace) -> bool:
    try:
        return trace.store.read_text(trace.path(_DRIVER)) == trace.secret
    except FileNotFoundError:
        return False


def _write_and_read(trace: Trace, who: str) -> str | None:
    """What is wrong; None if nothing is."""
    try:
        trace.store.write_text(trace.path(who), trace.secret, durable=False)
        if trace.store.read_text(trace.path(who)) != trace.secret:
            return f"storage {trace.store.location()} does not return what was written to it"
    except (OSError, StorageError, StorageFullError) as error:
        return _explain(trace.store, error)
    return None


def _late(store: Store, timeout_s: float) -> StorageError:
    return StorageError(f"storage {store.location()} does not answer within {timeout_s:g} s: check its address and the "
                        "network")


def _explain(store: Store, error: Exception) -> str:
    if isinstance(error, StorageError | StorageFullError):
        return str(error)
    remedy = tls_remedy(error) or "give a folder, s3:// or gs:// that can be written"
    return f"storage {store.location()} cannot be used ({error}): {remedy}"


def _not_shared(trace: Trace, node: str) -> str:
    return (f"storage {trace.store.location()} on {node} is not the storage that the driver sees, though its name is "
            "the same: use a folder that all nodes share, s3:// or gs:// (--run.storage)")


def _missing_folders(store: Store) -> list[Path]:
    """The folders that a first write would make, innermost first."""
    if not store.is_local:
        return []
    root = store.local_path()
    return [folder for folder in (root, *root.parents) if not folder.exists()]


def _remove(trace: Trace, folders: Sequence[Path]) -> None:
    """The trace, then empty folders, as far as that goes: storage that is broken stays as it is."""
    def remove() -> None:
        with contextlib.suppress(OSError, StorageError, StorageFullError):
            trace.store.delete_folder(trace.folder)
        with contextlib.suppress(OSError):
            for folder in folders:
                folder.rmdir()

    with contextlib.suppress(TimeoutError):
        within(REMOVE_TIMEOUT_S, remove, TimeoutError())


def _name(node: Node) -> str:
    return f"{node.name} ({node.ip})" if node.name not in ("", node.ip) else node.ip


def _plural(noun: str, names: Sequence[str]) -> str:
    return f"{noun}{'s' * (len(names) > 1)} {', '.join(names)}"


def _last_line(error: object) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
