"""Reads the metrics that the nodes of a Ray cluster export, as a Prometheus would: each node's own port,
all at once."""

import http.client
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from cluster.core.control_store import Node

PREFIX = "ray_trainyard_"
"""Ray puts its own name before each metric."""

DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""For what is of the cluster itself: no proxy of the environment sees its metrics, or its token."""

_TIMEOUT_S = 3.0
_OF_PROCESS = {"Component", "NodeAddress", "SessionName", "Version", "WorkerId", "otel_scope_name",
               "otel_scope_version",
               "otel_scope_schema_url"}
Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Scrape:
    """values: by a sample's name (without PREFIX) and its labels, one of each process that exports it."""

    values: dict[tuple[str, Labels], list[float]]
    silent: tuple[str, ...] = ()
    """The nodes that did not answer."""

    def by(self, name: str, *labels: str, of: Callable[[Iterable[float]], float] = sum) -> dict[tuple[str, ...], float]:
        """A sample's values by some of its labels,
        those of other labels and processes added up (or what `of` makes of them)."""
        found: dict[tuple[str, ...], list[float]] = {}
        for (each, own), values in self.values.items():
            if each == name:
                found.setdefault(tuple(dict(own).get(label, "") for label in labels), []).extend(values)
        return {key: of(values) for key, values in found.items()}


def scrape(nodes: Sequence[Node]) -> Scrape:
    """All live nodes that export metrics.
    One that does not answer is waited for _TIMEOUT_S, with 31 others at a time."""
    asked = [node for node in nodes if node.alive and node.metrics_port]
    with ThreadPoolExecutor(max_workers=32) as threads:
        texts = list(threads.map(_read, asked))
    return Scrape(parse(text for text in texts if text is not None),
                  tuple(node.name or node.ip for node, text in zip(asked, texts, strict=True) if text is None))


def parse(texts: Iterable[str]) -> dict[tuple[str, Labels], list[float]]:
    """The samples of this project in Prometheus' text format."""
    from prometheus_client.parser import text_string_to_metric_families

    values: dict[tuple[str, Labels], list[float]] = {}
    for text in texts:
        # the parser is slow, and Ray's own are thousands
        own = "\n".join(line for line in text.splitlines() if PREFIX in line)
        for family in text_string_to_metric_families(f"{own}\n"):
            for sample in family.samples:
                labels = tuple(sorted((name, value) for name, value in sample.labels.items()
                                      if name not in _OF_PROCESS))
                values.setdefault((sample.name.removeprefix(PREFIX), labels), []).append(sample.value)
    return values


def quantile(buckets: dict[float, float], q: float) -> float | None:
    """Of a histogram, by its cumulative counts (upper bound: count), interpolated as Prometheus does;
    None if it is empty."""
    bounds = sorted(buckets)
    if not bounds or buckets[bounds[-1]] <= 0:
        return None
    rank, below, begin = q * buckets[bounds[-1]], 0.0, 0.0
    for bound in bounds:
        if buckets[bound] >= rank:
            if bound == float("inf"):
                return begin
            inside = buckets[bound] - below
            return begin + (bound - begin) * ((rank - below) / inside if inside else 1.0)
        below, begin = buckets[bound], bound
    return begin


def _read(node: Node) -> str | None:
    host = f"[{node.ip}]" if ":" in node.ip else node.ip
    try:
        with DIRECTLY.open(f"http://{host}:{node.metrics_port}/metrics", timeout=_TIMEOUT_S) as answer:
            return answer.read().decode()
    except (OSError, http.client.HTTPException):  # the last: an answer that breaks off
        return None
