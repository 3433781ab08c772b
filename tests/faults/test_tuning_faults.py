"""A search and its trials are killed: the same command goes on, and decides what an uninterrupted search does."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.core.storage import Store
from cluster.local import cluster as local
from tests import runs
from tests.s3 import BUCKET, s3_server

FLAGS = ["--eval.bootstrap-samples", "100", "--run.tracking-uri", "none", "--model.hidden", "64", "--train.epochs", "9"]
SPACE = ("optim.lr: {log_uniform: [1e-4, 3e-2]}\nmodel.dropout: {uniform: [0.0, 0.5]}\noptim.warmup: "
         "{log_integer: [5, 50]}\n")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[local.LocalCluster]:
    with runs.cluster(tmp_path_factory.mktemp("home"), nodes=0, cpus_per_node=2) as made:
        yield made


@contextmanager
def started(cluster: local.LocalCluster, folder: Path, *flags: str, space: str = SPACE) -> Iterator[runs.Job]:
    (folder.parent / "space.yaml").write_text(space)
    command = [*FLAGS, "--space", str(folder.parent / "space.yaml"), "--run.storage", str(folder.parent), "--run.name",
               folder.name]
    with runs.python("tuning", "mlp", *command, *flags, folder=folder, env=cluster.environment()) as job:
        yield job


def events(folder: Path) -> list[tuple[int, dict[str, Any]]]:
    """(trial, event) in their order, without times."""
    records = [json.loads(path.read_text())["content"] for path in (folder / "journal").glob("*.json")]
    found = [(record["number"], event) for record in records for event in record["events"]]
    return sorted(found, key=lambda pair: pair[1]["sequence"])


def decisions(folder: Path) -> list[tuple[Any, ...]]:
    """What was drawn, and (trial, rung, decision) with the metric that it was made by, in their order."""
    found: list[tuple[Any, ...]] = []
    for number, event in events(folder):
        if event["kind"] == "begun":
            found.append((number, event["values"]))
        elif event["kind"] == "evaluation":
            found.append((number, event["row"]["epoch"], event["decision"], event["row"]["validation_accuracy"]))
    return found


def trial_process(folder: Path, number: int) -> int | None:
    paths = sorted((folder / f"trials/t{number:04d}/logs/workers").glob("*.json"))
    return json.loads(paths[-1].read_text())["0"]["pid"] if paths else None


def test_a_search_whose_driver_is_killed_decides_what_an_uninterrupted_one_does(
    cluster: local.LocalCluster, tmp_path: Path
) -> None:
    flags = ["--num-trials", "7", "--max-concurrent", "1", "--scheduler", "asha"]
    with started(cluster, tmp_path / "whole", *flags) as job:
        assert job.wait() == 0, job.text
    expected = decisions(tmp_path / "whole")
    evaluations = [entry for entry in expected if len(entry) == 4]
    assert {decision for _, _, decision, _ in evaluations} == {"continue", "stopped", "completed"}

    folder = tmp_path / "killed"
    for most in (4, len(evaluations) // 2 + 3):
        with started(cluster, folder, *flags) as job:
            job.until(lambda most=most: len([e for e in decisions(folder) if len(e) == 4]) >= most)
            os.kill(job.process.pid, signal.SIGKILL)
            job.process.wait()
    with started(cluster, folder, *flags) as job:
        assert job.wait() == 0, job.text
    assert decisions(folder) == expected
    best, whole = (runs.result(each)["best"] | {"evaluation": None} for each in (folder, tmp_path / "whole"))
    assert best == whole


def test_a_search_on_s3_outlives_its_whole_cluster(tmp_path: Path) -> None:
    """The driver has a cluster of its own, which dies with it: driver, control store, node, trials, all at once."""
    def kept() -> list[tuple[int, int, float]]:
        """(sequence, trial, accuracy) of each evaluation in the journal."""
        store = Store.open(f"s3://{BUCKET}/search")
        records = [json.loads(store.read_text(file.path))["content"] for file in store.files("journal")]
        return sorted((event["sequence"], record["number"], event["row"]["validation_accuracy"])
                      for record in records for event in record["events"] if event["kind"] == "evaluation")

    def so_far() -> int:
        """Evaluations in the journal, which is being written:
        a read may see an object's old length and its new bytes."""
        with suppress(ValueError):
            return len(kept())
        return 0

    (tmp_path / "space.yaml").write_text(SPACE)
    command = [*FLAGS, "--space", str(tmp_path / "space.yaml"), "--run.storage", f"s3://{BUCKET}", "--run.name",
               "search",
               "--num-trials", "4", "--scheduler", "none", "--train.epochs", "6"]
    with s3_server():
        with runs.python("tuning", "mlp", *command, folder=tmp_path) as job:
            job.until(lambda: so_far() >= 8)
            os.kill(job.process.pid, signal.SIGKILL)
            job.process.wait()
        before = kept()
        with runs.python("tuning", "mlp", *command, folder=tmp_path) as job:
            assert job.wait() == 0, job.text
        after = kept()
        assert after[: len(before)] == before
        assert sorted(number for _, number, _ in after) == sorted(list(range(4)) * 6), "each epoch of each trial once"
        store = Store.open(f"s3://{BUCKET}/search")
        assert json.loads(store.read_text("result.json"))["trials"]["completed"] == 4
        assert {"best.yaml", "leaderboard.csv", "report.html"} <= {file.path for file in store.files()}


def test_a_trial_whose_process_is_killed_goes_on_from_its_checkpoint(cluster: local.LocalCluster,
                                                                     tmp_path: Path) -> None:
    folder = tmp_path / "search"
    flags = ["--num-trials", "2", "--scheduler", "none", "--train.epochs", "150"]
    with started(cluster, folder, *flags) as job:
        job.until(lambda: len([n for n, e in events(folder) if n == 0 and e["kind"] == "evaluation"]) >= 5)
        pid = trial_process(folder, 0)
        assert pid is not None
        psutil.Process(pid).kill()
        assert job.wait() == 0, job.text
    mine = [event for number, event in events(folder) if number == 0]
    assert [e["row"]["epoch"] for e in mine if e["kind"] == "evaluation"] == list(range(1, 151))
    failures = [event["message"] for event in mine if event["kind"] == "failure"]
    assert len(failures) == 1
    assert "its process died" in failures[0]
    run_state = runs.progress(folder / "trials/t0000")
    assert run_state["restarts"] == 1, "it went on, and did not begin anew"
    assert run_state["lost_steps"] < 19 * 50
    assert runs.result(folder)["trials"] == {"completed": 2, "stopped": 0, "failed": 0, "running": 0}
    assert "its process died" in (folder / "report.html").read_text()


def test_a_trial_that_cannot_work_is_marked_failed_and_the_search_goes_on(cluster: local.LocalCluster,
                                                                          tmp_path: Path) -> None:
    folder = tmp_path / "search"
    space = "optim.lr: {choice: [1e-3, 1e38]}\ntrain.global_batch_size: {choice: [60, 60000]}\n"
    flags = ["--num-trials", "4", "--search", "grid", "--scheduler", "none", "--train.epochs", "2",
             "--run.max-failures", "1",
             "--optim.clip-norm", "None"]
    with started(cluster, folder, *flags, space=space) as job:
        assert job.wait() == 0, job.text
        text = job.text
    assert runs.result(folder)["trials"] == {"completed": 1, "stopped": 0, "failed": 3, "running": 0}
    failed: dict[int, list[str]] = {}
    for number, event in events(folder):
        if event["kind"] == "failure":
            failed.setdefault(number, []).append(event["message"])
    values = {number: event["values"] for number, event in events(folder) if event["kind"] == "begun"}
    for number, messages in failed.items():
        if values[number]["train.global_batch_size"] == 60000:
            assert len(messages) == 1, "it would fail again"
            assert "training rows: pass" in messages[0]
        else:
            assert len(messages) == 2, "tried again once"
            assert "not finite" in messages[0]
    assert "Traceback" not in text
    assert runs.result(folder)["best"]["values"] == {"optim.lr": 1e-3, "train.global_batch_size": 60}


def test_an_interrupted_search_writes_its_report_and_goes_on(cluster: local.LocalCluster, tmp_path: Path) -> None:
    folder = tmp_path / "search"
    flags = ["--num-trials", "2", "--scheduler", "none", "--train.epochs", "120"]
    with started(cluster, folder, *flags) as job:
        job.until(lambda: len([n for n, e in events(folder) if e["kind"] == "evaluation"]) >= 6)
        job.process.send_signal(signal.SIGINT)
        assert job.wait(60) == 3, job.text
        assert "run the same command again to continue" in job.text
        assert "Traceback" not in job.text
    before = len(events(folder))
    result = runs.result(folder)
    assert (result["status"], result["exit_code"], result["trials"]["running"]) == ("stopped", 3, 2)
    assert "Learning curves" in (folder / "report.html").read_text()
    assert (folder / "leaderboard.csv").exists()
    assert (folder / "best.yaml").exists()
    with started(cluster, folder, *flags) as job:
        assert job.wait() == 0, job.text
    assert len(events(folder)) > before
    assert all(runs.progress(folder / f"trials/t000{n}")["lost_steps"] == 0
               for n in (0, 1)), "each had made a checkpoint"
    assert runs.result(folder)["epochs"] == 240


def test_an_interrupted_search_waits_for_no_epochs_end(cluster: local.LocalCluster, tmp_path: Path) -> None:
    """1,150 steps an epoch, of which each takes tens of milliseconds: half a minute."""
    folder = tmp_path / "search"
    flags = ["--num-trials", "1", "--train.global-batch-size", "1", "--model.hidden", "2048", "2048", "--scheduler",
             "none"]
    with started(cluster, folder, *flags) as job:
        job.until(lambda: runs.progress(folder / "trials/t0000").get("highest_step", 0) >= 5)
        job.process.send_signal(signal.SIGTERM)
        assert job.wait(60) == 3, job.text
    assert 5 <= runs.step_of(runs.manifests(folder / "trials/t0000")[-1]) < 1000
    assert not [event for _, event in events(folder) if event["kind"] == "evaluation"]


def test_a_second_driver_is_refused(cluster: local.LocalCluster, tmp_path: Path) -> None:
    folder = tmp_path / "search"
    flags = ["--num-trials", "1", "--train.epochs", "5000", "--scheduler", "none"]
    with started(cluster, folder, *flags) as job:
        job.until(lambda: events(folder))
        with started(cluster, folder, *flags) as second:
            assert second.wait() == 2, second.text
            assert "is being carried out by another job" in second.text
