"""The endpoint over HTTP, in front of serving/core.py: an ASGI application, with no framework.

    GET  /v2/health/live | /v2/health/ready          without a key
    GET  /v2 · /v2/models · /v2/models/M[/versions/V][/ready]
    POST /v2/models/M[/versions/V]/infer · /explain
    POST /v1/completions · GET /v1/models[/M]         text, as OpenAI's clients ask for it (serving/completions.py)
    GET  / (playground) · /docs · /openapi.json · /live (what the playground shows of the endpoint)

A key is a bearer token, or the password of HTTP's basic scheme, which a browser asks for.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

import orjson

from jobs.common.open_inference import TensorSpec
from serving import completions, openai_protocol, protocol
from serving.core import Core, Parse, Request
from serving.errors import (
    BadRequestError,
    DeadlineError,
    MethodError,
    RefusedError,
    TooLargeError,
    UnauthorisedError,
    UnknownModelError,
)
from serving.explaining import MOST_ROWS
from serving.limits import Lease
from serving.measures import Measures
from serving.pages import docs_page, openapi, playground_page
from serving.routing import Route, Table
from serving.settings import EndpointSettings

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
_MODEL = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?(/ready|/infer|/explain)?")
_OPEN = ("/v2/health/live", "/v2/health/ready")
_JSON, _BINARY, _HTML = b"application/json", b"application/octet-stream", b"text/html; charset=utf-8"
_POLICY = b"default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' blob: data:"


class Answer:
    """What goes back: status, body, and headers beside its type and length. text: in place of a body, as it is written."""

    __slots__ = ("body", "content_type", "headers", "status", "text")

    def __init__(self, body: bytes, status: int = 200, content_type: bytes = _JSON,
                 headers: tuple[tuple[bytes, bytes], ...] = (), text: completions.Completion | None = None) -> None:
        self.body, self.status, self.content_type, self.headers, self.text = body, status, content_type, headers, text

    @property
    def size(self) -> int:
        return len(self.body)

    @property
    def streams(self) -> bool:
        return self.text is not None


class Endpoint:
    """The application. `table` says which model answers."""

    def __init__(self, settings: EndpointSettings, table: Table, measures: Measures, lease: Lease | None = None,
                 replicas: Callable[[], Mapping[str, Any]] = dict) -> None:
        """lease: see Limits. replicas: how many run, for the playground. Raises: ConfigError for keys that cannot be read."""
        self.core = Core(settings, table, measures, lease)
        self.settings, self.table, self._measures, self._replicas = settings, table, measures, replicas

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            beat = asyncio.ensure_future(self._measures.beat(self.table))
            await _lifespan(receive, send)
            beat.cancel()
        elif scope["type"] == "http":
            await self._http(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(method=scope["method"], path=scope["path"], headers=dict(scope["headers"]))
        answer = await self.core.attempt(request, self._answer(request, receive), partial(_refusal, request.path))
        if answer.text is not None:
            await _pass_on(answer.text, answer.headers, send, partial(self.core.tell, request))
            return
        await send({"type": "http.response.start", "status": answer.status, "headers": [
            (b"content-type", answer.content_type), (b"content-length", str(answer.size).encode()), *answer.headers]})
        await send({"type": "http.response.body", "body": answer.body})

    async def _answer(self, request: Request, receive: Receive) -> Answer:
        if request.path not in _OPEN:
            await self.core.admit(request)
        match = _MODEL.fullmatch(request.path)
        if match is not None and match[3] == "/infer":
            _allow(request, "POST")
            request.route, request.explained = self.table.route(match[1], match[2]), False
            return await self._infer(request, request.route, receive)
        if match is not None and match[3] == "/explain":
            _allow(request, "POST")
            request.route, request.explained = self.table.route(match[1], match[2]), True
            return await self._explain(request, request.route, receive)
        if request.path == "/v1/completions":
            _allow(request, "POST")
            return await self._text(request, receive)
        _allow(request, "GET", "HEAD")
        if request.path == "/v1/models":
            return Answer(await completions.model_list(self.table))
        if request.path.startswith("/v1/models/"):
            route = completions.route_of(self.table, request.path.removeprefix("/v1/models/"))
            return Answer(await completions.model(route), headers=route.headers)
        if match is not None:
            return await self._model(match[1], match[2], ready=match[3] is not None)
        return await self._page(request.path)

    async def _infer(self, request: Request, route: Route, receive: Receive) -> Answer:
        parse = await self._parser(request, receive, "outputs", route.settings.max_batch_rows, "--max-batch-rows")
        asked, outputs, about = await self.core.infer(request, route, parse)
        return _found(asked, outputs, about["outputs"], route)

    async def _explain(self, request: Request, route: Route, receive: Receive) -> Answer:
        most = min(MOST_ROWS, route.settings.max_batch_rows)
        parse = await self._parser(request, receive, "explanation", most, "explanations")
        asked, outputs, about = await self.core.explain(request, route, parse)
        return _found(asked, outputs, about["explanation"], route)

    async def _parser(self, request: Request, receive: Receive, outputs: str, most: int, limit: str) -> Parse:
        """Of the request's body, once it has come. outputs: which tensors of a model's description are asked for. most:
        rows of a request. limit: what they are limited by, for the message.
        """
        headers = request.headers
        if headers.get(b"content-encoding", b"identity") != b"identity":
            raise BadRequestError("the body is compressed: send it as it is")
        body = await _body(receive, headers, self.settings.max_request_bytes, self.settings.timeout_s)
        request.size = len(body)
        length = headers.get(protocol.HEADER_LENGTH.encode())
        return lambda about: protocol.parse_request(body, None if length is None else length.decode("latin-1"), about["inputs"],
                                                    about[outputs], most, limit)

    async def _text(self, request: Request, receive: Receive) -> Answer:
        timeout_s = self.core.timeout_s(request)
        body = await _body(receive, request.headers, self.settings.max_request_bytes, timeout_s)
        request.size = len(body)
        asked = await self.core.read(request, openai_protocol.parse, body)
        route = request.route = completions.route_of(self.table, asked.model)
        text = completions.Completion(asked, route, timeout_s, self._measures)
        if not asked.stream:
            return Answer(await text.whole(), headers=route.headers)
        await text.begin()
        return Answer(b"", headers=route.headers, text=text)

    async def _model(self, name: str, version: str | None, *, ready: bool) -> Answer:
        route = self.table.route(name, version)
        if ready:
            there = route.ready()
            return Answer(orjson.dumps({"name": name, "ready": there}), 200 if there else 503)
        return Answer(orjson.dumps(await self.table.metadata(name, route)))

    async def _page(self, path: str) -> Answer:
        if path == "/v2/health/live":
            return Answer(b'{"live":true}')
        if path == "/v2/health/ready":
            there = self.table.is_ready()
            return Answer(b'{"ready":%s}' % (b"true" if there else b"false"), 200 if there else 503)
        if path in ("/v2", "/v2/"):
            return Answer(orjson.dumps(self.table.server()))
        if path == "/v2/models":
            return Answer(orjson.dumps({"models": await self.table.all_described()}))
        if path == "/live":
            return Answer(orjson.dumps({**self._measures.live(), **self.table.live(), "replicas": self._replicas()}))
        if path == "/openapi.json":
            return Answer(orjson.dumps(openapi(await self.table.all_described()), option=orjson.OPT_SERIALIZE_NUMPY))
        if path in ("/", "/docs"):
            page = playground_page() if path == "/" else docs_page()
            return Answer(page, content_type=_HTML, headers=((b"content-security-policy", _POLICY), (b"x-frame-options", b"DENY")))
        raise UnknownModelError("there is nothing at this path: see /docs")


def _found(request: protocol.InferRequest, outputs: Mapping[str, Any], specs: Sequence[TensorSpec], route: Route) -> Answer:
    data, json_length = protocol.answer(request, outputs, specs, route.said)
    if json_length is None:
        return Answer(data, headers=route.headers)
    return Answer(data, content_type=_BINARY,
                  headers=(*route.headers, (protocol.HEADER_LENGTH.encode(), str(json_length).encode())))


def _allow(request: Request, *methods: str) -> None:
    if request.method not in methods:
        raise MethodError(methods)


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
    body = openai_protocol.refusal(error) if path.startswith("/v1/") else orjson.dumps({"error": str(error)})
    headers: list[tuple[bytes, bytes]] = []
    if error.retry_after_s is not None:
        headers.append((b"retry-after", str(max(1, round(error.retry_after_s + 0.5))).encode()))
    if isinstance(error, MethodError):
        headers.append((b"allow", ", ".join(error.methods).encode()))
    if isinstance(error, UnauthorisedError):
        headers.append((b"www-authenticate", b'Basic realm="trainyard: any name, and a key as the password", charset="UTF-8"'))
    return Answer(body, error.status, headers=tuple(headers))


async def _body(receive: Receive, headers: Mapping[bytes, bytes], most: int, timeout_s: float) -> bytes:
    """Raises: TooLargeError before all of it has come, DeadlineError if its end does not come."""
    if headers.get(b"content-encoding", b"identity") != b"identity":
        raise BadRequestError("the body is compressed: send it as it is")
    length = headers.get(b"content-length", b"0")
    if not length.isdigit():
        raise BadRequestError("Content-Length is no number")
    if int(length) > most:
        raise TooLargeError(f"the body has {int(length)} bytes: at most {most}")
    pieces: list[bytes] = []
    size = 0
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            message = await (receive() if not pieces else asyncio.wait_for(receive(), max(0.0, deadline - time.monotonic())))
        except TimeoutError:
            raise DeadlineError(f"the body did not come within {timeout_s:g} s") from None
        if message["type"] == "http.disconnect":
            raise BadRequestError("the caller has gone")
        piece = message.get("body", b"")
        size += len(piece)
        if size > most:
            raise TooLargeError(f"the body has more than {most} bytes")
        pieces.append(piece)
        if not message.get("more_body", False):
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)


async def _lifespan(receive: Receive, send: Send) -> None:
    while (await receive())["type"] != "lifespan.shutdown":
        await send({"type": "lifespan.startup.complete"})
    await send({"type": "lifespan.shutdown.complete"})
