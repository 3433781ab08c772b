"""The endpoint over HTTP, in front of serving/endpoint/pipeline.py: an ASGI application, with no framework.

    GET  /v2/health/live | /v2/health/ready          without a key
    GET  /v2 · /v2/models · /v2/models/M[/versions/V][/ready]
    POST /v2/models/M[/versions/V]/infer · /explain
    POST /v1/completions · GET /v1/models[/M]         text, as OpenAI's clients ask for it (serving/text/completions.py)
    GET  / (playground) · /docs · /openapi.json · /live (what the playground shows of the endpoint)

A key is a bearer token, or the password of HTTP's basic scheme, which a browser asks for.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

import orjson

from cluster.core.background import in_loop
from jobs.common.artifact.tensor_spec import TensorSpec
from serving.core.errors import (
    BadRequestError,
    CompressedError,
    DeadlineError,
    MethodError,
    RefusedError,
    TooLargeError,
    UnauthorisedError,
    UnknownModelError,
)
from serving.core.settings import EndpointSettings
from serving.endpoint.cross_origin import Browsers
from serving.endpoint.pages import docs_page, openapi, playground_page
from serving.endpoint.pipeline import Parse, Request, RequestPipeline, joined
from serving.model.explanations import MOST_ROWS
from serving.protocols import open_inference_json as protocol
from serving.text import completions, openai_protocol
from serving.traffic.metrics import EndpointMetrics
from serving.traffic.rate_limit import Lease
from serving.traffic.routing import Route, Table

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
_MODEL = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?(/ready|/infer|/explain)?")
_READ = re.compile(r"/v2/?|/v2/models|/v1/models(/[^/]+)?|/|/docs|/openapi\.json|/live")
"""Paths that are only read, beside those of a model."""
_OPEN = ("/v2/health/live", "/v2/health/ready")
_SLACK = 1.02
"""Of a deadline, after what waits inside has had its own, and before Serve has (`core._OURS`)."""
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

    def __init__(self, settings: EndpointSettings, table: Table, measures: EndpointMetrics, lease: Lease | None = None,
                 replicas: Callable[[], Mapping[str, Any]] = dict) -> None:
        """lease: see Limits. replicas: how many run, for the playground."""
        self.core = RequestPipeline(settings, table, measures, lease)
        self.settings, self.table, self._measures, self._replicas = settings, table, measures, replicas
        self._browsers = Browsers(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            beat = in_loop(self._measures.beat(self.table, self.core.keys), "the beat of the metrics")
            await _lifespan(receive, send)
            beat.cancel()
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
        if request.path in _OPEN:
            _allow(request, "GET", "HEAD")
            return self._health(request.path)
        timeout_s = self.core.timeout_s(request)
        try:
            async with asyncio.timeout(_SLACK * timeout_s):
                return await self._answer(request, receive)
        except TimeoutError:
            what = "the body did not come" if request.comes else "not answered"
            raise DeadlineError(f"{what} within {timeout_s:.3g} s") from None

    async def _answer(self, request: Request, receive: Receive) -> Answer:
        if (told := self._browsers.preflight(request.method, request.headers)) is not None:
            return Answer(b"", headers=told)
        if not request.path:  # from there, what the pages name would not be found
            return Answer(b"", 308, headers=((b"location", f"{self.settings.root_path}/".encode()),))
        self._browsers.admit(request.headers)
        await self.core.admit(request)
        match = _MODEL.fullmatch(request.path)
        if match is not None and match[3] in ("/infer", "/explain"):
            _allow(request, "POST")
            request.route, request.explained = self.table.route(match[1], match[2]), match[3] == "/explain"
            return await (self._explain if request.explained else self._infer)(request, request.route, receive)
        if request.path == "/v1/completions":
            _allow(request, "POST")
            return await self._text(request, receive)
        if match is None and not _READ.fullmatch(request.path):
            raise UnknownModelError("there is nothing at this path: see /docs")
        _allow(request, "GET", "HEAD")
        if match is not None:
            return await self._model(match[1], match[2], ready=match[3] is not None)
        return await self._read(request.path)

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
        body = await _body(receive, request, self.settings.max_request_bytes)
        length = request.headers.get(protocol.HEADER_LENGTH.encode())
        return lambda about: protocol.parse_request(body, None if length is None else length.decode("latin-1"), about["inputs"],
                                                    about[outputs], most, limit)

    async def _text(self, request: Request, receive: Receive) -> Answer:
        timeout_s = self.core.timeout_s(request)
        body = await _body(receive, request, self.settings.max_request_bytes)
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

    def _health(self, path: str) -> Answer:
        if path == "/v2/health/live":
            return Answer(b'{"live":true}')
        there = self.table.is_ready()
        return Answer(b'{"ready":%s}' % (b"true" if there else b"false"), 200 if there else 503)

    async def _read(self, path: str) -> Answer:
        if path in ("/v2", "/v2/"):
            return Answer(orjson.dumps(self.table.server()))
        if path == "/v2/models":
            return Answer(orjson.dumps({"models": await self.table.all_described()}))
        if path == "/v1/models":
            return Answer(await completions.model_list(self.table))
        if path.startswith("/v1/models/"):
            route = completions.route_of(self.table, path.removeprefix("/v1/models/"))
            return Answer(await completions.model(route), headers=route.headers)
        if path == "/live":
            return Answer(orjson.dumps({**self._measures.live(), **self.table.live(), "replicas": self._replicas()}))
        if path == "/openapi.json":
            described = openapi(await self.table.all_described(), self.settings.root_path)
            return Answer(orjson.dumps(described, option=orjson.OPT_SERIALIZE_NUMPY))
        page = playground_page() if path == "/" else docs_page()
        return Answer(page, content_type=_HTML, headers=((b"content-security-policy", _POLICY), (b"x-frame-options", b"DENY")))


def _found(request: protocol.InferRequest, outputs: Mapping[str, Any], specs: Sequence[TensorSpec], route: Route) -> Answer:
    data, json_length = protocol.answer(request, outputs, specs, route.said)
    if json_length is None:
        return Answer(data, headers=route.headers)
    return Answer(data, content_type=_BINARY,
                  headers=(*route.headers, (protocol.HEADER_LENGTH.encode(), str(json_length).encode())))


async def _send_plainly(send: Send, message: dict[str, Any]) -> None:
    """Answers a WebSocket's handshake as what it is without one: a request over HTTP."""
    await send({**message, "type": f"websocket.{message['type']}"})


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
    if isinstance(error, CompressedError):
        headers.append((b"accept-encoding", b"identity"))
    if isinstance(error, UnauthorisedError):
        headers.append((b"www-authenticate", b'Basic realm="trainyard: any name, and a key as the password", charset="UTF-8"'))
    return Answer(body, error.status, headers=tuple(headers))


async def _body(receive: Receive, request: Request, most: int) -> bytes:
    """Raises: TooLargeError before all of it has come."""
    headers = request.headers
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise CompressedError("the body is compressed: send it as it is")
    length = headers.get(b"content-length", b"0")
    if not re.fullmatch(rb"[0-9]{1,18}", length):
        raise BadRequestError("Content-Length is no number of bytes")
    if int(length) > most:
        raise TooLargeError(f"the body has {int(length)} bytes: at most {most}")
    pieces: list[bytes] = []
    size = 0
    request.comes = True
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise BadRequestError("the caller has gone")
        piece = message.get("body", b"")
        size += len(piece)
        if size > most:
            raise TooLargeError(f"the body has more than {most} bytes")
        pieces.append(piece)
        if not message.get("more_body", False):
            request.comes, request.size = False, size
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)


async def _lifespan(receive: Receive, send: Send) -> None:
    while (await receive())["type"] != "lifespan.shutdown":
        await send({"type": "lifespan.startup.complete"})
    await send({"type": "lifespan.shutdown.complete"})
