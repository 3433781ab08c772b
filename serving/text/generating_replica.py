"""A Serve deployment's class for a model that continues texts."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from cluster.core.documents import JsonObject
from cluster.core.errors import ArtifactError
from serving.core.errors import RefusedError
from serving.model.replica import Replica
from serving.text.continuous_batching import ContinuousBatcher, Piece
from serving.text.generation import GenerationRequest, Generator


class GeneratingReplica(Replica):
    """A Serve deployment's class, for a model that continues texts;
    of tensors it answers their likelihood, as any replica."""

    def __init__(self, settings: JsonObject) -> None:
        super().__init__(settings)
        make: Callable[[], Generator] | None = getattr(self._predictor, "generator", None)
        if make is None:
            raise ArtifactError(f"artifact {self.settings.uri} continues no texts")
        generator = make()
        self._writer = ContinuousBatcher(generator, self.settings.max_batch_rows)
        self._about |= {"max_tokens": generator.max_tokens, "chats": generator.chat is not None,
                        "tool_calls": generator.chat.tool_calls if generator.chat else None}

    def check_health(self) -> None:
        """Serve asks every few seconds, and replaces a replica that raises."""
        self._writer.check()

    async def generate(self, asked: GenerationRequest) -> AsyncGenerator[list[int] | list[Piece] | RefusedError]:
        """As `ContinuousBatcher.write`.
        What it refuses comes as a value: as an exception it would not pass between processes."""
        try:
            async with aclosing(self._writer.write(asked)) as coming:
                async for found in coming:
                    yield found
        except RefusedError as error:
            yield error
