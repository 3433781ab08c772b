"""The Serve applications, as `serve deploy` imports them from `serving.endpoint.app`: `endpoint`,
and one `model` a version, or `shared` for many.

    serve deploy FILE.yaml                 a file that `python -m serving config …` writes
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUntypedFunctionDecorator=false, reportUntypedClassDecorator=false

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from ray import serve

from cluster.core.documents import JsonObject
from serving.core.settings import ENDPOINT, INGRESS, MODEL, SHARED, EndpointSettings, ModelSettings, SharedSettings
from serving.endpoint.access_log import write_access_log
from serving.endpoint.grpc import METHODS, Calls, Reply
from serving.endpoint.handles import Application, Applications
from serving.endpoint.http import Endpoint
from serving.hardening.serve_patches import keep_calls_to_this_node, limit_calls
from serving.model.replica import Replica
from serving.text.generating_replica import GeneratingReplica, MultiplexedGeneratingReplica
from serving.traffic.metrics import EndpointMetrics
from serving.traffic.routing import Connection, Table
from serving.traffic.shared_state import Reporter, lease

_INGRESS_ONGOING = 16.0
_SHARED_ONGOING = 1000
"""The ingress sends as many of each model as to replicas of its own,
and those that wait for a model to load hold up no other."""


@serve.ingress()
class Ingress:
    """The endpoint in a Serve replica."""

    def __init__(self, settings: JsonObject) -> None:
        made, measures = EndpointSettings(**settings), EndpointMetrics()
        keep_calls_to_this_node()
        limit_calls(made.max_request_bytes)
        if made.access_log is not None:
            write_access_log(made.access_log)
        self._ingress = Application(ENDPOINT, INGRESS)
        self._others = Applications(lambda name: Application(name, MODEL))
        self._timeout_s = made.timeout_s
        self._own = {replica.settings.application: replica for replica in map(_replica, made.own)}
        self._table = Table(made, self._connected, measures.batch, measures.compared)
        self._reporter = Reporter(self._table, measures.went_back)
        self._endpoint = Endpoint(made, self._table, measures, lease if made.max_replicas > 1 else None,
                                  self._replicas)
        self.calls = Calls(self._endpoint.core)

    def __serve_build_asgi_app__(self) -> Endpoint:
        return self._endpoint

    async def reconfigure(self, user_config: JsonObject) -> None:
        self._table.change(**user_config)
        self._others.keep({_application_of(each) for versions in self._table.settings().values() for each in versions},
                          self._timeout_s)
        self._replicas()  # from now on it hears of them
        await self._reporter.follow()

    def _connected(self, settings: ModelSettings) -> Connection:
        """What asks a version's replicas, and what says whether there is one."""
        own = self._own.get(settings.application)
        return connected_here(own) if own is not None else _elsewhere(settings, self._other(settings))

    def _other(self, settings: ModelSettings) -> Application:
        return self._others.get(_application_of(settings))

    def _replicas(self) -> JsonObject:
        """How many run: of the ingress, and of each model."""
        return {"endpoint": len(self._ingress.replicas()),
                "models": {name: sum(map(self._running, versions))
                           for name, versions in self._table.settings().items()}}

    def _running(self, settings: ModelSettings) -> int:
        """Replicas of a version; of those that models share, the ones that have it loaded."""
        if settings.application in self._own:
            return len(self._ingress.replicas())
        return sum(not settings.shared or settings.key in loaded for loaded in self._other(settings).replicas())


def _application_of(settings: ModelSettings) -> str:
    return SHARED if settings.shared else settings.application


def _call(method: str) -> Callable[["Ingress", bytes, Any], Awaitable[Reply]]:
    async def call(self: "Ingress", message: bytes, grpc_context: Any) -> Reply:  # Serve looks for the context's name
        return await self.calls(method, message, grpc_context)

    return call


for _method in METHODS:  # by whose names Serve calls the deployment
    setattr(Ingress, _method, _call(_method))


def _replica(settings: JsonObject) -> Replica:
    return (GeneratingReplica if settings["generates"] else Replica)(settings)


def connected_here(replica: Replica) -> Connection:
    async def ask(method: str, *arguments: object) -> Any:
        found = getattr(replica, method)(*arguments)
        return await found if inspect.isawaitable(found) else found

    return ask, lambda: True


def _elsewhere(settings: ModelSettings, application: Application) -> Connection:
    async def ask(method: str, *arguments: object) -> Any:
        call = application.stream if method == "generate" else application.ask
        asked = call(method, asdict(settings), *arguments, model=settings.key) if settings.shared else call(
            method, *arguments)
        return await asked if inspect.isawaitable(asked) else asked

    return ask, lambda: settings.min_replicas == 0 or bool(application.replicas())


def endpoint(args: JsonObject) -> serve.Application:
    """args: the fields of EndpointSettings."""
    settings = EndpointSettings(**args)
    own = [ModelSettings(**each) for each in settings.own]
    resources = {"num_cpus": sum(each.cpus for each in own), "num_gpus": sum(each.gpus for each in own)}
    deployment: Any = serve.deployment(Ingress)
    return deployment.options(
        name=INGRESS, max_ongoing_requests=10 * settings.max_queued, ray_actor_options=resources,
        health_check_period_s=5,
        graceful_shutdown_timeout_s=10, **_scaling(settings.min_replicas, settings.max_replicas, _INGRESS_ONGOING,
                                               settings.downscale_delay_s)).bind(asdict(settings))


def _scaling(min_replicas: int, max_replicas: int, ongoing: float, downscale_delay_s: float) -> JsonObject:
    """ongoing: calls under way of one replica, at which it is as busy as it is to be."""
    if min_replicas == max_replicas:
        return {"num_replicas": max_replicas}
    return {"autoscaling_config": {"min_replicas": min_replicas, "max_replicas": max_replicas,
                                   "target_ongoing_requests": ongoing,
                                   "upscale_delay_s": 2.0, "downscale_delay_s": downscale_delay_s}}


def model(args: JsonObject) -> serve.Application:
    """args: the fields of ModelSettings."""
    settings = ModelSettings(**args)
    texts = settings.max_batch_rows if settings.generates else 0
    scaling = _scaling(settings.min_replicas, settings.max_replicas, max(1.0, texts / 8), settings.downscale_delay_s)
    deployment: Any = serve.deployment(GeneratingReplica if settings.generates else Replica)
    return deployment.options(
        name=MODEL, max_ongoing_requests=3 + texts + 2 * settings.embeds,
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        health_check_period_s=5, graceful_shutdown_timeout_s=20, **scaling).bind(asdict(settings))


def shared(args: JsonObject) -> serve.Application:
    """args: the fields of SharedSettings."""
    settings = SharedSettings(**args)
    scaling = _scaling(settings.min_replicas, settings.max_replicas, 1.0, settings.downscale_delay_s)
    deployment: Any = serve.deployment(MultiplexedGeneratingReplica)
    return deployment.options(
        name=MODEL, max_ongoing_requests=_SHARED_ONGOING, health_check_period_s=5, graceful_shutdown_timeout_s=20,
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus}, **scaling).bind(asdict(settings))
