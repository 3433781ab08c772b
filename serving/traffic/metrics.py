"""What an ingress counts: Prometheus metrics through Ray, and the last minute for the playground."""

import asyncio
import time
from collections import deque

from serving.core.api_keys import Keys
from serving.core.settings import HEARTBEAT_S, ModelSettings
from serving.traffic.canary import Tally
from serving.traffic.routing import Route, Table

_LATENCIES_S = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0]
_SIZES = [1.0, 2, 4, 8, 16, 32, 64, 128, 256, 512]
_WINDOW_S = 60


class EndpointMetrics:
    """Of one ingress. Nothing of a request's content is kept."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter, Gauge, Histogram

        of_model = ("model", "version")
        self._requests = Counter("trainyard_serving_requests_total", "Answers by HTTP status.", (*of_model, "status"))
        self._errors = Counter("trainyard_serving_errors_total", "Refused and failed requests by cause.",
                               (*of_model, "cause"))
        self._rows = Counter("trainyard_serving_rows_total", "Rows that were answered.", of_model)
        self._latency = Histogram("trainyard_serving_latency_seconds", "From the first byte to the answer.",
                                  _LATENCIES_S, of_model)
        self._explanation = Histogram("trainyard_serving_explanation_seconds", "The same, of explanations.",
                                      _LATENCIES_S, of_model)
        self._batch = Histogram("trainyard_serving_batch_rows", "Rows that went to a replica together.", _SIZES,
                                of_model)
        self._queue = Gauge("trainyard_serving_queued_requests", "Requests that no replica has yet.", of_model)
        self._keys = Gauge("trainyard_serving_keys", "API keys that an ingress knows: with 0 it lets nobody in.")
        self._shadow = Counter("trainyard_serving_shadow_rows_total", "Rows that a shadow was asked too, by outcome.",
                               (*of_model, "outcome"))
        self._went_back = Gauge("trainyard_serving_went_back",
                                "1 where a change's requests went back to the versions before.",
                                ("model",))
        self._tokens = Counter("trainyard_serving_tokens_total", "Of texts that were asked for, by kind.",
                               (*of_model, "kind"))
        self._first = Histogram("trainyard_serving_first_token_seconds", "From the request to the first of its text.",
                                _LATENCIES_S,
                                of_model)
        self._tags: dict[tuple[str, ...], dict[str, str]] = {}
        self._recent: deque[tuple[int, Tally]] = deque()

    def request(self, route: Route | None, status: int, cause: str, seconds: float, *, explained: bool = False) -> None:
        """An explanation takes so much longer than an inference that its time is kept apart."""
        model, version = (route.settings.name, route.settings.version) if route else ("", "")
        self._requests.inc(1, self._tag("status", str(status), model, version))
        if cause:
            self._errors.inc(1, self._tag("cause", cause, model, version))
        if route is not None and explained:
            self._explanation.observe(seconds, self._tag("", "", model, version))
        elif route is not None:
            self._latency.observe(seconds, self._tag("", "", model, version))
            route.tally.add(status, seconds)
            self._this_second().add(status, seconds)

    async def beat(self, table: Table, keys: Keys | None) -> None:
        """Sets the gauges until it is cancelled. keys: None where none are asked for."""
        while True:
            if keys is not None:
                self._keys.set(keys.count)
            for route in table.routes:
                self._queue.set(route.queued, self._tag("", "", route.settings.name, route.settings.version))
            await asyncio.sleep(HEARTBEAT_S)

    def rows(self, route: Route, rows: int) -> None:
        self._rows.inc(rows, self._tag("", "", route.settings.name, route.settings.version))

    def batch(self, settings: ModelSettings, requests: int, rows: int) -> None:
        self._batch.observe(rows, self._tag("", "", settings.name, settings.version))

    def compared(self, settings: ModelSettings, outcome: str, rows: int) -> None:
        """Of a shadow's answers."""
        self._shadow.inc(rows, self._tag("outcome", outcome, settings.name, settings.version))

    def went_back(self, model: str, gone: bool) -> None:
        """Whether the requests of a model's last change went back."""
        self._went_back.set(gone, {"model": model})

    def tokens(self, route: Route, prompt: int, written: int) -> None:
        for kind, count in (("prompt", prompt), ("written", written)):
            if count:
                self._tokens.inc(count, self._tag("kind", kind, route.settings.name, route.settings.version))

    def first_token(self, route: Route, seconds: float) -> None:
        self._first.observe(seconds, self._tag("", "", route.settings.name, route.settings.version))

    def live(self) -> dict[str, object]:
        """The last minute: requests a second, and the latency's quantiles in milliseconds."""
        self._this_second()
        seen = sum((tally for _, tally in self._recent), Tally())
        span = 1 + self._recent[-1][0] - self._recent[0][0]
        return {"requests_per_s": round(seen.requests / span, 2), "p50_ms": _rounded(seen.quantile_ms(0.5)),
                "p99_ms": _rounded(seen.quantile_ms(0.99))}

    def _this_second(self) -> Tally:
        """Of the last minute's tallies, one a second in which something was asked, the newest."""
        now = int(time.monotonic())
        if not self._recent or self._recent[-1][0] != now:
            self._recent.append((now, Tally()))
            while self._recent[0][0] <= now - _WINDOW_S:
                self._recent.popleft()
        return self._recent[-1][1]

    def _tag(self, name: str, value: str, model: str, version: str) -> dict[str, str]:
        key = (name, value, model, version)
        found = self._tags.get(key)
        if found is None:
            found = self._tags[key] = {"model": model, "version": version, **({name: value} if name else {})}
        return found


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
