"""Replicas that many models share: each loads a model when it is asked for it,
and the one that was asked least recently goes.

Which replica has which model is Serve's to know (its model multiplexing): a request goes where its model is loaded. A
call brings the model's settings along, so a new version needs no restart.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUntypedFunctionDecorator=false

import asyncio
import gc
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ray import serve

from cluster.core.documents import JsonObject
from jobs.common.artifact.artifact import open_artifact
from serving.core.errors import NotLoadedError, RefusedError
from serving.core.settings import ModelSettings, SharedSettings
from serving.hardening.serve_patches import keep_calls_to_this_node
from serving.model.replica import Replica, Tensors, describe

_RETRY_S = 30.0
"""How long a model that failed to load is not tried again: each try puts out another one."""
_log = logging.getLogger(__name__)


class MultiplexedReplica:
    """A Serve deployment's class. Its methods are those of a Replica, with the model's settings before."""

    def __init__(self, settings: JsonObject) -> None:
        keep_calls_to_this_node()
        self._asked: dict[str, ModelSettings] = {}
        self._failures: dict[str, tuple[float, str]] = {}
        self.importing = asyncio.Lock()
        """A framework that several threads import for the first time is there in parts for some of them."""

        async def load(key: str) -> Replica:
            async with self.importing:
                return await asyncio.to_thread(_load, self._asked[key], self.kind_of(self._asked[key]))

        self._loaded: Any = serve.multiplexed(load, SharedSettings(**settings).max_loaded)
        self._loading: dict[str, asyncio.Future[Replica]] = {}

    async def about(self, settings: JsonObject) -> JsonObject:
        """Of a model that need not be loaded for it. Raises: ArtifactError."""
        made = ModelSettings(**settings)
        return describe(await asyncio.to_thread(open_artifact, made.uri, made.digest), made.jobs)

    async def infer(self, settings: JsonObject, requests: Sequence[Tensors]) -> list[Tensors | RefusedError]:
        found = await self._replica(ModelSettings(**settings))
        return [found] * len(requests) if isinstance(found, RefusedError) else await found.infer(requests)

    async def embed(self, settings: JsonObject, requests: Sequence[Tensors]) -> list[Tensors | RefusedError]:
        found = await self._replica(ModelSettings(**settings))
        return [found] * len(requests) if isinstance(found, RefusedError) else await found.embed(requests)

    async def explain(self, settings: JsonObject, inputs: Tensors) -> Tensors | RefusedError:
        found = await self._replica(ModelSettings(**settings))
        return found if isinstance(found, RefusedError) else await found.explain(inputs)

    async def load(self, settings: JsonObject) -> str | None:
        """Before a version gets requests. Returns why it cannot be loaded."""
        made = ModelSettings(**settings)
        self._failures.pop(made.key, None)
        found = await self._replica(made)
        return self._failures[made.key][1] if isinstance(found, RefusedError) else None

    async def _replica(self, settings: ModelSettings) -> Replica | NotLoadedError:
        key = settings.key
        if time.monotonic() >= self._failures.get(key, (0.0, ""))[0]:
            self._asked[key] = settings
            try:
                return await asyncio.shield(self._once(key))  # who is called off leaves the loading to others
            except Exception as error:  # noqa: BLE001  (whatever it is, it is this model's alone)
                _log.error("%s cannot be loaded: %s", settings.application, error)
                self._failures[key] = (time.monotonic() + _RETRY_S, str(error))
        return NotLoadedError(f"model {settings.name!r} cannot be loaded: the log of its replica says why")

    def _once(self, key: str) -> "asyncio.Future[Replica]":
        """All that ask for a model while it is loaded wait for the one loading of it.

        Where Serve loads a model a second time, since it was put out while somebody waited for it, it does not tell the
        ingress that it is here: the end of the first loading has taken it from those that are on their way.
        """
        if key not in self._loading:
            self._loading[key] = asyncio.shield(self._loaded(key))
            self._loading[key].add_done_callback(lambda _: self._loading.pop(key))
        return self._loading[key]

    def kind_of(self, settings: ModelSettings) -> type[Replica]:
        """The class of a model's replica."""
        return Replica


def _load(settings: ModelSettings, kind: type[Replica] = Replica) -> Replica:
    """Serve calls for one at a time, after it has let go of another: that one's memory first."""
    gc.collect()
    return kind(asdict(settings))
