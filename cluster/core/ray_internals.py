"""What the launchers use of Ray that is private or undocumented, behind functions of their own. Read in Ray 2.60.0.

Each function says why no public way will do. Ray is imported where it is used: commands that only show help need none
of it. tests/unit/test_internals.py holds every symbol, and names the one that an upgrade has moved.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportPrivateUsage=false
# pyright: reportAttributeAccessIssue=false

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

GetNode = Callable[..., Any]


# ── this process ──
def cluster_of_this_machine() -> str | None:
    """HOST:PORT of the control store that a Ray on this machine has; `ray.init("auto")` would join it at once."""
    from ray._private.services import canonicalize_bootstrap_address

    try:
        return canonicalize_bootstrap_address("auto")
    except ConnectionError:
        return None


def nodes_of_this_machine() -> set[str]:
    """The ids of the Ray nodes that run on this machine, of any cluster: known in public only after joining."""
    from ray._private.services import find_node_ids

    return set(find_node_ids())


def keep_loopback() -> None:
    """Does what RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 does where it is set before Ray is imported."""
    from ray._private import ray_constants

    ray_constants.ENABLE_RAY_CLUSTER = False


def print_by(say: Callable[[list[str]], None]) -> None:
    """Hands over the lines about nodes and workers that Ray prints on a driver's standard output,
    whatever it is told."""
    from ray._private import worker

    def to_say(data: dict[str, Any], **_: Any) -> None:
        say(data["lines"])

    worker.print_to_stdstream = to_say


def dashboard_of_this_node() -> str | None:
    """HOST:PORT; in public only who starts the cluster learns it."""
    from ray._private.worker import global_worker

    return global_worker.node.webui_url if global_worker.node is not None else None


# ── tokens ──
def read_token_settings_again() -> None:
    """Ray reads the variables of authentication once, when it is imported."""
    from ray._raylet import AuthenticationTokenLoader, Config

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def finds_token() -> bool:
    """Whether Ray finds a token, be authentication on or off.
    Raises: ray.exceptions.AuthenticationError for a missing file."""
    from ray._raylet import AuthenticationTokenLoader

    return bool(AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True))


def dashboard_headers() -> dict[str, str]:
    """The headers that a dashboard wants of a request; none where authentication is off."""
    from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled

    return get_auth_headers_if_auth_enabled({})


# ── the control store ──
def grpc_channel(address: str, options: Sequence[tuple[str, int]]) -> Any:
    """A gRPC channel with Ray's own TLS and token settings."""
    from ray._private.grpc_utils import init_grpc_channel

    return init_grpc_channel(address, options)


def ask_gcs(channel: Any, service: str, method: str, fields: Mapping[str, object], timeout_s: float) -> Any:
    """The reply of the control store, a protobuf message of Ray's.
    Ray's own clients wait for minutes for one that is half-dead.

    Raises: grpc.RpcError.
    """
    from ray.core.generated import autoscaler_pb2, autoscaler_pb2_grpc, gcs_service_pb2, gcs_service_pb2_grpc

    of_autoscaler = service == "AutoscalerStateService"
    messages, stubs = ((autoscaler_pb2, autoscaler_pb2_grpc) if of_autoscaler
                       else (gcs_service_pb2, gcs_service_pb2_grpc))
    request = getattr(messages, f"{method}Request")(**fields)
    return getattr(getattr(stubs, f"{service}Stub")(channel), method)(request, timeout=timeout_s)


def deaths_in_order() -> tuple[int, ...]:
    """The reasons of a node's death, in Ray's numbers, that say that it was meant."""
    from ray.core.generated.common_pb2 import NodeDeathInfo as Death

    return Death.EXPECTED_TERMINATION, Death.AUTOSCALER_DRAIN_IDLE, Death.AUTOSCALER_DRAIN_PREEMPTED


def short_of_memory() -> int:
    """The reason of a worker's death, in Ray's numbers, that its node was short of memory."""
    from ray.core.generated.common_pb2 import NODE_OUT_OF_MEMORY

    return NODE_OUT_OF_MEMORY


# ── what a submitted job uploads ──
def most_bytes_uploaded() -> int:
    """The size of the archive of a working directory from which on the dashboard refuses it."""
    from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE

    return DASHBOARD_CLIENT_MAX_SIZE


def uploaded(root: Path, logger: logging.Logger) -> list[Path]:
    """The files of a folder that Ray uploads; it says so itself only after it has copied them all."""
    from ray._private import ray_constants
    from ray._private.runtime_env import packaging

    found: list[Path] = []
    left_out = packaging._get_excludes(root, ray_constants.get_runtime_env_default_excludes())
    heeds_gitignore = os.environ.get(ray_constants.RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1"

    def take(path: Path) -> None:
        if path.is_file():
            found.append(path)

    packaging._dir_travel(root, [left_out], take, heeds_gitignore, logger)
    return found


# ── the autoscaler on Kubernetes ──
def autoscaling_config(raycluster: Mapping[str, Any]) -> dict[str, Any]:
    """What Ray's autoscaler makes of a RayCluster: its kinds of nodes, with the resources of each."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    return _derive_autoscaling_config_from_ray_cr(dict(raycluster))


# ── a node of this machine ──
class RayNode:
    """A Ray node that this process has started: its processes are this one's children.
    `ray start` would end before them."""

    def __init__(self, node: Any) -> None:
        self._node = node
        self.node_id: str = node._node_id
        self.session_dir: str = node.get_session_dir_path()
        self.dashboard_url: str | None = node.webui_url

    def pids(self) -> dict[str, list[int]]:
        """The processes by their kind, such as `raylet` and `gcs_server`."""
        return {kind: [info.process.pid for info in infos] for kind, infos in self._node.all_processes.items()}

    def ended(self) -> list[str]:
        """The kinds of the processes that have ended."""
        return [kind for kind, _ in self._node.dead_processes()]


def note_address(address: str, temp_dir: Path) -> None:
    """Writes the file in which a submitted job's driver looks for its cluster."""
    from ray._private.utils import write_ray_address

    write_ray_address(address, str(temp_dir))


def start_node(parameters: Mapping[str, Any], *, is_head: bool, patient: Callable[[GetNode], GetNode]) -> RayNode:
    """Starts a node with Ray's own RayParams.
    A head's dashboard comes last, since it takes seconds; Ray's own comes first.

    patient: makes of Ray's wait for a raylet, which gives up after 30 s, one that waits longer.
    """
    from ray._private import services
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    class Head(Node):
        def start_api_server(self, **options: Any) -> None:
            self.dashboard_options = options

    services.get_node = patient(services.get_node)
    if not is_head:
        return RayNode(Node(RayParams(**parameters), head=False, shutdown_at_exit=False, spawn_reaper=True))
    node = Head(RayParams(**parameters), head=True, shutdown_at_exit=False, spawn_reaper=True)
    Node.start_api_server(node, **node.dashboard_options)
    return RayNode(node)


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES has them, found without a library of NVIDIA's."""
    from ray._private.accelerators import NvidiaGPUAcceleratorManager as Gpus

    visible = Gpus.get_current_process_visible_accelerator_ids()
    return [str(index) for index in range(Gpus.get_current_node_num_accelerators())] if visible is None else visible
