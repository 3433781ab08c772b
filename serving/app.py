"""The Serve applications, as `serve deploy` imports them: `serving.app:endpoint`, and one `serving.app:model` a version.

    serve deploy FILE.yaml                 a file that `python -m serving config …` writes
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUntypedFunctionDecorator=false, reportUntypedClassDecorator=false

from collections.abc import Callable, Mapping
from typing import Any

from ray import serve

from serving.closed import keep_calls_to_this_node
from serving.ingress import Endpoint
from serving.measures import Measures
from serving.replica import Replica
from serving.routing import Table
from serving.settings import INGRESS, EndpointSettings, ModelSettings


@serve.ingress()
class Ingress:
    """The endpoint in a Serve replica."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        keep_calls_to_this_node()
        measures = Measures()
        self._table = Table(made := EndpointSettings(**settings), _connected, measures.batch)
        self._endpoint = Endpoint(made, self._table, measures)

    def __serve_build_asgi_app__(self) -> Endpoint:
        return self._endpoint

    def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        self._table.change(user_config["models"])


def _connected(settings: ModelSettings) -> tuple[Callable[..., Any], Callable[[], bool]]:
    """What asks a version's replicas, and what says whether there is one."""
    handle = serve.get_app_handle(settings.application)

    def ask(method: str, *arguments: Any) -> Any:
        return getattr(handle, method).remote(*arguments)

    def ready() -> bool:
        return settings.min_replicas == 0 or handle.running_replicas_populated()

    return ask, ready


def endpoint(args: dict[str, Any]) -> Any:
    """args: the fields of EndpointSettings."""
    settings = EndpointSettings(**args)
    deployment: Any = serve.deployment(Ingress)
    made = deployment.options(
        name=INGRESS, num_replicas=settings.replicas, max_ongoing_requests=10 * settings.max_queued,
        ray_actor_options={"num_cpus": 0}, health_check_period_s=5, graceful_shutdown_timeout_s=10)
    return made.bind(settings.to_dict())


def model(args: dict[str, Any]) -> Any:
    """args: the fields of ModelSettings."""
    settings = ModelSettings(**args)
    scaling: dict[str, Any] = {"num_replicas": settings.max_replicas}
    if settings.min_replicas != settings.max_replicas:
        scaling = {"autoscaling_config": {
            "min_replicas": settings.min_replicas, "max_replicas": settings.max_replicas, "target_ongoing_requests": 1.0,
            "upscale_delay_s": 2.0, "downscale_delay_s": settings.downscale_delay_s}}
    deployment: Any = serve.deployment(Replica)
    made = deployment.options(
        name="Model", max_ongoing_requests=2, ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        health_check_period_s=5, graceful_shutdown_timeout_s=20, **scaling)
    return made.bind(settings.to_dict())
