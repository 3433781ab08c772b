"""cluster/monitoring/scrape.py, cluster/monitoring/watch.py and its page:
from the text of a metrics port to what is shown."""

import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from rich.console import Console

from cluster.core.control_store import Node
from cluster.monitoring.scrape import Scrape, parse, quantile, scrape
from cluster.monitoring.status import Status
from cluster.monitoring.watch import Application, Page, alerts_of, endpoints_of, runs_of
from cluster.monitoring.watch_view import drawn
from k8s.components.monitoring import local

OF_PROCESS = 'Component="core_worker",NodeAddress="127.0.0.1",SessionName="s",Version="2.60.0",WorkerId="%s"'
TRAINING = "\n".join(
    f"# HELP ray_trainyard_{name} x\n# TYPE ray_trainyard_{name} "
    f"{kind}\nray_trainyard_{name}{{{OF_PROCESS % 'w'},job=\"mlp\",run=\"a[1]\"}} {value}"
    for name, kind, value in [
        ("train_step", "gauge", 1200.0), ("train_loss", "gauge", 0.25), ("train_step_seconds", "gauge", 0.0125),
        ("train_samples_per_second", "gauge", 51234.0), ("train_workers", "gauge", 2.0),
        ("train_goodput_ratio", "gauge", 0.93),
        ("train_restarts_total", "counter", 1.0)]) + "\nray_node_cpu_count 4\n"


def serving(replica: str, requests: dict[str, int], latencies: dict[str, int]) -> str:
    own = f'{OF_PROCESS % replica},model="digits",version="3"'
    lines = ["# TYPE ray_trainyard_serving_requests_total counter"]
    lines += [f'ray_trainyard_serving_requests_total{{{own},status="{status}"}} {count}'
              for status, count in requests.items()]
    lines += ["# TYPE ray_trainyard_serving_latency_seconds histogram"]
    lines += [f'ray_trainyard_serving_latency_seconds_bucket{{{own},le="{le}"}} {count}'
              for le, count in latencies.items()]
    lines += ["# TYPE ray_trainyard_serving_queued_requests gauge", f"ray_trainyard_serving_queued_requests{{{own}}} 0"]
    return "\n".join(lines) + "\n"


# ── reading ──
def test_samples_of_several_processes_are_added_up_and_rays_own_left_out() -> None:
    found = Scrape(parse([serving("a", {"200": 3}, {}), serving("b", {"200": 4, "500": 1}, {})]))
    assert found.by("serving_requests_total", "status") == {("200",): 7.0, ("500",): 1.0}
    assert {name for name, _ in parse([TRAINING])} == {
        "train_step", "train_loss", "train_step_seconds", "train_samples_per_second", "train_workers",
        "train_goodput_ratio",
        "train_restarts_total"}


@pytest.mark.parametrize(("buckets", "q", "value"), [
    ({0.01: 50, 0.1: 100, float("inf"): 100}, 0.5, 0.01),
    ({0.01: 50, 0.1: 100, float("inf"): 100}, 0.75, 0.055),
    ({0.01: 0, 0.1: 10, float("inf"): 20}, 0.99, 0.1),  # beyond the last bound there is no more to know
    ({0.01: 0, float("inf"): 0}, 0.5, None),
    ({}, 0.5, None),
])
def test_a_quantile_is_interpolated_as_prometheus_does(buckets: dict[float, float], q: float,
                                                       value: float | None) -> None:
    found = quantile(buckets, q)
    assert found is None if value is None else found == pytest.approx(value)


@contextmanager
def http(body: str, status: int = 200) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def node(name: str, port: int, *, alive: bool = True) -> Node:
    return Node(node_id="0f" * 28, name=name, ip="127.0.0.1", port=1, alive=alive, is_head=False,
                resources={"CPU": 2.0},
                metrics_port=port)


def test_every_live_node_is_asked_and_one_that_is_silent_is_named() -> None:
    with http(TRAINING) as port:
        found = scrape([node("a", port), node("b", 1), node("dead", 1, alive=False), node("without", 0)])
    assert found.silent == ("b",)
    assert [(row.job, row.run, row.values["step"], row.values["restarts"])
            for row in runs_of(found)] == [("mlp", "a[1]", 1200.0,
                                            1.0)]


def test_rates_and_latencies_are_of_the_time_between_two_scrapes() -> None:
    before = Scrape(parse([serving("a", {"200": 100, "500": 2}, {"0.01": 100, "0.1": 100, "+Inf": 100})]))
    now = Scrape(parse([serving("a", {"200": 190, "500": 5}, {"0.01": 100, "0.1": 193, "+Inf": 193})]))
    (row,) = endpoints_of(now, before, 30.0)
    assert (row.model, row.version, row.requests, row.failed) == ("digits", "3", 195, 3)
    assert row.per_s == pytest.approx(93 / 30)
    assert row.p50_s is not None and 0.01 < row.p50_s < 0.1
    (all_of_it,) = endpoints_of(now, None, 0.0)
    assert all_of_it.per_s is None and all_of_it.failed == 5
    (lost_one,) = endpoints_of(before, now, 30.0)
    assert (lost_one.per_s, lost_one.failed) == (0.0, 0), "not all that the replicas left have ever answered"


def test_a_version_that_is_served_no_more_leaves() -> None:
    """Its counters stay with the ingress, which says no more how many requests wait for it."""
    gone = serving("a", {"200": 100}, {}).replace('version="3"', 'version="2"').splitlines()
    gone = [line for line in gone if "queued" not in line]
    now = Scrape(parse([serving("a", {"200": 190}, {}), "\n".join(gone) + "\n"]))
    assert now.by("serving_requests_total", "version") == {("3",): 190.0, ("2",): 100.0}
    assert [row.version for row in endpoints_of(now, None, 0.0)] == ["3"]


# ── alerts ──
def test_what_answers_otherwise_than_a_prometheus_is_said_to() -> None:
    with http('{"status": "success", "data": []}') as port, pytest.raises(ValueError, match="does not answer as a "
                                                                                            "Prometheus does"):
        alerts_of(f"http://127.0.0.1:{port}")


def test_no_proxy_of_the_environment_is_asked_for_a_nodes_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    with http(TRAINING) as port:
        assert scrape([node("a", port)]).silent == ()


def test_what_fires_in_a_prometheus_is_told_with_its_runbook() -> None:
    alerts = [{"state": "firing", "labels": {"alertname": "LossNaN", "severity": "page", "run": "a"},
               "annotations": {"summary": "the loss of a is NaN", "runbook_url": "k8s/RUNBOOK.md#loss-nan"}},
              {"state": "firing", "labels": {"alertname": "Bare", "run": "b"}, "annotations": {}},
              {"state": "pending", "labels": {"alertname": "Soon"}, "annotations": {}}]
    ours = next(rule for group in local.rules()["groups"] for rule in group["rules"]
                if rule.get("alert") == "TrainyardNodeLost")
    alerts.append({"state": "firing", "labels": {"alertname": ours["alert"], **ours["labels"]},
                   "annotations": ours["annotations"]})
    with http(json.dumps({"status": "success", "data": {"alerts": alerts}})) as port:
        *others, last = alerts_of(f"http://127.0.0.1:{port}/")
        assert last.endswith(": k8s/RUNBOOK.md#trainyardnodelost")
        assert others == [
            "LossNaN (page): the loss of a is NaN: k8s/RUNBOOK.md#loss-nan", "Bare (no severity): run b"]
    with http("no", 404) as port, pytest.raises(ValueError, match="answers 404"):
        alerts_of(f"http://127.0.0.1:{port}")
    with pytest.raises(ValueError, match="no http:// or https:// address"):
        alerts_of("localhost:9090")


# ── the page ──
def page(**more: Any) -> Page:
    status = Status(address="127.0.0.1:6379", dashboard_url="http://127.0.0.1:8265",
                    versions={"ray": "2", "python": "3"},
                    nodes=[node("head", 0)], jobs=[], problems=[])
    return Page(**{"status": status, "runs": [], "endpoints": [], "applications": [], "alerts": [], "warnings": [],
                   **more})


def shown(found: Page, width: int = 150) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(drawn(found))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_page_shows_runs_endpoints_applications_and_alerts() -> None:
    now = Scrape(parse([TRAINING, serving("a", {"200": 190}, {"0.01": 100, "+Inf": 100})]))
    text = shown(page(runs=runs_of(now), endpoints=endpoints_of(now, None, 0.0), alerts=["LossNaN [page]: x"],
                      warnings=["node b"],
                      applications=[Application(name="trainyard", status="RUNNING", message="",
                                                deployments=[("Ingress", "HEALTHY", 2)])]))
    for words in ("alert: LossNaN [page]: x", "not looked at: node b", "a[1]", "1,200", "0.2500", "12.5", "51,234",
                  "93.0%",
                  "digits",
                  "trainyard", "Ingress", "HEALTHY", "head"):
        assert words in text, text
    assert "no alerts" not in text


def test_eighty_columns_hold_a_run_whole() -> None:
    (row,) = [line for line in shown(page(runs=runs_of(Scrape(parse([TRAINING])))),
                                     width=80).splitlines() if "a[1]" in line]
    assert row.split() == ["a[1]", "mlp", "2", "1,200", "0.2500", "12.5", "51,234", "93.0%", "1", "0", "–"]


def test_an_empty_page_says_so() -> None:
    text = shown(page())
    assert all(words in text for words in ("no alerts", "no run trains", "no endpoint"))
