"""The way of a request, by whichever protocol it comes: key → rate → route → checks → batch → replica → answer.

HTTP (http.py) and gRPC (grpc.py) stand in front of it: they read a request, and write what it is answered with.
"""

import asyncio
import base64
import binascii
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol, TypeVar, TypeVarTuple

import orjson

from cluster.core.documents import JsonObject
from serving.core.api_keys import Keys
from serving.core.errors import (
    BadRequestError,
    DeadlineError,
    ModelError,
    RefusedError,
    UnauthorisedError,
    UnknownModelError,
)
from serving.core.settings import EndpointSettings
from serving.protocols.classification import likeliest
from serving.protocols.open_inference_json import QUICK_BYTES, InferRequest
from serving.traffic.batching import Outputs
from serving.traffic.metrics import EndpointMetrics
from serving.traffic.rate_limit import Lease, Limits
from serving.traffic.routing import Route, Table

ACCESS_LOG = "trainyard.access"
"""The logger of a line of JSON for each request, with nothing of what is in it."""
_OURS = 0.95
"""Of the header's time, which Serve keeps too, with an answer of its own form: ours is to come first."""
_READERS = 2
_access = logging.getLogger(ACCESS_LOG)
_log = logging.getLogger(__name__)


class Said(Protocol):
    """What a request is answered with. status: HTTP's, also where the protocol has codes of its own. size: in bytes.

    streams: whether it is not over with that.
    """

    @property
    def status(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def streams(self) -> bool: ...


Answer = TypeVar("Answer", bound=Said)
T = TypeVar("T")
Ts = TypeVarTuple("Ts")
Parse = Callable[[JsonObject], InferRequest]
"""A request as it fits a model, whose description a replica gives: `replica.describe`."""


@dataclass(kw_only=True, slots=True)
class Request:
    """One that is under way. headers: or gRPC's metadata; names in lower case."""

    method: str
    path: str
    headers: Mapping[bytes, bytes]
    id: str = ""
    """The caller's, or Serve's, which is also what sends it back; in a form that a log line can hold."""
    caller: str = "-"
    """The name of the key."""
    route: Route | None = None
    explained: bool = False
    """Whether it asks what an answer rests on."""
    comes: bool = False
    """Whether its body is waited for."""
    size: int = 0
    """Of its body, in bytes, once that has come."""
    began: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        given = self.headers.get(b"x-request-id", b"").decode("latin-1")
        self.id = given if re.fullmatch(r"[\w.\-]{1,64}", given) else uuid.uuid4().hex


def joined(pairs: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Headers by name. One that is there more than once is their list, as HTTP has it: of two keys neither is taken."""
    found: dict[bytes, bytes] = {}
    for name, value in pairs:
        found[name] = value if name not in found else found[name] + b", " + value
    return found


class RequestPipeline:
    """Of one ingress. `table` says which model answers."""

    def __init__(self, settings: EndpointSettings, table: Table, measures: EndpointMetrics,
                 lease: Lease | None = None) -> None:
        """lease: see Limits."""
        self.settings, self.table, self.measures = settings, table, measures
        self.keys = Keys(settings.keys_file) if settings.auth else None
        self._limits = None if settings.requests_per_s is None else Limits(settings.requests_per_s, lease)
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="reader")

    async def attempt(self, request: Request, answering: Awaitable[Answer],
                      refused: Callable[[RefusedError], Answer]) -> Answer:
        """What a request is answered with, counted and logged if that is all.
        refused: what is said instead, whose message may be shown.
        """
        cause = ""
        try:
            answer = await answering
        except RefusedError as error:
            if isinstance(error, ModelError):
                _log.error("request %s: %s", request.id, error)
            answer, cause = refused(_shown(error)), error.cause
        except asyncio.CancelledError:  # as Serve does when the caller has gone
            self.tell(request, 499, "caller_gone", 0)
            raise
        except Exception:  # noqa: BLE001  (ours: the caller learns that it is, and nothing else)
            _log.exception("request %s failed", request.id)
            answer, cause = refused(_shown(ModelError())), ModelError.cause
        if not answer.streams:
            self.tell(request, answer.status, cause, answer.size)
        return answer

    def tell(self, request: Request, status: int, cause: str, size: int) -> None:
        """Counts and logs a request that is over. cause: why it failed; size: of the answer, in bytes."""
        seconds = time.perf_counter() - request.began
        self.measures.request(request.route, status, cause, seconds, explained=request.explained)
        if _access.isEnabledFor(logging.INFO):
            _access.info(orjson.dumps({"id": request.id, "method": request.method, "path": request.path,
                                       "status": status,
                                       "ms": round(1000 * seconds, 2), "caller": request.caller,
                                       "bytes": size}).decode())

    def timeout_s(self, request: Request) -> float:
        """What a request may take, by its headers. Raises: BadRequestError."""
        return _timeout({}, request.headers, self.settings.timeout_s)

    async def admit(self, request: Request) -> None:
        """Raises: UnauthorisedError, RateLimitError."""
        if self.keys is None:
            return
        key = _key(request.headers)
        if key is None:
            raise UnauthorisedError("no key: send the header `Authorization: Bearer KEY`")
        name = self.keys.name_of(key)
        if name is None:
            raise UnauthorisedError("the key is not known")
        request.caller = name
        if self._limits is not None:
            await self._limits.check(name)

    async def read(self, request: Request, work: Callable[[*Ts], T], *arguments: *Ts) -> T:
        """What a function makes of a request's body; of a long one in a thread, so that others are answered meanwhile.

        Raises: DeadlineError, and what the function does.
        """
        if request.size <= QUICK_BYTES:
            return work(*arguments)
        coming = asyncio.get_running_loop().run_in_executor(self._readers, work, *arguments)
        return await _within(coming, self.timeout_s(request))

    async def infer(self, request: Request, route: Route, parse: Parse) -> tuple[InferRequest, Outputs, JsonObject]:
        """Returns the request as it fits the model, its outputs, and the model's description. Raises: RefusedError."""
        asked, timeout_s, about = await self._asked(request, route, parse)
        outputs = await route.infer(asked.inputs, asked.rows, timeout_s)
        self.measures.rows(route, asked.rows)
        return asked, *likeliest(asked, outputs, about)

    async def explain(self, request: Request, route: Route, parse: Parse) -> tuple[InferRequest, Outputs, JsonObject]:
        """As `infer`, of what an answer rests on."""
        asked, timeout_s, about = await self._asked(request, route, parse)
        if any(output.classes for output in (asked.outputs or {}).values()):
            raise BadRequestError("an explanation has no classes to count: leave `classification` out")
        return asked, await route.explanations.explain(asked.inputs, timeout_s), about

    async def _asked(self, request: Request, route: Route, parse: Parse) -> tuple[InferRequest, float, JsonObject]:
        """The request as it fits the model, the seconds that are left for it, and the model's description."""
        about = await _within(route.about(), self.timeout_s(request))
        if request.explained and not about["explanation"]:
            raise UnknownModelError(f"model {route.settings.name!r} does not explain its answers")
        asked = await self.read(request, parse, about)
        timeout_s = _timeout(asked.parameters, request.headers,
                             self.settings.timeout_s) - (time.perf_counter() - request.began)
        if timeout_s <= 0:
            raise DeadlineError("the deadline had passed when the request had come in")
        return asked, timeout_s, about


def _shown(error: RefusedError) -> RefusedError:
    """What may be said of it: of our own mistakes, that they are ours."""
    return ModelError("internal error") if isinstance(error, ModelError) else error


def _key(headers: Mapping[bytes, bytes]) -> str | None:
    scheme, _, value = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        if headers.get(b"sec-fetch-site", b"none") not in (b"same-origin", b"none"):
            return None  # another page, with what the browser remembers
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, ValueError):
            return None
    return None


def _timeout(parameters: Mapping[str, object], headers: Mapping[bytes, bytes], most_s: float) -> float:
    """The smallest of the server's, the header's (seconds) and the request's `timeout` (microseconds,
    as Triton has it)."""
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
