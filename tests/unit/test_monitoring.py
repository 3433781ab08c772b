"""What monitoring is made of: rules that say what they are to, a runbook for each alert,
dashboards that Grafana takes, figures."""

import itertools
import json
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.core.storage import Store
from jobs.common.artifact.drift_reference import DRIFTED
from jobs.common.execution.run_state import RunState
from jobs.common.runs.prometheus import COUNTERS, GAUGES, Since
from k8s.components.monitoring import local

FOLDER = local.RULES.parent
ROOT = FOLDER.parents[2]
RUNBOOK = ROOT / "k8s/RUNBOOK.md"
CASES = Path(__file__).with_name("monitoring.test.yaml")
RULES: list[dict[str, Any]] = [rule for group in local.rules()["groups"] for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
RECORDS = {rule["record"]: rule for rule in RULES if "record" in rule}
DASHBOARDS = sorted((FOLDER / "dashboards").glob("*.json"))
UNITS = {"none", "short", "s", "bytes", "percent", "percentunit", "reqps", "Bps"}
"""Grafana's names of what is used here."""


# ── rules ──
def promtool(*arguments: str, folder: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian's package prometheus)")
    done = subprocess.run(["promtool", *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True)
    assert done.returncode == 0, done.stdout


def test_each_rule_says_what_it_is_to(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(local.rules()))
    shutil.copy(CASES, tmp_path)
    promtool("check", "rules", "--lint-fatal", "rules.yaml", folder=tmp_path)
    promtool("test", "rules", CASES.name, folder=tmp_path)


def test_each_alert_is_seen_to_fire_and_to_be_silent_and_each_record_has_a_figure() -> None:
    cases = yaml.safe_load(CASES.read_text())["tests"]
    checks = [check for case in cases for check in case.get("alert_rule_test", [])]
    assert {check["alertname"] for check in checks if check["exp_alerts"]} == set(ALERTS)
    assert {check["alertname"] for check in checks if not check["exp_alerts"]} == set(ALERTS)
    asked = {name for case in cases for check in case.get("promql_expr_test", []) if check["exp_samples"]
             for name in re.findall(r"trainyard:[\w:]+", check["expr"])}
    assert asked == set(RECORDS)


def test_prometheus_takes_the_configuration_for_a_cluster_without_kubernetes(tmp_path: Path) -> None:
    (tmp_path / local.TARGETS).write_text("[]")
    assert local.main([str(tmp_path / "made"), "--targets", str(tmp_path / local.TARGETS)]) == 0
    promtool("check", "config", "made/prometheus.yml", folder=tmp_path)


def test_a_cluster_that_is_not_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert local.main([str(tmp_path / "made"), "--targets", str(tmp_path / "none.json")]) == 2
    assert "none.json is not there: run this on the head's machine while the cluster is up" in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


def test_drift_is_told_from_where_the_project_calls_it_drift() -> None:
    assert f"> {DRIFTED}" in ALERTS["TrainyardServingDrift"]["expr"]


# ── targets ──
MONITORS: dict[str, dict[str, Any]] = {
    each["metadata"]["name"]: each for each in yaml.safe_load_all((FOLDER / "podmonitors.yaml").read_text())}


def relabeled(labels: dict[str, str], rules: list[dict[str, Any]]) -> dict[str, str] | None:
    """A target's labels as Prometheus leaves them, by the actions that are used here;
    None for a target that is dropped."""
    made = dict(labels)
    for rule in rules:
        assert set(rule) <= {"sourceLabels", "targetLabel", "action", "regex", "replacement"}
        found = re.fullmatch(rule["regex"], ";".join(made.get(name, "") for name in rule["sourceLabels"]))
        if rule.get("action", "replace") == "keep":
            if found is None:
                return None
        else:
            assert rule.get("action", "replace") == "replace"
            if found is not None:
                made[rule["targetLabel"]] = found.expand(re.sub(r"\$\{(\d+)\}", r"\\g<\1>", rule["replacement"]))
    return made


@pytest.mark.parametrize(("ip", "address"), [("10.0.0.7", "10.0.0.7:44217"), ("fd00::7", "[fd00::7]:44217")])
def test_the_autoscaler_is_asked_at_its_port_and_no_other_container_there(ip: str, address: str) -> None:
    by_port, by_address = MONITORS["ray-head"]["spec"]["podMetricsEndpoints"]
    assert by_port["port"] == "metrics" and "relabelings" not in by_port

    def target(container: str, at: str) -> dict[str, str] | None:
        return relabeled({"__address__": at, "__meta_kubernetes_pod_ip": ip,
                          "__meta_kubernetes_pod_container_name": container},
                         by_address["relabelings"])

    assert target("ray-head", f"[{ip}]:8080" if ":" in ip else f"{ip}:8080") is None
    assert target("wait-gcs-ready", ip) is None
    made = target("autoscaler", ip)
    assert made is not None and made["__address__"] == address


def test_a_silent_node_is_told_of_by_the_job_names_that_its_monitor_makes() -> None:
    regex = re.search(r'job=~"([^"]+)"', ALERTS["TrainyardNodeNotScraped"]["expr"])
    assert regex is not None and set(MONITORS) == {"ray-head", "ray-workers"}
    for name, monitor in MONITORS.items():
        assert "jobLabel" not in monitor["spec"], "the operator's own is NAMESPACE/NAME"
        rules = [rule for endpoint in monitor["spec"]["podMetricsEndpoints"]
                 for rule in endpoint.get("relabelings", [])]
        assert "job" not in {rule.get("targetLabel") for rule in rules}
        assert re.fullmatch(regex[1], f"{monitor['metadata']['namespace']}/{name}")
    assert re.fullmatch(regex[1], "ray"), "without Kubernetes"
    assert not any(re.fullmatch(regex[1], other) for other in ("trainyard/ray-operator", "another", "trainyard/x-ray"))


# ── the runbook ──
def entries() -> dict[str, str]:
    found = re.findall(r"^### (\w+)\n(.*?)(?=^#|\Z)", RUNBOOK.read_text(), re.MULTILINE | re.DOTALL)
    assert max(Counter(name for name, _ in found).values()) == 1
    return dict(found)


def test_each_alert_has_one_entry_in_the_runbook_and_each_entry_an_alert() -> None:
    assert set(entries()) == set(ALERTS)
    for name, text in entries().items():
        parts = re.findall(r"^\*\*(\w+):\*\* (.+?)(?=\n\n|\Z)", text, re.MULTILINE | re.DOTALL)
        assert [part for part, _ in parts] == ["Means", "Look", "Do"], name


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_how_bad_it_is_and_where_to_read_on(name: str) -> None:
    alert = ALERTS[name]
    assert alert["labels"]["severity"] in ("warning", "critical")
    assert alert["annotations"]["runbook"] == f"k8s/RUNBOOK.md#{name.lower()}"
    assert alert["annotations"]["summary"]


def test_alerts_that_the_runbook_names_exist() -> None:
    assert set(re.findall(r"\bTrainyard[A-Z]\w+", RUNBOOK.read_text())) == set(ALERTS)


# ── dashboards ──
def panels(path: Path) -> Iterator[dict[str, Any]]:
    yield from json.loads(path.read_text())["panels"]


def test_there_is_a_dashboard_of_each_kind_and_kustomize_ships_them() -> None:
    assert [path.stem for path in DASHBOARDS] == ["cluster", "serving", "training", "tuning"]
    (made,) = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["configMapGenerator"]
    assert sorted(made["files"]) == [f"dashboards/{path.name}" for path in DASHBOARDS]
    assert made["options"]["labels"] == {"grafana_dashboard": "1"}
    uids = [json.loads(path.read_text())["uid"] for path in DASHBOARDS]
    assert uids == [f"trainyard-{path.stem}" for path in DASHBOARDS]


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_is_what_grafana_takes(path: Path) -> None:
    dashboard = json.loads(path.read_text())
    assert dashboard["schemaVersion"] >= 39
    assert dashboard["title"] and dashboard["time"]["from"] and "id" not in dashboard
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    ids = [panel["id"] for panel in panels(path)]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r"\$\{?([a-z]\w*)", json.dumps(dashboard)))
    assert used <= set(variables), "a variable that nobody defines"
    assert set(variables) <= used, "a variable that nothing uses"


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_panels_do_not_overlap_and_leave_no_row_out(path: Path) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels(path):
        at = panel["gridPos"]
        cells = set(itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])))
        assert not cells & taken, f"{panel['title']} lies on another panel"
        assert at["x"] + at["w"] <= 24
        taken |= cells
    assert {y for _, y in taken} == set(range(1 + max(y for _, y in taken)))


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_panel_has_a_title_a_unit_and_queries_with_legends(path: Path) -> None:
    shown = [panel for panel in panels(path) if panel["type"] != "row"]
    titles = [panel["title"] for panel in shown]
    assert len(titles) == len(set(titles)) and all(titles)
    for panel in shown:
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
        assert panel["targets"]
        for target in panel["targets"]:
            assert target["expr"] and target["legendFormat"]
            assert target["datasource"] == panel["datasource"]
        references = [target["refId"] for target in panel["targets"]]
        assert len(references) == len(set(references))


# ── figures ──
def test_names_follow_one_form() -> None:
    for name in (*GAUGES, *COUNTERS):
        assert re.fullmatch(r"trainyard_(train|checkpoint|storage|data)_[a-z_]+", name)
    assert all(name.endswith("_total") for name in COUNTERS)
    assert not any(name.endswith("_total") for name in GAUGES)


def test_time_counts_from_the_last_change_and_no_value_is_no_change(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    since = Since(at=now[0])
    now[0] = 107.0
    assert since.seconds(None) == 7
    assert since.seconds((1, 0)) == 0
    now[0] = 110.0
    assert since.seconds((1, 0)) == 3
    assert since.seconds(None) == 3, "as between two generations, when nobody reports"
    assert since.seconds((1, 1)) == 0


def test_an_account_has_a_figure_of_each_thing_that_outlives_a_driver(tmp_path: Path) -> None:
    run_state = RunState.open(Store.open(str(tmp_path)))
    run_state.failure("worker 1 was lost")
    run_state.exclude([3, 4])
    totals = run_state.totals()
    assert set(totals) <= {*GAUGES, *COUNTERS}
    assert (totals["trainyard_train_restarts_total"], totals["trainyard_train_rollbacks_total"]) == (1, 1)


def test_a_file_system_has_room_and_an_object_store_no_bound(tmp_path: Path) -> None:
    usage = shutil.disk_usage(tmp_path)
    room = Store.open(str(tmp_path)).room()
    assert room is not None
    assert room[1] == usage.total and 0 < room[0] <= room[1]
    assert Store.open(str(tmp_path / "not there yet")).room() is None
    assert Store.open("s3://bucket/folder?region=us-east-1").room() is None
