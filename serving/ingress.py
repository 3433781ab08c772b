"""The way of a request: key → rate → path → body → tensors → batch → replica → answer. An ASGI application, with no framework.

    GET  /v2/health/live | /v2/health/ready          without a key
    GET  /v2 · /v2/models · /v2/models/M[/versions/V][/ready]
    POST /v2/models/M[/versions/V]/infer
    GET  / (playground) · /docs · /openapi.json · /live (what the playground shows of the endpoint)

A key is a bearer token, or the password of HTTP's basic scheme, which a browser asks for.
"""

import asyncio
import base64
import binascii
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import orjson

from serving import protocol
from serving.errors import (
    BadRequestError,
    DeadlineError,
    MethodError,
    ModelError,
    RateLimitError,
    RefusedError,
    TooLargeError,
    UnauthorisedError,
    UnknownModelError,
)
from serving.keys import Keys
from serving.measures import Measures
from serving.pages import docs_page, openapi, playground_page
from serving.routing import Route, Table
from serving.settings import EndpointSettings

T = TypeVar("T")
Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
_MODEL = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?(/ready|/infer)?")
_OPEN = ("/v2/health/live", "/v2/health/ready")
_JSON, _BINARY, _HTML = b"application/json", b"application/octet-stream", b"text/html; charset=utf-8"
_POLICY = b"default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' blob: data:"
_OURS = 0.95
"""Of the header's time, which Serve keeps too, with an answer of its own form: ours is to come first."""
ACCESS_LOG = "trainyard.access"
"""The logger of a line of JSON for each request, with nothing of what is in it."""
_access = logging.getLogger(ACCESS_LOG)
_log = logging.getLogger(__name__)


class Answer:
    """What goes back: status, body, and headers beside its type and length."""

    __slots__ = ("body", "content_type", "headers", "status")

    def __init__(self, body: bytes, status: int = 200, content_type: bytes = _JSON,
                 headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        self.body, self.status, self.content_type, self.headers = body, status, content_type, headers


class Bucket:
    """Tokens that come at a rate, up to a second's worth."""

    def __init__(self, per_s: float) -> None:
        self._per_s, self._tokens, self._at = per_s, max(1.0, per_s), time.monotonic()

    def wait_s(self) -> float:
        """Takes a token; if there is none, says after how many seconds there will be."""
        now = time.monotonic()
        self._tokens = min(max(1.0, self._per_s), self._tokens + (now - self._at) * self._per_s)
        self._at = now
        if self._tokens < 1:
            return (1 - self._tokens) / self._per_s
        self._tokens -= 1
        return 0.0


class Endpoint:
    """The application. `table` says which model answers."""

    def __init__(self, settings: EndpointSettings, table: Table, measures: Measures) -> None:
        """Raises: ConfigError for keys that cannot be read."""
        self.settings, self.table, self._measures = settings, table, measures
        self._keys = Keys(settings.keys_file) if settings.auth else None
        self._buckets: dict[str, Bucket] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        headers: dict[bytes, bytes] = dict(scope["headers"])
        request_id, caller = _request_id(headers), "-"
        note: dict[str, Any] = {}
        cause = ""
        try:
            caller = self._caller(scope["path"], headers)
            answer = await self._answer(scope, headers, receive, note)
        except RefusedError as error:
            answer, cause = _refusal(error), error.cause
            if isinstance(error, ModelError):
                _log.error("request %s: %s", request_id, error)
        except Exception:  # noqa: BLE001  (ours: the caller learns that it is, and nothing else)
            _log.exception("request %s failed", request_id)
            answer, cause = _refusal(ModelError("internal error")), ModelError.cause
        seconds = time.perf_counter() - began
        self._measures.request(note.get("route"), answer.status, cause, seconds)
        await send({"type": "http.response.start", "status": answer.status, "headers": [
            (b"content-type", answer.content_type), (b"content-length", str(len(answer.body)).encode()), *answer.headers]})
        await send({"type": "http.response.body", "body": answer.body})
        if _access.isEnabledFor(logging.INFO):
            _access.info(orjson.dumps({"id": request_id, "method": scope["method"], "path": scope["path"], "status": answer.status,
                                       "ms": round(1000 * seconds, 2), "caller": caller, "bytes": len(answer.body)}).decode())

    # ── who asks ──
    def _caller(self, path: str, headers: Mapping[bytes, bytes]) -> str:
        """The name of the key. Raises: UnauthorisedError, RateLimitError."""
        if self._keys is None or path in _OPEN:
            return "-"
        key = _key(headers)
        if key is None:
            raise UnauthorisedError("no key: send the header `Authorization: Bearer KEY`")
        name = self._keys.name_of(key)
        if name is None:
            raise UnauthorisedError("the key is not known")
        if self.settings.requests_per_s is not None:
            bucket = self._buckets.setdefault(name, Bucket(self.settings.requests_per_s))
            if (wait_s := bucket.wait_s()) > 0:
                raise RateLimitError(f"more than {self.settings.requests_per_s:g} requests a second with this key", wait_s)
        return name

    # ── what is asked ──
    async def _answer(self, scope: Scope, headers: Mapping[bytes, bytes], receive: Receive, note: dict[str, Any]) -> Answer:
        path: str = scope["path"]
        match = _MODEL.fullmatch(path)
        if match is not None and match[3] == "/infer":
            _allow(scope, "POST")
            route = note["route"] = self.table.route(match[1], match[2])
            return await self._infer(route, headers, receive)
        _allow(scope, "GET", "HEAD")
        if match is not None:
            return await self._model(match[1], match[2], ready=match[3] is not None)
        return await self._page(path)

    async def _infer(self, route: Route, headers: Mapping[bytes, bytes], receive: Receive) -> Answer:
        began = time.perf_counter()
        if headers.get(b"content-encoding", b"identity") != b"identity":
            raise BadRequestError("the body is compressed: send it as it is")
        body = await _body(receive, headers, self.settings.max_request_bytes, self.settings.timeout_s)
        about = await _within(route.about(), _timeout({}, headers, self.settings.timeout_s))
        length = headers.get(protocol.HEADER_LENGTH.encode())
        request = protocol.parse_request(body, length.decode("latin-1") if length is not None else None, about["inputs"],
                                         about["outputs"], route.settings.max_batch_rows)
        timeout_s = _timeout(request.parameters, headers, self.settings.timeout_s) - (time.perf_counter() - began)
        if timeout_s <= 0:
            raise DeadlineError("the deadline had passed when the request had come in")
        outputs = await route.infer(request.inputs, request.rows, timeout_s)
        self._measures.rows(route, request.rows)
        data, json_length = protocol.answer(request, outputs, about["outputs"], route.said)
        if json_length is None:
            return Answer(data, headers=route.headers)
        return Answer(data, content_type=_BINARY,
                      headers=(*route.headers, (protocol.HEADER_LENGTH.encode(), str(json_length).encode())))

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
            return Answer(orjson.dumps({"models": [await self.table.described(name) for name in self.table.names]}))
        if path == "/live":
            return Answer(orjson.dumps(self._measures.live() | self.table.live()))
        if path == "/openapi.json":
            models = [await self.table.described(name) for name in self.table.names]
            return Answer(orjson.dumps(openapi(models), option=orjson.OPT_SERIALIZE_NUMPY))
        if path in ("/", "/docs"):
            page = playground_page() if path == "/" else docs_page()
            return Answer(page, content_type=_HTML, headers=((b"content-security-policy", _POLICY), (b"x-frame-options", b"DENY")))
        raise UnknownModelError("there is nothing at this path: see /docs")


def _allow(scope: Scope, *methods: str) -> None:
    if scope["method"] not in methods:
        raise MethodError(methods)


def _refusal(error: RefusedError) -> Answer:
    message = "internal error" if isinstance(error, ModelError) else str(error)
    headers: list[tuple[bytes, bytes]] = []
    if error.retry_after_s is not None:
        headers.append((b"retry-after", str(max(1, round(error.retry_after_s + 0.5))).encode()))
    if isinstance(error, MethodError):
        headers.append((b"allow", ", ".join(error.methods).encode()))
    if isinstance(error, UnauthorisedError):
        headers.append((b"www-authenticate", b'Basic realm="trainyard: any name, and a key as the password", charset="UTF-8"'))
    return Answer(orjson.dumps({"error": message}), error.status, headers=tuple(headers))


def _key(headers: Mapping[bytes, bytes]) -> str | None:
    scheme, _, value = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        if headers.get(b"sec-fetch-site") == b"cross-site":
            return None  # another site's page, with what the browser remembers
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, ValueError):
            return None
    return None


def _request_id(headers: Mapping[bytes, bytes]) -> str:
    """The caller's, or Serve's, which is also what sends it back; in a form that a log line can hold."""
    given = headers.get(b"x-request-id", b"").decode("latin-1")
    return given if re.fullmatch(r"[\w.\-]{1,64}", given) else uuid.uuid4().hex


def _timeout(parameters: Mapping[str, Any], headers: Mapping[bytes, bytes], most_s: float) -> float:
    """The smallest of the server's, the header's (seconds) and the request's `timeout` (microseconds, as Triton has it)."""
    found = [most_s]
    if (given := headers.get(b"x-request-timeout-seconds")) is not None:
        try:
            found.append(_OURS * float(given))
        except ValueError:
            raise BadRequestError("X-Request-Timeout-Seconds is no number") from None
    timeout = parameters.get("timeout")
    if timeout is not None:
        if isinstance(timeout, bool) or not isinstance(timeout, int | float):
            raise BadRequestError("parameter `timeout` is no number of microseconds")
        found.append(timeout / 1e6)
    if not min(found) > 0:
        raise BadRequestError("a timeout must be more than 0")
    return min(found)


async def _within(coming: Awaitable[T], timeout_s: float) -> T:
    """Raises: DeadlineError."""
    try:
        return await asyncio.wait_for(coming, timeout_s)
    except TimeoutError:
        raise DeadlineError(f"not answered within {timeout_s:.3g} s") from None


async def _body(receive: Receive, headers: Mapping[bytes, bytes], most: int, timeout_s: float) -> bytes:
    """Raises: TooLargeError before all of it has come, DeadlineError if its end does not come."""
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
