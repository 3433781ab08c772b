"""The MLP job with its storage on an object store (a real S3 server), under the local binding."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.core.storage import Store
from jobs.common.artifact.artifact import open_artifact
from tests import runs
from tests.s3 import BUCKET, s3_server

FLAGS = ["--train.epochs", "8", "--run.seed", "3", "--run.checkpoint-every-steps", "16"]


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[str]:
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same config on a local folder, uninterrupted."""
    folder = tmp_path_factory.mktemp("local") / "run"
    with runs.run(folder, *FLAGS) as job:
        job.finished()
    return folder


@contextmanager
def on_s3(name: str, *flags: str) -> Iterator[runs.Job]:
    with runs.run(Path("unused") / name, *FLAGS, "--run.storage", f"s3://{BUCKET}/runs", "--run.profile", "3-4",
                  *flags) as job:
        yield job


def read_json(path: str) -> dict[str, Any]:
    store = Store.open(f"s3://{BUCKET}/runs")
    return json.loads(store.read_text(path)) if store.exists(path) else {}


def digest(uri: str) -> str:
    return next(file.sha256 for file in open_artifact(uri).manifest.files if file.path == "model.safetensors")


def committed(name: str) -> bool:
    return bool(Store.open(f"s3://{BUCKET}/runs/{name}").files("checkpoints/manifests"))


def test_a_killed_and_a_stopped_run_continue_and_the_model_loads_from_there(local: Path) -> None:
    uri = f"s3://{BUCKET}/runs/run"
    with on_s3("run") as job:
        job.until(lambda: Store.open(uri).files("checkpoints/manifests"))
        os.kill(job.process.pid, signal.SIGKILL)
        job.wait()
    assert read_json("run/result.json") == {}
    with on_s3("run") as job:
        job.until(lambda: "continuing at step" in job.text)
        os.kill(job.process.pid, signal.SIGTERM)
        assert job.wait() == 3 and "Traceback" not in job.text
    assert read_json("run/result.json")["status"] == "stopped"
    with on_s3("run") as job:
        assert job.wait() == 0, job.text
    assert "continuing at step" in job.text
    result = read_json("run/result.json")
    assert job.text.splitlines()[-1] == f"artifact: {result['artifact']}" == f"artifact: {uri}/artifact"
    assert digest(result["artifact"]) == runs.artifact_digest(local)
    assert result["metrics"]["test"] == runs.result(local)["metrics"]["test"]
    assert (result["status"], result["restarts"]) == ("done", 1)
    assert result["profile"] == {"traces": [f"{uri}/profile/rank-0-steps-3-4.trace.json.gz"], "missing": []}
    assert Store.open(uri).read_bytes("profile/rank-0-steps-3-4.trace.json.gz").startswith(b"\x1f\x8b")

    from jobs.mlp.model import load

    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28, 1), np.uint8)
    np.testing.assert_array_equal(load(result["artifact"]).predict(images), load(local / "artifact").predict(images))
    assert Store.open(result["report"]).read_bytes("").lower().startswith(b"<!doctype html>")

    with on_s3("run") as done:
        assert done.wait() == 0
    assert "run 'run' (attempt 1) is done" in done.text


def test_without_a_tracking_server_one_is_asked_for_and_nothing_is_written() -> None:
    flags = [flag for flag in runs.QUICK if flag not in ("--run.tracking-uri", "none")]
    with runs.run(Path("unused/tracked"), *flags, "--run.storage", f"s3://{BUCKET}/untracked", quick=False) as job:
        assert job.wait() == 2
    assert "tracking" in job.text and "--run.tracking-uri" in job.text
    assert "Traceback" not in job.text
    assert Store.open(f"s3://{BUCKET}/untracked").files() == []
