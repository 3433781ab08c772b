"""Text as OpenAI's clients get it: `POST /v1/completions` and `/v1/chat/completions`, in one piece or as server-sent
events."""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Any

import orjson

from serving.core.errors import DeadlineError, GoneError, ModelError, OverloadedError, RefusedError, UnknownModelError
from serving.text.choices import Choice, Form
from serving.text.continuous_batching import Piece
from serving.text.generation import PromptUsage
from serving.text.openai_chat import ChatRequest
from serving.text.openai_protocol import TextRequest, Usage, refusal
from serving.traffic.metrics import EndpointMetrics
from serving.traffic.routing import Route

_TRIES = 3
_log = logging.getLogger(__name__)


async def form_of(route: Route, request: TextRequest) -> Form:
    """Of an answer to a request. Raises: UnknownModelError for a conversation with a model that has none."""
    about = await route.about()
    if isinstance(request, ChatRequest) and not about["chats"]:
        error = UnknownModelError(f"model {route.settings.name!r} has no chat template: ask it by /v1/completions, or "
                                  "train it with --task chat (its template is --model.chat-template's)")
        error.param = "model"
        raise error
    return request.form(about["tool_calls"])


# ── answers ──
class Completion:
    """A request that a replica answers. `cause`: why a stream broke off, if it did."""

    def __init__(self, request: TextRequest, form: Form, route: Route, timeout_s: float,
                 measures: EndpointMetrics) -> None:
        """Raises: ParameterError."""
        self._request, self._form, self._route, self._measures = request, form, route, measures
        self._asked, self._timeout_s = request.asked, timeout_s
        self._asked.check(route.settings.max_batch_rows)
        self._began = time.perf_counter()
        self._until = asyncio.get_running_loop().time() + timeout_s
        self._prompt, self._tokens = PromptUsage(tokens=0, cached=0), 0
        self._same = {"id": f"{form.id}-{uuid.uuid4().hex}", "object": form.event if request.stream else form.whole,
                      "created": int(time.time()), "model": route.settings.name,
                      "system_fingerprint": f"{route.settings.version}-{route.settings.digest}"}
        self._first: list[Piece] = []
        self._coming: AsyncGenerator[list[Piece]] | None = None
        self.cause = ""

    async def whole(self) -> bytes:
        """Raises: RefusedError. A replica that dies is no reason: another one writes the text."""
        for _ in range(_TRIES - 1):
            with suppress(GoneError):
                return await self._whole()
        return await self._whole()

    async def _whole(self) -> bytes:
        choices = self._choices()
        self._tokens = 0
        try:
            async with aclosing(self._comes()) as coming:
                async for found in coming:
                    for piece in found:
                        choices[piece[0]].add(piece)
        finally:
            self._measure()
        return orjson.dumps({**self._same, "choices": [choice.whole() for choice in choices], "usage": self._usage()})

    def _choices(self) -> Sequence[Choice]:
        return [self._form.choice(number) for number in range(self._asked.choices)]

    async def begin(self) -> None:
        """Until there is something to send: what is refused is refused before. Raises: RefusedError."""
        for _ in range(_TRIES - 1):
            with suppress(GoneError):
                return await self._begin()
        return await self._begin()

    async def _begin(self) -> None:
        self._coming = self._comes()
        self._first = await anext(self._coming)

    async def events(self) -> AsyncGenerator[bytes]:
        """After `begin`. A stream that breaks off says so, in place of its end."""
        assert self._coming is not None
        choices = self._choices()
        try:
            async with aclosing(self._coming):
                if chunks := self._chunks(choices, self._first):
                    yield chunks
                async for found in self._coming:
                    if chunks := self._chunks(choices, found):
                        yield chunks
            if self._request.include_usage:
                yield _event({**self._same, "choices": [], "usage": self._usage()})
            yield b"data: [DONE]\n\n"
        except RefusedError as error:
            self.cause = error.cause
            yield b"data: %b\n\n" % refusal(error)
        except Exception as error:  # noqa: BLE001  (ours: the caller learns that it is, and nothing else)
            _log.exception("%s broke off", self._same["id"])
            self.cause = ModelError.cause
            yield b"data: %b\n\n" % refusal(ModelError(str(error)))
        finally:
            self._measure()

    def _chunks(self, choices: Sequence[Choice], found: Sequence[Piece]) -> bytes:
        """The events of each choice that has something new."""
        for piece in found:
            choices[piece[0]].add(piece)
        usage = {"usage": None} if self._request.include_usage else {}
        return b"".join(_event({**self._same, "choices": [event], **usage})
                        for number in dict.fromkeys(piece[0] for piece in found) for event in choices[number].events())

    async def _comes(self) -> AsyncGenerator[list[Piece]]:
        """What a replica writes, until the deadline. Raises: RefusedError."""
        route = self._route
        if route.waiting >= route.max_queued:
            raise OverloadedError(f"{route.waiting} requests wait already: try again later")
        route.waiting += 1
        waits = True
        try:
            async with aclosing(await route.ask("generate", self._asked)) as coming:
                while found := await self._next(coming):
                    if isinstance(found, PromptUsage):
                        self._prompt = found
                        continue
                    if waits:
                        route.waiting, waits = route.waiting - 1, False
                        self._measures.first_token(route, time.perf_counter() - self._began)
                    self._tokens += sum(piece[2] for piece in found)
                    yield found
        finally:
            route.waiting -= waits

    async def _next(self, coming: AsyncGenerator[Any]) -> PromptUsage | list[Piece]:
        try:
            async with asyncio.timeout_at(self._until):
                found = await anext(coming, None)
        except TimeoutError:
            raise DeadlineError(f"not finished within {self._timeout_s:.3g} s") from None
        if isinstance(found, RefusedError):
            raise found
        return found or []

    def _usage(self) -> Usage:
        prompt = self._prompt
        return {"prompt_tokens": prompt.tokens, "completion_tokens": self._tokens,
                "total_tokens": prompt.tokens + self._tokens, "prompt_tokens_details": {"cached_tokens": prompt.cached}}

    def _measure(self) -> None:
        self._measures.tokens(self._route, self._prompt.tokens, self._tokens)


def _event(message: Mapping[str, object]) -> bytes:
    return b"data: %b\n\n" % orjson.dumps(message)
