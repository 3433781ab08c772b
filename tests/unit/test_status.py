"""cluster/monitoring/status.py: what is shown is what was said, and only what is wrong is a problem."""

import dataclasses
import io
import re
import time

import pytest
from ray.core.generated.common_pb2 import NodeDeathInfo
from ray.core.generated.gcs_pb2 import GcsNodeInfo
from rich.console import Console

from cluster.core.control_store import Actor, JobInfo, Node, was_removed
from cluster.monitoring.status import Status, _node_problems, served, show

HEAD = Node(node_id="0f" * 28, name="head[1]", ip="127.0.0.1", port=1, alive=True, is_head=True, resources={"CPU": 1.0})


def shown(status: Status, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width)
    show(status, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("text", ["python job.py --sizes [1,2] [red]", "python -c 'x[/a]'", "echo [bold]"])
def test_brackets_are_no_markup(text: str) -> None:
    job = JobInfo(job_id="01", submission_id="[red]", entrypoint=text, ip="127.0.0.1", started=time.time(),
                  running=True)
    seen = shown(Status(address="127.0.0.1:1", dashboard_url="", versions={"ray": "2", "python": "3"}, nodes=[HEAD],
                        jobs=[job],
                        problems=[f"it was {text}"]))
    assert seen.count(text) == 2
    assert "[red]" in seen and "head[1]" in seen


@pytest.mark.parametrize(("reason", "removed"), [
    ("EXPECTED_TERMINATION", True), ("AUTOSCALER_DRAIN_IDLE", True), ("AUTOSCALER_DRAIN_PREEMPTED", True),
    ("UNEXPECTED_TERMINATION", False), ("UNSPECIFIED", False),
])
def test_a_node_that_was_removed_in_order_is_no_problem(reason: str, removed: bool) -> None:
    row = GcsNodeInfo(state=GcsNodeInfo.DEAD, death_info=NodeDeathInfo(reason=NodeDeathInfo.Reason.Value(reason)))
    gone = dataclasses.replace(HEAD, name="worker-1", is_head=False, alive=False, removed=was_removed(row))
    problems = _node_problems([HEAD, gone], None)
    assert problems == ([] if removed else [
        "node worker-1 (127.0.0.1) is dead: start it again, or ignore it if it was removed"])
    seen = shown(Status(address="127.0.0.1:1", dashboard_url="", versions={"ray": "2", "python": "3"},
                        nodes=[HEAD, gone],
                        jobs=[], problems=problems))
    assert ("removed" if removed else "dead") in seen


def test_eighty_columns_hold_a_jobs_id_whole() -> None:
    command = "python -m jobs.mlp --run.storage s3://a-bucket/with/a/long/path " * 3
    jobs = [JobInfo(job_id="01", submission_id=name, entrypoint=command, ip="127.0.0.1", started=time.time() - 4000,
                    running=True) for name in ("raysubmit_2nQnm5iXk7BfGh8k", "of-mine-" * 6)]
    lines = shown(Status(address="127.0.0.1:1", dashboard_url="", versions={"ray": "2", "python": "3"}, nodes=[HEAD],
                         jobs=jobs, problems=[]), width=80).splitlines()
    assert any("raysubmit_2nQnm5iXk7BfGh8k" in line and "1 h 6 min" in line for line in lines), lines
    assert "".join(line[2:32] for line in lines).count("of-mine-" * 6) == 1 and max(map(len, lines)) <= 80


def test_what_endpoints_hold_is_counted() -> None:
    actors = [Actor(name=name, node_id="0f", holds=holds) for name, holds in (
        ("SERVE_CONTROLLER_ACTOR", dict[str, float]()), ("SERVE_REPLICA::digits-1#Model#x", {"CPU": 0.5}),
        ("SERVE_REPLICA::digits-1#Model#y", {"CPU": 0.5}),
        ("SERVE_REPLICA::endpoint#Ingress#z", {"CPU": 1.0, "GPU": 1.0}))]
    found = served(actors)
    assert [(each.application, each.replicas, each.cpus, each.gpus) for each in found] == [
        ("digits-1", 2, 1.0, 0.0), ("endpoint", 1, 1.0, 1.0)]
    seen = shown(Status(address="127.0.0.1:1", dashboard_url="", versions={"ray": "2", "python": "3"}, nodes=[HEAD],
                        jobs=[], problems=[], endpoints=tuple(found)), width=80)
    assert "digits-1" in seen and re.search(r"all +│ 3 +│ 2 +│ 1 ", seen), seen


def test_a_live_node_was_not_removed() -> None:
    assert not was_removed(GcsNodeInfo(death_info=NodeDeathInfo(reason=NodeDeathInfo.EXPECTED_TERMINATION)))
