"""Which version of a model answers a request: weights, and a batcher and a Serve handle for each version."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from cluster.core.documents import JsonObject
from jobs.common.arrays import Array
from jobs.common.artifact.artifact import Probe
from serving.core.errors import UnknownModelError
from serving.core.settings import EndpointSettings, ModelSettings
from serving.model.explanations import Explanations
from serving.protocols import open_inference_json as protocol
from serving.traffic.batching import Batcher, Inputs, Outputs
from serving.traffic.canary import Canary, Tally
from serving.traffic.shadow import Shadow

_log = logging.getLogger(__name__)
_DESCRIBED_AT_ONCE = 16
"""Models whose replicas are asked what they are, for a list of all: there may be a thousand."""
_NAMED = 20
"""Models that an error names."""
Ask = Callable[[str, *tuple[object, ...]], Awaitable[Any]]
"""Calls a method of a version's replica: `about`, `infer`, `embed`, `explain`, or `generate`, which gives an async
generator."""
Connection = tuple[Ask, Callable[[], bool]]
"""What asks a version's replicas, and what says whether there is one."""


@dataclass(kw_only=True)
class Route:
    """A version that requests may go to."""

    settings: ModelSettings
    weight: float
    ask: Ask
    batcher: Batcher
    embeddings: Batcher
    explanations: Explanations
    ready: Callable[[], bool]
    said: JsonObject = field(default_factory=JsonObject)
    """What every answer says."""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    shadow: Shadow | None = None
    """What is asked the same, and compared."""
    tally: Tally = field(default_factory=Tally)
    """Since it was last taken."""
    max_queued: int = 0
    waiting: int = 0
    """Requests for text that have none yet."""
    since: int = field(default_factory=lambda: int(time.time()))
    _about: JsonObject | None = None

    @property
    def queued(self) -> int:
        """Requests that no replica has yet."""
        return self.batcher.queued + self.embeddings.queued + self.waiting

    async def infer(self, inputs: Inputs, rows: int, timeout_s: float) -> Outputs:
        """Raises: RefusedError."""
        outputs = await self.batcher.infer(inputs, rows, timeout_s)
        if self.shadow is not None:
            self.shadow.follow(inputs, rows, outputs)
        return outputs

    async def about(self) -> JsonObject:
        """Of a replica, asked once."""
        about = self._about
        if about is None:
            about = self._about = await self.ask("about")
        return about


class Table:
    """Names to routes. `change` replaces what differs and leaves the rest be."""

    def __init__(self, settings: EndpointSettings, connect: Callable[[ModelSettings], Connection],
                 seen: Callable[[ModelSettings, int, int], None],
                 compared: Callable[[ModelSettings, str, int], None] = lambda settings, outcome, rows: None) -> None:
        """connect: gives what asks a version's replicas, and what says whether there is one. seen: is told of each
        batch, its requests and its rows. compared: of a shadow's answers, an outcome and its rows.
        """
        self._settings, self._connect, self._seen, self._compared = settings, connect, seen, compared
        self._routes: dict[str, dict[str, Route]] = {}
        self.guards: Mapping[str, Canary] = {}
        """By model, the change of weights that is watched."""
        self.shadows: Mapping[str, Shadow] = {}
        """By model."""
        self._reasons: dict[str, str] = {}
        """By a guard's id, why its requests went back."""
        self._random = random.Random()

    @property
    def names(self) -> Sequence[str]:
        return list(self._routes)

    @property
    def routes(self) -> Sequence[Route]:
        """Of all models."""
        return [route for versions in self._routes.values() for route in versions.values()]

    def change(self, models: Mapping[str, Sequence[JsonObject]], guards: Mapping[str, JsonObject] | None = None,
               shadows: Mapping[str, JsonObject] | None = None) -> None:
        """models: name -> versions, each with its weight and settings, as `settings.routes` makes them. guards: name ->
        Guard. shadows: name -> id, and the version that is asked a share of the requests too.
        """
        made: dict[str, dict[str, Route]] = {}
        for name, versions in models.items():
            made[name] = {}
            for version in versions:
                settings = ModelSettings(**version["settings"])
                known = self._routes.get(name, {}).get(settings.version)
                if known is None or known.settings != settings:
                    known = self._route(settings)
                known.weight = float(version["weight"])
                known.shadow = None
                made[name][settings.version] = known
        self._routes = made
        self.shadows = {name: self._shadow(made[name], **shadow) for name, shadow in (shadows or {}).items()}
        self.guards = {name: Canary.of(guard) for name, guard in (guards or {}).items()}
        self._reasons = {guard.id: reason for guard in self.guards.values() if (reason := self._reasons.get(guard.id))}
        for name, guard in self.guards.items():
            if guard.id in self._reasons:
                self.go_back(name, guard, self._reasons[guard.id])

    def _shadow(self, versions: Mapping[str, Route], *, id: str, version: str, share: float) -> Shadow:
        """A version gets what the others were asked."""
        route = versions[version]
        shadow = Shadow(route.batcher, id=id, version=version, share=share, timeout_s=self._settings.timeout_s,
                        seen=partial(self._compared, route.settings))
        for other in versions.values():
            if other is not route:
                other.shadow = shadow
        return shadow

    # ── a change that is watched ──
    def tallies(self, name: str) -> dict[str, Tally]:
        """By version, since they were last taken."""
        found = {version: route.tally for version, route in self._routes[name].items()}
        for route in self._routes[name].values():
            route.tally = Tally()
        return found

    def reason(self, name: str) -> str | None:
        """Why the requests went back, if they did."""
        guard = self.guards.get(name)
        return self._reasons.get(guard.id) if guard else None

    def go_back(self, name: str, guard: Canary, reason: str) -> None:
        """Requests go to the versions that had them before the change."""
        self._reasons[guard.id] = reason
        for version, route in self._routes[name].items():
            route.weight = float(guard.before.get(version, 0.0))

    def _route(self, settings: ModelSettings) -> Route:
        ask, ready = self._connect(settings)
        batcher, embeddings = (
            Batcher(partial(ask, method), max_rows=settings.max_batch_rows, max_calls=settings.max_calls,
                    max_queued=self._settings.max_queued, wait_s=settings.batch_wait_ms / 1000,
                    seen=partial(self._seen, settings)) for method in ("infer", "embed"))
        return Route(settings=settings, weight=0.0, ask=ask, batcher=batcher, embeddings=embeddings, ready=ready,
                     max_queued=self._settings.max_queued,
                     explanations=Explanations(ask, settings.max_replicas),
                     said={"model_name": settings.name, "model_version": settings.version,
                           "parameters": {"artifact_digest": settings.digest}},
                     headers=((b"x-model-version", settings.version.encode()),
                              (b"x-artifact-digest", settings.digest.encode())))

    def route(self, name: str, version: str | None) -> Route:
        """The version that is asked for, or one by weight. Raises: UnknownModelError."""
        versions = self._routes.get(name)
        if versions is None:
            raise UnknownModelError(f"there is no model {name[:60]!r}: there is {_some(self.names) or 'none'}")
        if version is not None:
            if (found := versions.get(version)) is None:
                raise UnknownModelError(f"model {name!r} has no version {version[:60]!r}: it has {', '.join(versions)}")
            return found
        routes = list(versions.values())
        if len(routes) == 1:
            return routes[0]
        return self._random.choices(routes, [route.weight for route in routes])[0]

    def is_ready(self) -> bool:
        """Whether every version that gets requests has a replica, or gets one when it is asked."""
        return bool(self._routes) and all(route.ready() for versions in self._routes.values()
                                          for route in versions.values()
                                          if route.weight > 0)

    # ── as the protocol describes it ──
    def server(self) -> JsonObject:
        from importlib.metadata import version

        return {"name": "trainyard", "version": version("trainyard"), "extensions": list(protocol.EXTENSIONS)}

    async def metadata(self, name: str, route: Route) -> JsonObject:
        about = await route.about()
        return {"name": name, "versions": list(self._routes[name]), "platform": f"trainyard_{about['job']}",
                "inputs": protocol.tensor_metadata(about["inputs"]),
                "outputs": protocol.tensor_metadata(about["outputs"]),
                "properties": {"task": about["task"], "artifact_digest": route.settings.digest,
                               **({"variant": about["variant"]} if about.get("variant") else {}),
                               **about.get("picture", {})}}

    async def described(self, name: str) -> JsonObject:
        """What a page shows of a model: the protocol's metadata, its labels, and an example."""
        route = self.route(name, None)
        about = await route.about()
        probe: Probe = about["example"]
        example = [{"name": spec.name, "datatype": spec.datatype, "shape": [1, *spec.shape[1:]],
                    "data": _plain(probe.inputs[spec.name][:1])} for spec in about["inputs"]]
        return {**await self.metadata(name, route), "version": route.settings.version, "labels": list(about["labels"]),
                "weights": {version: each.weight for version, each in self._routes[name].items()},
                "example": {"inputs": example},
                "explanation": protocol.tensor_metadata(about["explanation"]), "generates": route.settings.generates,
                "chats": about["chats"], "embeds": route.settings.embeds, "run": route.settings.run,
                "report": "" if self._settings.auth else route.settings.report}  # who has a key need not know where

    async def all_described(self) -> list[JsonObject]:
        """Of each model but those that cannot be described, such as one whose artifact is gone: the log names them."""
        turns = asyncio.Semaphore(_DESCRIBED_AT_ONCE)

        async def one(name: str) -> JsonObject | None:
            async with turns:
                try:
                    return await self.described(name)
                except Exception:  # noqa: BLE001  (the other models are there)
                    _log.exception("model %s cannot be described", name)
                    return None

        return [each for each in await asyncio.gather(*map(one, self.names)) if each is not None]

    def settings(self) -> dict[str, list[ModelSettings]]:
        return {name: [route.settings for route in versions.values()] for name, versions in self._routes.items()}

    def live(self) -> JsonObject:
        queued = {name: sum(route.queued for route in versions.values()) for name, versions in self._routes.items()}
        return {"queued": queued}


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _plain(values: Array) -> list[object]:
    flat = values.ravel().tolist()
    return [value.decode(errors="replace") if isinstance(value, bytes) else value for value in flat]

