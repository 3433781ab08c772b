"""The endpoint over HTTP, in front of serving/endpoint/pipeline.py: an ASGI application around Starlette's router.

What it answers is in operations.py; here is who may ask, by when it is answered, and what is said instead of an answer.
A key is a bearer token, or the password of HTTP's basic scheme, which a browser asks for.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from functools import partial

import orjson
from starlette.routing import Router
from starlette.types import Message, Receive, Scope, Send

from cluster.core.background import in_loop
from serving.core.errors import (
    CompressedError,
    DeadlineError,
    MethodError,
    RefusedError,
    UnauthorisedError,
    UnknownModelError,
)
from serving.core.settings import EndpointSettings
from serving.endpoint.cross_origin import Browsers
from serving.endpoint.openapi import Operation
from serving.endpoint.operations import Answer, Operations
from serving.endpoint.pipeline import Request, RequestPipeline, joined
from serving.text import completions, openai_protocol
from serving.traffic.metrics import EndpointMetrics
from serving.traffic.rate_limit import Lease
from serving.traffic.routing import Table

_SLACK = 1.02
"""Of a deadline, after what waits inside has had its own, and before Serve has (`core._OURS`)."""


class Endpoint:
    """The application. `table` says which model answers."""

    def __init__(self, settings: EndpointSettings, table: Table, measures: EndpointMetrics, lease: Lease | None = None,
                 replicas: Callable[[], Mapping[str, object]] = dict) -> None:
        """lease: see Limits. replicas: how many run, for the playground."""
        self.core = RequestPipeline(settings, table, measures, lease)
        self.settings, self.table, self._measures = settings, table, measures
        self._browsers = Browsers(settings)
        self.operations = Operations(self.core, replicas).all
        hot_first = sorted(self.operations, key=lambda each: each.takes is None)
        self._router = Router(hot_first, redirect_slashes=False, default=_nothing, lifespan=self._lifespan)

    @asynccontextmanager
    async def _lifespan(self, _: object) -> AsyncGenerator[None]:
        beat = in_loop(self._measures.beat(self.table, self.core.keys), "the beat of the metrics")
        yield
        beat.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._router(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope["method"], scope, receive, send)
        elif scope["type"] == "websocket":  # which begins as a GET does, and goes on as one here
            await self._http("GET", scope, receive, partial(_send_plainly, send))

    async def _http(self, method: str, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(method=method, path=self._path(scope["path"]), headers=joined(scope["headers"]))
        answer = await self.core.attempt(request, self._in_time(request, receive), partial(_refusal, request.path))
        headers = (*answer.headers, *self._browsers.said(request.headers))
        if answer.text is not None:
            await _pass_on(answer.text, headers, send, partial(self.core.tell, request))
            return
        await send({"type": "http.response.start", "status": answer.status, "headers": [
            (b"content-type", answer.content_type), (b"content-length", str(answer.size).encode()), *headers]})
        await send({"type": "http.response.body", "body": answer.body})

    def _path(self, path: str) -> str:
        """Without what a proxy gives the endpoint out under, which some proxies leave there and others take away."""
        root = self.settings.root_path
        return path[len(root):] if root and f"{path}/".startswith(f"{root}/") else path

    async def _in_time(self, request: Request, receive: Receive) -> Answer:
        """What waits inside has ends of its own, and says what it waited for; this is the end of all that has none."""
        found: Scope = {"type": "http", "method": request.method, "path": request.path}
        await self._router(found, receive, _nothing)
        operation: Operation | None = found.get("operation")
        if operation is not None and operation.keyless:
            return await operation.respond(request, receive)
        timeout_s = self.core.timeout_s(request)
        try:
            async with asyncio.timeout(_SLACK * timeout_s):
                if (answer := await self._admit(request)) is not None:
                    return answer
                if operation is None:
                    raise UnknownModelError("there is nothing at this path: see /docs")
                return await operation.respond(request, receive, **found["path_params"])
        except TimeoutError:
            what = "the body did not come" if request.comes else "not answered"
            raise DeadlineError(f"{what} within {timeout_s:.3g} s") from None

    async def _admit(self, request: Request) -> Answer | None:
        """What is answered to anybody at any path. Raises: RefusedError for whoever may not ask."""
        if (told := self._browsers.preflight(request.method, request.headers)) is not None:
            return Answer(b"", headers=told)
        if not request.path:  # from there, what the pages name would not be found
            return Answer(b"", 308, headers=((b"location", f"{self.settings.root_path}/".encode()),))
        self._browsers.admit(request.headers)
        await self.core.admit(request)
        return None


async def _nothing(*_: object) -> None:
    """Is at a path without an operation; and what is sent when the router has found one, which answers later."""


async def _send_plainly(send: Send, message: Message) -> None:
    """Answers a WebSocket's handshake as what it is without one: a request over HTTP."""
    await send({**message, "type": f"websocket.{message['type']}"})


async def _pass_on(text: completions.Completion, headers: tuple[tuple[bytes, bytes], ...], send: Send,
                   tell: Callable[[int, str, int], None]) -> None:
    """Sends a text as it is written. tell: of status, cause and bytes, when it has ended."""
    size = 0
    try:
        await send({"type": "http.response.start", "status": 200, "headers": [
            (b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"), *headers]})
        async with aclosing(text.events()) as events:
            async for event in events:
                size += len(event)
                await send({"type": "http.response.body", "body": event, "more_body": True})
    except asyncio.CancelledError:
        tell(499, "caller_gone", size)
        raise
    tell(200, text.cause, size)
    await send({"type": "http.response.body", "body": b""})


def _refusal(path: str, error: RefusedError) -> Answer:
    body = openai_protocol.refusal(error) if f"{path}/".startswith("/v1/") else orjson.dumps({"error": str(error)})
    headers: list[tuple[bytes, bytes]] = []
    if error.retry_after_s is not None:
        headers.append((b"retry-after", str(max(1, round(error.retry_after_s + 0.5))).encode()))
    if isinstance(error, MethodError):
        headers.append((b"allow", ", ".join(error.methods).encode()))
    if isinstance(error, CompressedError):
        headers.append((b"accept-encoding", b"identity"))
    if isinstance(error, UnauthorisedError):
        headers.append((b"www-authenticate",
                        b'Basic realm="trainyard: any name, and a key as the password", charset="UTF-8"'))
    return Answer(body, error.status, headers=tuple(headers))
