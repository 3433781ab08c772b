"""`python -m cluster watch`: what goes on in a cluster, for people without Grafana: runs, endpoints, nodes, alerts.

It joins nothing and holds nothing: it asks the control store, the nodes' metrics ports (as Prometheus would), the
dashboard for Serve's state, and a Prometheus, if one is named, for its alerts.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import http.client
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from cluster.core.control_store import Gcs
from cluster.core.documents import MOST_JSON_BYTES, JsonObject, parse_json
from cluster.core.errors import ClusterError
from cluster.core.ray_internals import dashboard_headers
from cluster.local.cluster import LocalCluster
from cluster.monitoring.scrape import DIRECTLY, Scrape, quantile, scrape
from cluster.monitoring.status import Status, read_status

T = TypeVar("T")
WINDOW_S = 60.0
_TIMEOUT_S = 3.0
_OF_RUN = {
    "step": "train_step", "loss": "train_loss", "step_s": "train_step_seconds",
    "samples_per_s": "train_samples_per_second",
    "workers": "train_workers", "goodput": "train_goodput_ratio", "restarts": "train_restarts_total",
    "lost_steps": "train_lost_steps_total", "checkpoint_s": "checkpoint_seconds",
}


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """A run that a driver exports metrics of.
    values: by the names of _OF_RUN; what is not exported (yet) is not there."""

    job: str
    run: str
    values: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class EndpointRow:
    """A model version. Rates and latencies are of the last minute, or of all there was where it is asked only once."""

    model: str
    version: str
    requests: float
    per_s: float | None
    failed: float
    p50_s: float | None
    p99_s: float | None
    queued: float


@dataclass(frozen=True, kw_only=True)
class Application:
    """Of Ray Serve. deployments: name, status, replicas running."""

    name: str
    status: str
    message: str
    deployments: list[tuple[str, str, int]] = field(default_factory=list[tuple[str, str, int]])


@dataclass(frozen=True, kw_only=True)
class Page:
    """What is shown. alerts: one sentence each; warnings: what could not be looked at."""

    status: Status
    runs: list[RunRow]
    endpoints: list[EndpointRow]
    applications: list[Application]
    alerts: list[str]
    warnings: list[str]


class Watcher:
    """Looks again and again; it remembers the last minute of counters."""

    def __init__(self, address: str, cluster: LocalCluster | None = None, prometheus: str | None = None) -> None:
        self._address, self._cluster, self._prometheus = address, cluster, prometheus
        self._seen: deque[tuple[float, Scrape]] = deque()

    def look(self) -> Page:
        """Raises: ClusterError if the cluster does not answer."""
        status = read_status(self._address, self._cluster)
        now = scrape(status.nodes)
        self._remember(now)
        warnings = [f"the metrics of node {name} cannot be read from here" for name in now.silent]
        serves = self._serves()
        applications = self._ask(lambda: _applications(status.dashboard_url) if serves else [], "Serve", warnings)
        firing = self._ask(lambda: alerts_of(self._prometheus) if self._prometheus else [], "Prometheus", warnings)
        broken = [f"application {each.name} is {each.status}: {each.message}: look at it with `python -m serving "
                  "status`"
                  for each in applications if each.status in ("DEPLOY_FAILED", "UNHEALTHY")]
        endpoints = endpoints_of(now, *self._earlier()) if serves else []  # a process's metrics outlive it by 20 s
        return Page(status=status, runs=runs_of(now), endpoints=endpoints, applications=applications,
                    alerts=[*status.problems, *broken, *firing], warnings=warnings)

    def _remember(self, now: Scrape) -> None:
        at = time.monotonic()
        self._seen.append((at, now))
        while self._seen[0][0] < at - WINDOW_S:
            self._seen.popleft()

    def _earlier(self) -> tuple[Scrape | None, float]:
        """The oldest one remembered, and how many seconds ago it was."""
        (before, first), (at, _) = self._seen[0], self._seen[-1]
        return (first, at - before) if at > before else (None, 0.0)

    def _serves(self) -> bool:
        return Gcs(self._address).has_actor("SERVE_CONTROLLER_ACTOR", "serve")

    def _ask(self, call: Callable[[], list[T]], what: str, warnings: list[str]) -> list[T]:
        try:
            return call()
        except (ClusterError, OSError, ValueError) as error:
            warnings.append(f"{what} was not asked: {error}")
            return []


def runs_of(now: Scrape) -> list[RunRow]:
    """A driver that was started again and the one before it export the same for some seconds: the larger one holds."""
    found: dict[tuple[str, ...], dict[str, float]] = {}
    for short, name in _OF_RUN.items():
        for key, value in now.by(name, "job", "run", of=max).items():
            found.setdefault(key, {})[short] = value
    return [RunRow(job=job, run=run, values=values) for (job, run), values in sorted(found.items())]


def endpoints_of(now: Scrape, before: Scrape | None, seconds: float) -> list[EndpointRow]:
    """Returns a row for each version that is served now: an ingress says of those alone how many requests wait.

    before: the same, so many seconds ago. A sum over processes that is smaller than it was has lost one: it is 0.
    """
    def grown(name: str, *labels: str) -> dict[tuple[str, ...], float]:
        earlier = before.by(name, *labels) if before else {}
        return {key: max(0.0, value - earlier.get(key, 0.0)) for key, value in now.by(name, *labels).items()}

    totals = now.by("serving_requests_total", "model", "version")
    lately = grown("serving_requests_total", "model", "version", "status")
    buckets = grown("serving_latency_seconds_bucket", "model", "version", "le")
    queued = now.by("serving_queued_requests", "model", "version")
    rows: list[EndpointRow] = []
    for model, version in sorted(key for key in totals if key in queued):
        by_status = {status: count for (m, v, status), count in lately.items() if (m, v) == (model, version)}
        latencies = {float(le): count for (m, v, le), count in buckets.items() if (m, v) == (model, version)}
        rows.append(EndpointRow(
            model=model, version=version, requests=totals[model, version],
            per_s=sum(by_status.values()) / seconds if seconds else None,
            failed=sum(count for status, count in by_status.items() if status.startswith("5")),
            p50_s=quantile(latencies, 0.5), p99_s=quantile(latencies, 0.99), queued=queued[model, version]))
    return rows


def _applications(dashboard_url: str) -> list[Application]:
    details = _json(DIRECTLY, f"{dashboard_url}/api/serve/applications/", dashboard_headers())
    return [
        Application(name=name, status=app["status"], message=_last_line(app.get("message", "")), deployments=[
            (each["name"], each["status"], sum(r.get("state") == "RUNNING" for r in each.get("replicas", [])))
            for each in app.get("deployments", {}).values()])
        for name, app in details.get("applications", {}).items()
    ]


def alerts_of(prometheus: str) -> list[str]:
    """The alerts that fire. Raises: OSError, ValueError if the Prometheus does not answer, or is none."""
    answer = _json(urllib.request.build_opener(), f"{prometheus.rstrip('/')}/api/v1/alerts", {})
    try:
        return [_alert(each) for each in answer["data"]["alerts"] if each["state"] == "firing"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{prometheus} does not answer as a Prometheus does") from error


def _alert(alert: JsonObject) -> str:
    labels, notes = alert["labels"], alert.get("annotations", {})
    said = (notes.get("summary") or notes.get("description")
            or ", ".join(f"{k} {v}" for k, v in labels.items() if k != "alertname"))
    runbook = notes.get("runbook") or notes.get("runbook_url")  # of our own rules; as many others call it
    return f"{labels['alertname']} ({labels.get('severity', 'no severity')}): {said}{f': {runbook}' if runbook else ''}"


def _json(opener: urllib.request.OpenerDirector, url: str, headers: Mapping[str, str]) -> JsonObject:
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{url} is no http:// or https:// address")
    try:
        with opener.open(urllib.request.Request(url, headers=dict(headers)), timeout=_TIMEOUT_S) as answer:
            return parse_json(answer.read(MOST_JSON_BYTES + 1))
    except http.client.HTTPException as error:
        raise ValueError(f"{url} breaks off: {error!r}") from error
    except urllib.error.HTTPError as error:
        error.close()
        raise ValueError(f"{url} answers {error.code}") from error


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason is known"
