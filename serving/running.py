"""A Serve instance on the connected cluster: deployed from a config, waited for, and ended."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import re
import threading
import time
from collections.abc import Mapping
from typing import Any

from cluster.errors import ClusterError, StoppedError
from serving.settings import SHARED, ModelSettings

_NO_ROOM = re.compile(r"to be scheduled\..*Resources required for each replica: (\{.*?\})")
"""What Serve says of a replica that has waited for 30 s."""


def deploy(config: Mapping[str, Any]) -> None:
    """What `serve deploy` does, without a dashboard. Applications whose config has not changed are left alone."""
    from ray.serve._private.api import serve_start
    from ray.serve.schema import ServeDeploySchema

    schema = ServeDeploySchema.model_validate(config)
    client = serve_start(http_options=schema.http_options.model_dump(), grpc_options=schema.grpc_options.model_dump(),
                         proxy_location=schema.proxy_location, global_logging_config=schema.logging_config)
    client.deploy_apps(schema)


def await_ready(config: Mapping[str, Any], stop: threading.Event, timeout_s: float) -> None:
    """Until every application runs. Raises: ClusterError with the reason of the first that cannot, StoppedError.

    One for which there is no room is given up after 30 s, unless the cluster can grow.
    """
    from ray import serve

    wanted = {application["name"] for application in config["applications"]}
    deadline = time.monotonic() + timeout_s
    while True:
        states = {name: state for name, state in serve.status().applications.items() if name in wanted}
        for name, state in states.items():
            if state.status in ("DEPLOY_FAILED", "UNHEALTHY"):
                raise ClusterError(f"{name} does not start: {_reason(state)}")
            if (needed := _needed(state)) and not _grows():
                raise ClusterError(f"{name} does not start: a replica needs {needed}, which the cluster does not have free, and it "
                                   "cannot grow: add nodes, or start the endpoint with a smaller --cpus-per-replica")
        if {name for name, state in states.items() if state.status == "RUNNING"} == wanted:
            return
        if stop.wait(0.1):
            raise StoppedError("stopped before it was ready")
        if time.monotonic() > deadline:
            waiting = {name: _reason(state) for name, state in states.items() if state.status != "RUNNING"}
            raise ClusterError(f"not ready after {timeout_s:g} s: {waiting}")


def load(settings: ModelSettings, timeout_s: float) -> None:
    """Has a version loaded in a replica that it shares. Raises: ClusterError with the reason if it cannot be."""
    from ray import serve

    shared = serve.get_app_handle(SHARED).options(method_name="load", multiplexed_model_id=settings.key)
    try:
        reason = shared.remote(settings.to_dict()).result(timeout_s=timeout_s)
    except TimeoutError:
        reason = f"not loaded after {timeout_s:g} s"
    if reason is not None:
        raise ClusterError(f"{settings.application} does not start: {reason}")


def states() -> dict[str, str]:
    """By application."""
    from ray import serve

    return {name: str(state.status.value).lower() for name, state in serve.status().applications.items()}


def metrics_urls() -> list[str]:
    """Where a Prometheus gets the metrics of each node."""
    import ray

    return [f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics" for node in ray.nodes() if node["Alive"]]


def _reason(state: Any) -> str:
    """The last line of what went wrong, which is the exception's own."""
    messages = [deployment.message for deployment in state.deployments.values() if deployment.message] or [state.message]
    lines = [line.strip() for line in messages[0].splitlines() if line.strip()]
    errors = [line for line in lines if "Error: " in line]
    return (errors or lines or ["no reason is known"])[-1]


def _needed(state: Any) -> str | None:
    """The resources of a replica that waits for room; None if none does."""
    found = [_NO_ROOM.search(deployment.message) for deployment in state.deployments.values()]
    return next((match[1] for match in found if match), None)


def _grows() -> bool:
    import ray

    from cluster.gcs import Gcs
    from cluster.resources import autoscaled

    return autoscaled(Gcs(ray.get_runtime_context().gcs_address))


def end() -> None:
    from ray import serve

    from serving.coordinator import forget

    serve.shutdown()
    forget()
