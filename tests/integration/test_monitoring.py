"""A real Prometheus watches a cluster on which a run trains, a search looks, an endpoint answers, and a node dies.

Every query of every rule and dashboard is about metrics and labels that it really scraped. What cannot be here (a GPU,
texts) is listed with the reason, and looked up where it is defined.
"""

import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.core.network import free_port
from cluster.local import cluster as local
from jobs.common.artifact.artifact import open_artifact
from jobs.common.runs.prometheus import COUNTERS
from k8s.components.monitoring import local as monitoring
from serving.core.api_keys import new_key
from tests import kept, runs
from tests.nodes import add_node, remove_node

pytestmark = [pytest.mark.timeout(600),  # the first test waits for all that is to be seen
              pytest.mark.skipif(shutil.which("prometheus") is None,
                                 reason="Prometheus is not installed (Debian's package prometheus)")]

FROM_THE_TARGET = {"namespace"}
"""Labels that a PodMonitor adds; without Kubernetes they are empty."""
IN_QUESTION = re.compile(r"\b((?:ray|autoscaler)_\w+|trainyard:[\w:]+|up|ALERTS)\b(\{[^}]*\})?")


@dataclass(frozen=True)
class Prometheus:
    url: str

    def get(self, path: str, **query: str) -> Any:
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}", timeout=10) as answer:
            return json.load(answer)["data"]

    def value(self, query: str) -> list[tuple[dict[str, str], float]]:
        return [(found["metric"], float(found["value"][1])) for found in self.get("query", query=query)["result"]]

    def answers(self, query: str) -> list[Any]:
        """At any time since it was started."""
        now = time.time()
        return self.get("query_range", query=query, start=f"{now - 900:.0f}", end=f"{now:.0f}", step="3")["result"]

    def labels(self, metric: str) -> set[str]:
        """Of all its series; none if there is no such metric."""
        return {label for labels in self.get("series", **{"match[]": metric, "start": "0"}) for label in labels}

    def until(self, job: runs.Job, *queries: str) -> None:
        """Waits until each has had an answer while the job runs."""
        for query in queries:
            job.until(lambda query=query: time.sleep(0.2) or self.value(query))


@contextmanager
def prometheus(folder: Path, cluster: local.LocalCluster) -> Iterator[Prometheus]:
    """As k8s/RUNBOOK.md starts it, but it looks every three seconds."""
    config = monitoring.write(folder, Path(cluster.folder) / "head" / monitoring.TARGETS, interval="3s")
    port = free_port()
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}",
                                    f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
    try:
        yield Prometheus(f"http://127.0.0.1:{port}")
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """When everything has been seen that this machine can show."""
    with everything(tmp_path_factory.mktemp("monitored")) as seen:
        yield seen


@contextmanager
def everything(folder: Path) -> Iterator[Prometheus]:
    """One thing after the other: together they would only wait for each other's processors."""
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("RAY_metrics_report_interval_ms", "1000")
        cluster = stack.enter_context(runs.cluster(folder / "home", nodes=0, cpus_per_node=4))
        seen = stack.enter_context(prometheus(folder / "prometheus", cluster))
        lost = add_node(0)
        artifact = str(kept.artifact("mlp"))
        env = cluster.environment()
        with runs.run(folder / "endless", "--train.epochs", "1000000", "--run.workers", "1", engine="ray",
                      env=env) as job:
            seen.until(job, "ray_trainyard_checkpoint_seconds", "trainyard:storage_free:ratio")
            remove_node(lost.name)
            job.freeze(20)  # past a checkpoint, so that steps are lost
            job.kill_worker(0)
            seen.until(job, "trainyard:train_restarts:max > 0", "ray_trainyard_train_lost_steps_total",
                       'ALERTS{alertname="TrainyardNodeLost", alertstate="firing"}')
        with search(folder, env) as job:
            seen.until(job, "ray_trainyard_tune_best", "deriv(sum by (search) (ray_trainyard_tune_epochs)[10m:10s])")
        with endpoint(folder, artifact, env) as (job, ask_it):
            while not seen.value("ray_trainyard_serving_drift_psi"):
                ask_it()
            seen.until(job, "rate(ray_trainyard_serving_explanation_seconds_bucket[1m])",
                       "trainyard:serving_errors:ratio_rate3d",
                       "rate(ray_trainyard_serving_errors_total[1m])", "ray_serve_replica_processing_queries")
        yield seen


@contextmanager
def search(folder: Path, env: dict[str, str]) -> Iterator[runs.Job]:
    flags = ["--run.storage", str(folder), "--run.name", "search", "--run.tracking-uri", "none", "--num-trials", "50",
             "--train.epochs", "3", "--max-concurrent", "1"]
    with runs.python("tuning", "mlp", *flags, folder=folder, env=env) as job:
        yield job


@contextmanager
def endpoint(folder: Path, artifact: str, env: dict[str, str]) -> Iterator[tuple[runs.Job, Callable[[], None]]]:
    """Also gives what asks it."""
    port = free_port()
    key, line = new_key("tester")
    (folder / "keys").write_text(line)
    flags = ["up", "--model", f"digits={artifact}", "--keys", str(folder / "keys"), "--port", str(port), "--placement",
             "replicas",
             "--cpus-per-replica", "0.5", "--address", env["RAY_ADDRESS"]]
    with runs.python("serving", *flags, folder=folder, env=env) as job:
        job.until(lambda: "ready: " in job.text)
        yield job, lambda: ask(f"http://127.0.0.1:{port}", artifact, {"Authorization": f"Bearer {key}"})


def ask(host: str, artifact: str, headers: dict[str, str]) -> None:
    """Answers, an error, an explanation, and as many rows as it takes to measure drift."""
    images = open_artifact(artifact).probe().inputs["image"][:4]
    for path, copies, times in (("infer", 4, 20), ("explain", 1, 1)):
        tensor = {"name": "image", "datatype": "UINT8", "shape": [copies * len(images), *images.shape[1:]],
                  "data": images.ravel().tolist() * copies}
        for _ in range(times):
            body = json.dumps({"inputs": [tensor]}).encode()
            urllib.request.urlopen(urllib.request.Request(f"{host}/v2/models/digits/{path}", body, headers),
                                   timeout=30).close()
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(f"{host}/v2/models/digits/infer", b"{", headers), timeout=30)
    refused.value.close()


# ── what is not here, and where it is defined ──
def of_a_gpu() -> dict[str, set[str]]:
    """Ray's agent exports these where it finds a GPU."""
    from ray.dashboard.consts import GPU_TAG_KEYS
    from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

    return {f"ray_{name}": {*GPU_TAG_KEYS, "instance"} for name in METRICS_GAUGES
            if name.startswith(("node_gpu", "node_gram"))}


def of_texts_and_changes() -> dict[str, set[str]]:
    """A model that writes, a shadow, and a change that fails are not here; tests/integration/serving has them, and
    compares the table with what is scraped."""
    rows = re.findall(r"^\| `(ray_\w+)` \| (\w+) \| ([\w, ]+) \|", (runs.ROOT / "serving/README.md").read_text(),
                      re.MULTILINE)
    known = {name + ("_bucket" if kind == "histogram" else ""): set(labels.split(", "))
             | ({"le"} if kind == "histogram" else set())
             for name, kind, labels in rows}
    return {name: labels for name, labels in known.items()
            if re.search("tokens_total|first_token|prefix_|shadow_rows|went_back", name)}


def of_a_loss_that_is_not_finite() -> dict[str, set[str]]:
    """Nothing goes wrong with the digits; the counters are made where those are that are here."""
    return {f"ray_{name}": {"job", "run"} for name in COUNTERS if re.search("skipped_steps|rollbacks", name)}


def follows_from_these() -> dict[str, set[str]]:
    """Records of metrics that are not here."""
    return {"trainyard:serving_first_token_seconds:p99_rate5m": {"namespace", "model"},
            "trainyard:gpus_idle:sum": {"instance"}}


ELSEWHERE = of_a_gpu() | of_texts_and_changes() | of_a_loss_that_is_not_finite() | follows_from_these()


def queries() -> list[tuple[str, str]]:
    """(whose, query) of all rules, panels and variables, with every run, model and node chosen."""
    rules = [rule for group in monitoring.rules()["groups"] for rule in group["rules"]]
    found = [(rule.get("alert") or rule["record"], rule["expr"]) for rule in rules]
    for path in sorted((monitoring.RULES.parent / "dashboards").glob("*.json")):
        dashboard = json.loads(path.read_text())
        for panel in dashboard["panels"]:
            found += [(f"{path.stem}: {panel['title']}", target["expr"]) for target in panel.get("targets", [])]
        for variable in dashboard["templating"]["list"]:
            for metric, label in re.findall(r"label_values\((\w+), (\w+)\)", str(variable["query"])):
                found.append((f"{path.stem}: ${variable['name']}", f"count by ({label}) ({metric})"))
    return [(whose, re.sub(r"\$\w+", ".*", query)) for whose, query in found]


@pytest.fixture(scope="module")
def labels_of(watched: Prometheus) -> dict[str, set[str]]:
    """By metric, of all that are asked about."""
    asked = {metric for _, query in queries() for metric, _ in IN_QUESTION.findall(query)}
    return {metric: watched.labels(metric) or ELSEWHERE.get(metric, set()) for metric in asked}


def test_prometheus_evaluates_every_rule(watched: Prometheus) -> None:
    rules = [rule for group in watched.get("rules")["groups"] for rule in group["rules"]]
    assert {rule["name"]: rule["lastError"] for rule in rules if rule["health"] != "ok"} == {}
    assert len(rules) == sum(len(group["rules"]) for group in monitoring.rules()["groups"])


def test_every_query_is_about_metrics_and_labels_that_are_scraped(labels_of: dict[str, set[str]]) -> None:
    wrong: list[str] = []
    for whose, query in queries():
        used = IN_QUESTION.findall(query)
        wrong += [f"{whose}: no metric {metric}" for metric, _ in used if not labels_of[metric]]
        for metric, matchers in used:
            names = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
            wrong += [f"{whose}: {metric} has no label {name}" for name in names - labels_of[metric] - FROM_THE_TARGET]
        grouped = {name for names in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", query)
                   for name in re.split(r",\s*", names)}
        known = set[str]().union(*(labels_of[metric] for metric, _ in used))
        wrong += [f"{whose}: nothing has a label {name}" for name in grouped - known - FROM_THE_TARGET]
    assert wrong == []


def test_every_query_of_a_dashboard_has_had_an_answer(watched: Prometheus) -> None:
    def here(query: str) -> bool:
        """Without a GPU Ray knows the name of that resource nowhere; no alert of each kind was to fire."""
        metrics = [metric for metric, _ in IN_QUESTION.findall(query)]
        return metrics != ["ALERTS"] and 'Name="GPU"' not in query and not set(metrics) <= set(ELSEWHERE)

    assert [whose for whose, query in queries() if ": " in whose and here(query) and not watched.answers(query)] == []


def test_what_is_said_to_be_elsewhere_is_not_here(watched: Prometheus) -> None:
    asked = {metric for _, query in queries() for metric, _ in IN_QUESTION.findall(query)}
    assert [metric for metric in asked & set(ELSEWHERE) if watched.labels(metric)] == []


def test_a_node_that_died_is_told_of_and_a_run_that_goes_on_is_not(watched: Prometheus) -> None:
    firing = {found["metric"]["alertname"] for found in watched.answers('ALERTS{alertstate="firing"}')}
    assert "TrainyardNodeLost" in firing
    assert not firing & {"TrainyardTrainingStalled", "TrainyardCheckpointTooOld", "TrainyardLossNotFinite",
                         "TrainyardServingDown"}
