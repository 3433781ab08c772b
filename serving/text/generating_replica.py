"""Serve deployments' classes for models that continue texts: for one, and for many models of any kind."""

import asyncio
import weakref
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from cluster.core.background import in_loop
from cluster.core.documents import JsonObject
from cluster.core.errors import ArtifactError
from jobs.common.artifact.artifact import open_artifact
from jobs.common.predictor.find import module_of
from serving.core.errors import RefusedError
from serving.core.settings import HEARTBEAT_S, ModelSettings
from serving.model.multiplexed_replica import MultiplexedReplica
from serving.model.replica import Replica, describe
from serving.text.continuous_batching import ContinuousBatcher, Piece
from serving.text.generation import GenerationRequest, Generator, PromptUsage
from serving.text.prefix_metrics import PrefixMetrics


class GeneratingReplica(Replica):
    """A Serve deployment's class, for a model that continues texts;
    of tensors it answers their likelihood, as any replica."""

    def __init__(self, settings: JsonObject) -> None:
        super().__init__(settings)
        make: Callable[[int], Generator] | None = getattr(self._predictor, "generator", None)
        if make is None:
            raise ArtifactError(f"artifact {self.settings.uri} continues no texts")
        generator = make(self.settings.prefix_cache_bytes)
        self._writer = ContinuousBatcher(generator, self.settings.max_batch_rows)
        self._prefixes = PrefixMetrics(self.settings, generator)
        self._counting: asyncio.Task[None] | None = None
        self._about |= {"max_tokens": generator.max_tokens, "chats": generator.chat is not None,
                        "tool_calls": generator.chat.tool_calls if generator.chat else None}

    def check_health(self) -> None:
        """Serve asks every few seconds, and replaces a replica that raises."""
        self._writer.check()

    def count_prefixes(self) -> None:
        self._prefixes.count()

    async def generate(self, asked: GenerationRequest) -> AsyncGenerator[PromptUsage | list[Piece] | RefusedError]:
        """As `ContinuousBatcher.write`.
        What it refuses comes as a value: as an exception it would not pass between processes."""
        if self._counting is None:
            self._counting = in_loop(_count(weakref.ref(self)), "the metrics of the prefix cache")
        try:
            async with aclosing(self._writer.write(asked)) as coming:
                async for found in coming:
                    yield found
        except RefusedError as error:
            yield error

    def __del__(self) -> None:
        """Serve calls it, too, when it lets go of a model that shares a replica."""
        if hasattr(self, "_writer"):
            self._writer.close()


async def _count(counted: "weakref.ref[GeneratingReplica]") -> None:
    """Until the replica is let go of, which this does not keep alive."""
    while (replica := counted()) is not None:
        replica.count_prefixes()
        del replica
        await asyncio.sleep(HEARTBEAT_S)


class MultiplexedGeneratingReplica(MultiplexedReplica):
    """A Serve deployment's class, for models that share replicas, of which some continue texts."""

    def kind_of(self, settings: ModelSettings) -> type[Replica]:
        return GeneratingReplica if settings.generates else Replica

    async def about(self, settings: JsonObject) -> JsonObject:
        made = ModelSettings(**settings)
        if not made.generates:
            return await super().about(settings)
        async with self.importing:
            return await asyncio.to_thread(_about_texts, made)

    async def generate(self, settings: JsonObject, asked: GenerationRequest) \
            -> AsyncGenerator[PromptUsage | list[Piece] | RefusedError]:
        """As a GeneratingReplica's, of a model that is loaded for it."""
        found = await self._replica(ModelSettings(**settings))
        if not isinstance(found, GeneratingReplica):
            assert isinstance(found, RefusedError)
            yield found
            return
        async with aclosing(found.generate(asked)) as coming:
            async for pieces in coming:
                yield pieces


def _about_texts(settings: ModelSettings) -> JsonObject:
    """As a GeneratingReplica's, of a model that need not be loaded for it."""
    artifact = open_artifact(settings.uri, settings.digest)
    predictor = module_of(artifact, settings.jobs).PREDICTOR
    texts = predictor.about_texts(artifact) if hasattr(predictor, "about_texts") else {"max_tokens": None}
    return {**describe(artifact, settings.jobs), **texts}
