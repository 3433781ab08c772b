"""A Serve deployment's class for a model that continues texts."""

import asyncio
import weakref
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from cluster.core.background import in_loop
from cluster.core.documents import JsonObject
from cluster.core.errors import ArtifactError
from serving.core.errors import RefusedError
from serving.core.settings import HEARTBEAT_S
from serving.model.replica import Replica
from serving.text.continuous_batching import ContinuousBatcher, Piece
from serving.text.generation import GenerationRequest, Generator
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

    async def generate(self, asked: GenerationRequest) -> AsyncGenerator[list[int] | list[Piece] | RefusedError]:
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


async def _count(counted: "weakref.ref[GeneratingReplica]") -> None:
    """Until the replica is let go of, which this does not keep alive."""
    while (replica := counted()) is not None:
        replica.count_prefixes()
        del replica
        await asyncio.sleep(HEARTBEAT_S)
