"""The same under Ray Train, end to end, on a cluster of separate nodes that `cluster up` started;
real processes are killed.

One cluster serves all tests. Every result must equal the local binding's uninterrupted one bit for bit.
"""

import http.client
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from cluster.local import cluster as local
from tests import kept, runs
from tests.faults import cnn, walk
from tests.faults.conftest import FLAGS, same_result, some_step
from tests.nodes import add_node, remove_node

pytestmark = pytest.mark.in_order  # a node that one test takes away is away for the next
RAY = str(Path(sys.executable).with_name("ray"))
INTERVAL = 8
CLUSTER_S = 240
EXPORTED = {"trainyard_train_step", "trainyard_train_samples_per_second", "trainyard_train_loss",
            "trainyard_train_workers",
            "trainyard_train_step_seconds", "trainyard_train_goodput_ratio", "trainyard_checkpoint_seconds",
            "trainyard_checkpoint_blocking_seconds", "trainyard_checkpoint_size_bytes",
            "trainyard_data_wait_seconds_total", "trainyard_train_time_seconds_total"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[local.LocalCluster]:
    """A head without CPUs and two nodes of 4 (logical) CPUs: either can hold 3 workers and a spare one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_metrics_report_interval_ms", "1000")  # by itself Ray exports them every 10 s
        with runs.cluster(tmp_path_factory.mktemp("home"), nodes=2, cpus_per_node=4) as made:
            yield made


@contextmanager
def ray_run(cluster: local.LocalCluster, folder: Path, *flags: str) -> Iterator[runs.Job]:
    with runs.run(folder, *FLAGS, *flags, engine="ray", env=cluster.environment()) as job:
        yield job


def node_of(job: runs.Job, rank: int) -> str:
    """The name of the node on which a rank runs."""
    newest = sorted((job.folder / "logs/workers").glob("*.json"))[-1]
    node_id = json.loads(newest.read_text())[str(rank)]["node"]
    return next(node.name for node in worker_nodes() if node.node_id == node_id)


def worker_nodes() -> list[local.LocalNode]:
    current = local.current()
    assert current is not None
    return list(current.nodes[1:])


def test_a_killed_and_a_hung_worker_are_replaced_by_spares_and_no_other_process_restarts(
    cluster: local.LocalCluster, reference: Path, tmp_path: Path
) -> None:
    with ray_run(cluster, tmp_path / "run", "--run.spares", "1", "--run.hang-timeout-s", "5") as job:
        job.until_past_a_checkpoint(some_step(25, 90))
        others = {slot: pid for slot, pid in job.workers().items() if slot != 1}
        before = set(psutil.pids())
        job.kill_worker(1)
        job.until_step(120)
        assert job.workers()[1] in before, "the spare one's process, which was there already"
        assert {slot: pid for slot, pid in job.workers().items() if slot != 1} == others
        job.kill_worker(2, signal.SIGSTOP)
        result = job.finished(CLUSTER_S)
        assert job.workers()[0] == others[0]
    assert result["restarts"] == 2
    assert result["lost_steps"] <= 2, "at most one each, that the dead alone had done"
    stacks = sorted((job.folder / "logs/stacks").glob("*/*.txt"))
    assert [path.name for path in stacks] == ["rank-0.txt", "rank-1.txt", "rank-2.txt"]
    assert all("jobs/mlp/train.py" in path.read_text() for path in stacks)
    assert set(result["startup_s"]) >= {"imports", "connect", "preflight", "data", "worker_process", "worker_imports",
                                        "total"}
    same_result(job.folder, reference)


def test_a_killed_driver_and_a_lost_node_cost_at_most_an_interval_each(
    cluster: local.LocalCluster, reference: Path, tmp_path: Path
) -> None:
    """The job is submitted again with Ray's own snapshots truncated;
    then the workers' node dies, and they start on the other."""
    with ray_run(cluster, tmp_path / "run") as job:
        lost = job.freeze(some_step(25, 80))
        job.kill_driver()
    for folder in (tmp_path / "run/ray").glob("group-*"):
        (folder / "checkpoint_manager_snapshot.json").write_text('{"checkpoint_')
    with ray_run(cluster, tmp_path / "run") as again:
        again.until(lambda: "continuing at step" in again.text)
        node = node_of(again, 0)
        lost += again.freeze(some_step(110, 160))
        remove_node(node)
        result = again.finished(CLUSTER_S)
        assert node_of(again, 0) != node
    assert result["restarts"] >= 2
    assert 0 < result["lost_steps"] == lost <= 2 * INTERVAL
    same_result(job.folder, reference)


def test_an_elastic_run_grows_and_leaves_a_node_without_a_lost_step_and_sees_the_same_micro_batches(
    cluster: local.LocalCluster, reference: Path, tmp_path: Path
) -> None:
    """One node is left, half of it taken: 2 workers; a node joins: 3; it is preempted: 2; then the run is stopped."""
    with holding(cluster, cpus=2), ray_run(cluster, tmp_path / "run", "--run.workers", "1:3", "--train.epochs",
                                           "100000") as job:
        job.until(lambda: "training on 2 workers" in job.text, 120)
        job.until_step(40)
        added = add_node(2)
        job.until(lambda: "training on 3 workers" in job.text, 120)
        job.until(lambda: {f"ray_{name}" for name in EXPORTED} <= exported(cluster), 60)
        preempt(cluster, added)
        job.until(lambda: job.text.count("training on 2 workers") == 2, 120)
        continued = job.step()
        job.until(lambda: job.step() > continued + 20)
        os.kill(job.process.pid, signal.SIGTERM)
        assert job.wait() == 3, job.text
    remove_node(added.name)
    result = runs.result(job.folder)
    assert (result["lost_steps"], result["restarts"]) == (0, 0)
    assert any("resized from 2 to 3" in event for event in result["events"])
    assert any("left after a checkpoint" in event for event in result["events"])
    same_rows(runs.consumed_rows(job.folder), runs.consumed_rows(reference))


def same_rows(rows: dict[tuple[int, int, int], list[int]], reference: dict[tuple[int, int, int], list[int]]) -> None:
    """Every step from the first on, each shard of it, and what the reference knows of them is the same."""
    steps = sorted({step for _, step, _ in rows})
    assert steps == list(range(len(steps)))
    assert len(rows) == 3 * len(steps)
    common = rows.keys() & reference.keys()
    assert len(common) == min(len(rows), len(reference))
    assert {key: rows[key] for key in common} == {key: reference[key] for key in common}


def test_ray_job_stop_and_a_preemption_leave_a_checkpoint_and_exit_code_3(
    cluster: local.LocalCluster, reference: Path, tmp_path: Path
) -> None:
    """The only node is preempted, and nothing takes its place; then another joins, and the job is stopped;
    then it goes on."""
    folder, (node,) = tmp_path / "run", worker_nodes()
    submit(cluster, folder, "preempted", "--run.wait", "0")
    with standing_still(folder, some_step(25, 60)):
        preempt(cluster, node)
        until_logged(cluster, "preempted", "a node with workers is about to be taken away")
    preempted = stopped(cluster, folder, "preempted")
    assert "FAILED" in str(job_info(cluster, "preempted")["status"])
    assert job_info(cluster, "preempted")["driver_exit_code"] == 3
    add_node(4)
    remove_node(node.name)
    submit(cluster, folder, "stopped")
    with standing_still(folder, preempted["steps"] + some_step(20, 60)):
        ray_job(cluster, "stop", "--no-wait", "stopped")
        until_logged(cluster, "stopped", "SIGTERM: stopping at the next step")
    last = stopped(cluster, folder, "stopped")
    assert "STOPPED" in str(job_info(cluster, "stopped")["status"])
    with runs.run(folder, *FLAGS) as again:  # the binding makes no difference to what is computed
        result = again.finished()
    assert f"continuing at step {last['steps']}" in again.text
    assert (result["lost_steps"], result["restarts"]) == (0, 0)
    same_result(folder, reference)


def test_a_gpu_that_no_node_has_is_refused(cluster: local.LocalCluster, tmp_path: Path) -> None:
    with ray_run(cluster, tmp_path / "run", "--run.workers", "1", "--run.gpus-per-worker", "1") as job:
        assert job.wait() == 2
    assert "has no GPU" in job.text and "pass --run.gpus-per-worker 0" in job.text
    assert not (tmp_path / "run").exists()


def test_other_numbers_of_workers_end_with_the_bits_of_one_process_of_this_machine(
    cluster: local.LocalCluster, alone: Path, tmp_path: Path
) -> None:
    def start(workers: int) -> runs.Start:
        return runs.run(tmp_path / "run", *walk.FLAGS, "--run.workers", str(workers), engine="ray",
                        env=cluster.environment())

    with start(3) as job:
        job.until_step(some_step(20, 150))
        walk.kill_driver(job)
    with start(2) as job:
        job.finished(CLUSTER_S)
    walk.same(tmp_path / "run", alone)
    assert runs.consumed_rows(tmp_path / "run") == runs.consumed_rows(alone)


def test_a_second_run_of_one_name_on_the_cluster_is_refused(cluster: local.LocalCluster, tmp_path: Path) -> None:
    code = ("import sys, ray, time\nfrom cluster.connect import connect\nfrom jobs.common.execution.ray_executor "
            "import claim\nconnect()\nlink = claim(sys.argv[1], 'run')\nprint('claimed', flush=True)\ntime.sleep(60)\n")
    env = {**os.environ, **cluster.environment()}
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=runs.ROOT, env=env,
                          stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        try:
            assert first.stdout.readline() == b"claimed\n"
            with ray_run(cluster, tmp_path / "run") as job:
                assert job.wait() == 2
            assert "is being carried out by another job" in job.text
        finally:
            first.kill()


def test_the_cnn_goes_on_where_a_lost_node_left_it(cluster: local.LocalCluster, cnn_reference: Path,
                                                   tmp_path: Path) -> None:
    add_node(4)
    with cnn.started(tmp_path / "run", 3, engine="ray", env=cluster.environment()) as job:
        job.until_step(20)
        node = node_of(job, 0)
        remove_node(node)
        result = job.finished(CLUSTER_S)
        assert node_of(job, 0) != node
    assert result["restarts"] >= 1
    assert result["lost_steps"] <= cnn.INTERVAL
    cnn.same(job.folder, cnn_reference)


def test_answers_are_the_same_bytes_where_a_node_is_lost(cluster: local.LocalCluster, tmp_path: Path) -> None:
    """Its actor is stopped in the middle of a piece, and goes with the node; one of another node does the rest."""
    images = np.random.default_rng(0).integers(0, 256, (5000, 784), np.uint8)
    column = pa.FixedSizeListArray.from_arrays(pa.array(images.reshape(-1)), 784)
    pq.write_table(pa.table({"id": np.arange(5000), "image": column}), tmp_path / "in.parquet", row_group_size=250)
    module, command = "jobs.common.predicting.predict", [
        "--model", str(kept.artifact("mlp")), "--data.uri", str(tmp_path / "in.parquet"), "--batch-rows", "4",
        "--piece-mb", "0.2", "--cpus-per-worker", "3", "--out"]
    add_node(4)
    with runs.python(module, *command, str(tmp_path / "ray"), "--workers", "2", folder=tmp_path / "ray",
                     env=cluster.environment()) as job:
        job.until(lambda: pieces(tmp_path / "ray"))
        node, actor = next((node, each) for node in worker_nodes() for each in actors_of(node))
        actor.suspend()
        done = len(pieces(tmp_path / "ray"))
        job.until(lambda: len(pieces(tmp_path / "ray")) > done + 2)
        assert actor.is_running() and not (tmp_path / "ray/_manifest.json").exists()
        remove_node(node.name)
        assert job.wait(CLUSTER_S) == 0, job.text
    with runs.python(module, *command, str(tmp_path / "here"), folder=tmp_path, env={"RAY_ADDRESS": ""}) as alone:
        assert alone.wait() == 0, alone.text
    ray, here = ({path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
                 for name in ("ray", "here"))
    assert ray == here
    assert pads.dataset(tmp_path / "ray").to_table().column("id").to_pylist() == list(range(5000))


def pieces(out: Path) -> list[Path]:
    """The records of those that are done."""
    return list(out.glob("_work/0*.json"))


def actors_of(node: local.LocalNode) -> list[psutil.Process]:
    """Those of Ray Data."""
    return [each for each in psutil.Process(node.pids["raylet"]).children(recursive=True)
            if "MapWorker" in " ".join(each.cmdline())]


def preempt(cluster: local.LocalCluster, node: local.LocalNode) -> None:
    """Tells Ray that a node is about to be taken away, as an autoscaler or a cloud's watcher does."""
    why = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a test", "--deadline-remaining-seconds",
           "600"]
    subprocess.run([RAY, "drain-node", "--address", cluster.address, "--node-id", node.node_id, *why],
                   env={**os.environ, **cluster.environment()}, check=True, capture_output=True, timeout=60)


def submit(cluster: local.LocalCluster, folder: Path, submission_id: str, *flags: str) -> None:
    run = ["--run.storage", str(folder.parent), "--run.name", folder.name, *flags]
    entry = ["python", "-m", "jobs.mlp", *runs.QUICK, *FLAGS, *run]
    ray_job(cluster, "submit", "--no-wait", "--submission-id", submission_id, "--working-dir", ".", "--", *entry)


def ray_job(cluster: local.LocalCluster, *arguments: str) -> None:
    subprocess.run([RAY, "job", *arguments], cwd=runs.ROOT, env={**os.environ, **cluster.environment()}, check=True,
                   capture_output=True, timeout=120)


@contextmanager
def standing_still(folder: Path, step: int) -> Iterator[None]:
    """Rank 0 of a submitted run stands still from a step on while the block runs,
    so that what is done comes in mid-training."""
    until(lambda: runs.progress(folder).get("highest_step", 0) >= step)
    newest = sorted((folder / "logs/workers").glob("*.json"))[-1]
    pid = json.loads(newest.read_text())["0"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def until_logged(cluster: local.LocalCluster, submission_id: str, words: str) -> None:
    """Waits until a submitted job's output has these words."""
    until(lambda: any(words in log.read_text()
                      for log in Path(cluster.folder).rglob(f"job-driver-{submission_id}.log")), 30)


def until(condition: Callable[[], bool], timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s"
        time.sleep(0.02)


def stopped(cluster: local.LocalCluster, folder: Path, submission_id: str) -> dict[str, Any]:
    """result.json of a run, when its job has ended."""
    until(lambda: job_info(cluster, submission_id)["status"] not in ("PENDING", "RUNNING"), 60)
    result = runs.result(folder)
    assert (result["status"], result["exit_code"]) == ("stopped", 3)
    return result


def exported(cluster: local.LocalCluster) -> set[str]:
    """The names of the metrics that a Prometheus would scrape from the cluster's nodes now."""
    names: set[str] = set()
    for found in Path(cluster.folder).rglob("prom_metrics_service_discovery.json"):
        for target in (t for group in json.loads(found.read_text()) for t in group["targets"]):
            try:
                with urllib.request.urlopen(f"http://{target}/metrics", timeout=5) as answer:
                    names |= {line.split("{")[0] for line in answer.read().decode().splitlines()
                              if not line.startswith("#")}
            except (OSError, http.client.HTTPException):
                continue  # a node that has been removed, or what listens there now
    return names


def job_info(cluster: local.LocalCluster, submission_id: str) -> dict[str, object]:
    """Ray's own record of a submitted job."""
    code = ("import json, sys\nfrom ray.job_submission import JobSubmissionClient\n"
            "print(json.dumps(JobSubmissionClient().get_job_info(sys.argv[1]).__dict__, default=str))")
    env = {**os.environ, **cluster.environment()}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code, submission_id], env=env, check=True,
                          capture_output=True)
    return json.loads(done.stdout.splitlines()[-1])


@contextmanager
def holding(cluster: local.LocalCluster, cpus: int) -> Iterator[None]:
    """Another job that holds CPUs of the cluster while the block runs."""
    code = ("import ray, sys, time\nfrom cluster.connect import connect\nconnect()\n"
            "group = ray.util.placement_group([{'CPU': int(sys.argv[1])}])\nray.get(group.ready())\n"
            "print('held', flush=True)\ntime.sleep(600)\n")
    env = {**os.environ, **cluster.environment()}
    with subprocess.Popen([sys.executable, "-c", code, str(cpus)], cwd=runs.ROOT, env=env,
                          stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        try:
            assert holder.stdout.readline() == b"held\n"
            yield
        finally:
            holder.kill()
