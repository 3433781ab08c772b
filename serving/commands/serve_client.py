"""A Serve instance on the connected cluster: deployed from a config, waited for, and ended."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false

import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from cluster.core.control_store import Gcs
from cluster.core.documents import JsonObject
from cluster.core.errors import ClusterError, StoppedError
from serving.commands import internals
from serving.commands.waiting import Shortage, what_for, why_no_room
from serving.core.settings import SHARED, ModelSettings

if TYPE_CHECKING:
    from ray.serve.schema import ApplicationDetails

_FAILED = ("DEPLOY_FAILED", "UNHEALTHY")


def deploy(config: Mapping[str, object]) -> None:
    """What `serve deploy` does, without a dashboard. Applications whose config has not changed are left alone."""
    from ray.serve.schema import ServeDeploySchema

    schema = ServeDeploySchema.model_validate(config)
    internals.started(schema).deploy_apps(schema)


def await_ready(config: JsonObject, stop: threading.Event, timeout_s: float) -> None:
    """Returns once every application runs. Raises: ClusterError with the reason of the first that cannot, StoppedError.

    An application whose replica has found no room for NO_ROOM_S is given up, unless the cluster can grow.
    """
    wanted = {application["name"] for application in config["applications"]}
    deadline, shortage = time.monotonic() + timeout_s, Shortage(_gcs())
    while True:
        found = {name: each for name, each in _applications().items() if name in wanted}
        _raise_first_failure(found, shortage)
        if {name for name, each in found.items() if each.status == "RUNNING"} == wanted:
            return
        if stop.wait(0.1):
            raise StoppedError("stopped before it was ready")
        if time.monotonic() > deadline:
            waiting = "; ".join(f"{name}: {what_for(each)}" for name, each in found.items() if each.status != "RUNNING")
            raise ClusterError(f"not ready after {timeout_s:g} s: {waiting or 'Serve knows of no application'}")


def _raise_first_failure(applications: "Mapping[str, ApplicationDetails]", shortage: Shortage) -> None:
    for name, each in applications.items():
        if each.status in _FAILED:
            raise ClusterError(f"{name} does not start: {_reason(each)}")
    if (lacking := shortage.lasting(applications)) and not _grows():
        names = ", ".join(each.application for each in lacking)
        raise ClusterError(f"{names} does not start: {why_no_room(lacking[0], shortage.nodes)}")


def _applications() -> "dict[str, ApplicationDetails]":
    """Serve's ApplicationDetails, by name; none where Serve does not run."""
    from ray.serve.schema import ServeInstanceDetails

    client = internals.client()
    return {} if client is None else dict(ServeInstanceDetails(**client.get_serve_details()).applications)


def load(settings: ModelSettings, timeout_s: float) -> None:
    """Has a version loaded in a replica that it shares. Raises: ClusterError with the reason if it cannot be."""
    from ray import serve

    shared = serve.get_app_handle(SHARED).options(method_name="load", multiplexed_model_id=settings.key)
    try:
        reason = shared.remote(asdict(settings)).result(timeout_s=timeout_s)
    except TimeoutError:
        reason = f"not loaded after {timeout_s:g} s"
    if reason is not None:
        raise ClusterError(f"{settings.application} does not start: {reason}")


def states() -> dict[str, str]:
    """By application."""
    return {name: str(each.status.value).lower() for name, each in _applications().items()}


def troubles() -> dict[str, str]:
    """By application, why it does not run as it should; nothing of those that do."""
    return {name: _reason(each) for name, each in _applications().items() if each.status in _FAILED}


def served_at() -> int | None:
    """The port of the Serve instance of the connected cluster, which has one at most; None where there is none."""
    client = internals.client()
    return None if client is None else int(client.http_config.port)


def metrics_urls() -> list[str]:
    """Where a Prometheus gets the metrics of each node."""
    import ray

    return [f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics" for node in ray.nodes()
            if node["Alive"]]


def _reason(state: "ApplicationDetails") -> str:
    """The last line of what went wrong, which is the exception's own."""
    failed = [deployment for deployment in state.deployments.values() if deployment.status in _FAILED]
    messages = [deployment.message for deployment in failed if deployment.message] or [state.message]
    lines = [line.strip() for line in messages[0].splitlines() if line.strip()]
    errors = [line for line in lines if "Error: " in line]
    return (errors or lines or ["no reason is known"])[-1]


def _grows() -> bool:
    from cluster.capacity import autoscaled

    return autoscaled(_gcs())


def _gcs() -> Gcs:
    import ray

    return Gcs(ray.get_runtime_context().gcs_address)


def end() -> None:
    """Ends Serve on the connected cluster, and the actor that its ingresses share.

    Raises: ClusterError if it does not end.
    """
    from ray import serve

    from serving.traffic.shared_state import forget

    serve.shutdown()
    forget()
    if _gcs().has_actor("SERVE_CONTROLLER_ACTOR", "serve"):
        raise ClusterError("Serve has not ended after 30 s: look at the log of its controller, and try "
                           "`python -m serving down`")
