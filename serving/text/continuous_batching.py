"""A replica that continues texts: one thread computes a token a step for all of them,
and tells of each as its tokens come.

What a job gives is `Generator`, by its predictor's `generator(prefix_cache_bytes)`. A text ends with the model's own
end, a stop sequence, or as many tokens as it may have; it leaves its batch before the next token if nobody listens any
more.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cluster.core.background import in_background, logged
from jobs.common.predictor.texts import Scores
from serving.core.errors import ModelError, RefusedError
from serving.text.generation import ChatPrompt, GenerationRequest, Generator, PromptUsage, Row
from serving.text.prompts import constraint_of, tokens_of
from serving.text.stops import Stops

Piece = tuple[int, str, int, str | None, Scores | None]
"""Which choice; what its text goes on with; tokens that were computed for it;
why it ended, if it has: `stop` or `length`; the scores of its token, where they are asked for."""
_PACE_S, _PACE_OF_A_TEXT_S = 0.012, 0.001
"""Between two answers to one request, and how much more for each text that is being continued. Passing a piece on costs
as much as a small model's token does, and takes Python's lock from the thread that computes: a piece has several then.
"""
_ENDLESS = 1 << 62
"""Tokens of a model that has no last position: the request's deadline ends its text."""
_log = logging.getLogger(__name__)


@dataclass(kw_only=True, eq=False)
class _Stream:
    """A request on its way. The thread appends, its event loop takes."""

    prompts: list[list[int]]
    constraint: Any | None
    asked: GenerationRequest
    loop: asyncio.AbstractEventLoop
    news: asyncio.Event = field(default_factory=asyncio.Event)
    pieces: deque[Piece] = field(default_factory=deque[Piece])
    cached: int = 0
    """Tokens of its prompts that were not computed again."""
    error: RefusedError | None = None
    due_s: float = 0.0
    """When its caller is to hear of new pieces, by the monotonic clock: of the first at once."""
    gone: bool = False


@dataclass(kw_only=True, eq=False)
class _Choice:
    """One text on its way."""

    stream: _Stream
    number: int
    row: Row
    left: int
    ends: Collection[int]
    text: Callable[[int], str]
    stops: Stops

    def took(self) -> Piece:
        """The row's newest token."""
        self.left -= 1
        if self.row.token in self.ends:
            return self.number, self.stops.rest(), 1, "stop", None
        text = self.stops.through(self.text(self.row.token))
        if self.stops.stopped:
            return self.number, text, 1, "stop", self.row.scores
        if self.left == 0:
            return self.number, text + self.stops.rest(), 1, "length", self.row.scores
        return self.number, text, 1, None, self.row.scores


class ContinuousBatcher:
    """The thread, and the requests that it writes for.
    A request whose rows fit waits for nothing; others wait in their order."""

    def __init__(self, generator: Generator, max_rows: int) -> None:
        """max_rows: texts that are continued together."""
        self._generator, self._max_rows = generator, max_rows
        self._waiting: deque[_Stream] = deque()
        self._written: list[_Choice] = []
        self._streams: set[_Stream] = set()
        self._broken = self._closed = False
        self._callers = 0
        """Who has asked and not got all of it yet."""
        self._asked = threading.Condition()
        self._running = in_background("writer", self._run)
        self._running.add_done_callback(logged("the thread that continues texts"))

    @property
    def rows(self) -> int:
        """Texts that are being continued."""
        return len(self._written)

    async def write(self, asked: GenerationRequest) -> AsyncGenerator[PromptUsage | list[Piece]]:
        """First what the prompts were, when they have been read, then what comes, until all choices have ended. Closing
        it ends them. Raises: ParameterError for a prompt that does not fit the model, ModelError.
        """
        asked.check(self._max_rows)
        with self._asked:
            self._callers += 1
        try:
            async with aclosing(self._write(asked)) as coming:
                async for found in coming:
                    yield found
        finally:
            with self._asked:
                self._callers -= 1
                self._asked.notify()

    async def _write(self, asked: GenerationRequest) -> AsyncGenerator[PromptUsage | list[Piece]]:
        generator = self._generator
        prompts = await asyncio.to_thread(lambda: [tokens_of(generator, each, asked.max_tokens)
                                                   for each in asked.prompts])
        held_to = asked.held_to
        constraint = None if held_to is None else await asyncio.to_thread(constraint_of, generator, held_to)
        stream = _Stream(prompts=prompts, constraint=constraint, asked=asked, loop=asyncio.get_running_loop())
        with self._asked:
            if self._broken:
                raise ModelError("the model failed: see the replica's log")
            self._waiting.append(stream)
            self._streams.add(stream)
            self._asked.notify()
        try:
            left, told = asked.choices, False
            while left:
                await stream.news.wait()
                stream.news.clear()
                found = [stream.pieces.popleft() for _ in range(len(stream.pieces))]
                left -= sum(piece[3] is not None for piece in found)
                if found and not told:
                    told = True
                    yield PromptUsage(tokens=sum(map(len, prompts)), cached=stream.cached)
                if found:
                    yield found
                if left and stream.error is not None:
                    raise stream.error
        finally:
            stream.gone = True
            with self._asked:
                self._streams.discard(stream)

    def check(self) -> None:
        """Raises what ended the thread, if anything has."""
        if self._running.done():
            self._running.result()

    def close(self) -> None:
        """Ends the thread when all who have asked have got their texts."""
        with self._asked:
            self._closed = True
            self._asked.notify()

    # ── the thread ──
    def _run(self) -> None:
        try:
            self._write_forever()
        finally:  # only an error ends it: nobody waits for a text that will not come
            with self._asked:
                self._broken = True
                for stream in self._streams:
                    stream.error = ModelError("the model failed: see the replica's log")
                _wake(self._streams)

    def _write_forever(self) -> None:
        while True:
            with self._asked:
                while not self._waiting and not self._written:
                    if self._closed and not self._callers:
                        return
                    self._asked.wait()
            self._leave([choice for choice in self._written if choice.stream.gone])
            if new := self._next():
                _wake({choice.stream for choice in self._written})  # a long prompt may take a while
            for stream in new:
                self._begin(stream)
            if self._written:
                self._go_on()

    def _next(self) -> list[_Stream]:
        """Those who waited longest, as far as there is room. Who does not listen any more is left out."""
        found: list[_Stream] = []
        room = self._max_rows - self.rows
        while self._waiting and (self._waiting[0].gone or self._waiting[0].asked.choices <= room):
            stream = self._waiting.popleft()
            if not stream.gone:
                room -= stream.asked.choices
                found.append(stream)
        return found

    def _begin(self, stream: _Stream) -> None:
        joined: list[_Choice] = []
        try:
            for place, prompt in enumerate(stream.prompts):
                choices = [self._choice(stream, place, place * stream.asked.n + k) for k in range(stream.asked.n)]
                stream.cached += self._generator.join(prompt, [choice.row for choice in choices])
                joined += choices
        except Exception:  # noqa: BLE001  (its caller hears of it, and the others' texts go on)
            _log.exception("a prompt of %d tokens failed", max(map(len, stream.prompts)))
            self._break_off(joined, stream)
            return
        self._written += joined
        self._tell(joined)

    def _choice(self, stream: _Stream, place: int, number: int) -> _Choice:
        """place: of its prompt."""
        asked, generator = stream.asked, self._generator
        row = generator.row(asked.temperature, asked.top_p, _random(asked.seed, number), asked.top_logprobs,
                            stream.constraint)
        chat = generator.chat if isinstance(asked.prompts[place], ChatPrompt) else None
        left = asked.max_tokens or (generator.max_tokens or _ENDLESS) - len(stream.prompts[place])
        return _Choice(stream=stream, number=number, row=row, left=left,
                       ends={generator.end_id, *(chat.ends if chat else ())},
                       text=(chat or generator).pieces(), stops=Stops(asked.stop))

    def _go_on(self) -> None:
        try:
            self._generator.step()
        except Exception:  # noqa: BLE001  (as above; none of the texts can go on)
            _log.exception("the model failed with %d rows", self.rows)
            self._break_off(self._written, *{choice.stream for choice in self._written})
            return
        self._tell(self._written)

    def _tell(self, choices: Sequence[_Choice]) -> None:
        """The newest token of each, to who listens, if it is time; those that have ended leave."""
        ended: list[_Choice] = []
        now = time.monotonic()
        told: set[_Stream] = set()
        for choice in choices:
            piece = choice.took()
            choice.stream.pieces.append(piece)
            if piece[3] is not None:
                ended.append(choice)
            if piece[3] is not None or now >= choice.stream.due_s:
                told.add(choice.stream)
        for stream in told:
            stream.due_s = now + _PACE_S + _PACE_OF_A_TEXT_S * self.rows
        _wake(told)
        self._leave(ended)

    def _break_off(self, gone: Sequence[_Choice], *streams: _Stream) -> None:
        self._leave(gone)
        for stream in streams:
            stream.error = ModelError("the model failed: see the replica's log")
        _wake(streams)

    def _leave(self, gone: Sequence[_Choice]) -> None:
        if gone:
            self._generator.leave([choice.row for choice in gone])
            self._written = [choice for choice in self._written if choice not in gone]


def _wake(streams: Collection[_Stream]) -> None:
    """All in one go: a call for each would cost more than the token."""
    for loop in {stream.loop for stream in streams}:
        try:
            loop.call_soon_threadsafe(_set, [stream.news for stream in streams if stream.loop is loop])
        except RuntimeError:  # the event loop has ended, with all who listened
            for stream in streams:
                stream.gone = True


def _set(events: Sequence[asyncio.Event]) -> None:
    for event in events:
        event.set()


def _random(seed: int | None, choice: int) -> np.random.Generator:
    return np.random.default_rng() if seed is None else np.random.default_rng([seed % (1 << 64), choice])


