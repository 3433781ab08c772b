"""A job in a folder outside this repository, beside an installed Trainyard: it is submitted, tuned and served."""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.core.network import free_port
from jobs.common.artifact.artifact import open_artifact
from tests import own_job, runs

QUICK = ["--run.tracking-uri", "none", "--eval.bootstrap-samples", "100", "--train.epochs", "3"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> own_job.Place:
    return own_job.make(tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="module")
def env(place: own_job.Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The variables by which commands find a cluster that the installed Trainyard has started."""
    home = tmp_path_factory.mktemp("home")
    made = {**os.environ, **place.env, "TRAINYARD_HOME": str(home)}
    command = [sys.executable, "-m", "cluster"]
    try:
        subprocess.run([*command, "up", "--cpus-per-node", "2", "--dashboard-port", str(free_port())], cwd=home,
                       env=made,
                       check=True)
        yield made
    finally:
        subprocess.run([*command, "down"], cwd=home, env=made, check=True)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storage")


def submitted(env: dict[str, str], cwd: Path, job: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "cluster", "submit", job, *arguments], cwd=cwd, env=env,
                          capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def artifact(place: own_job.Place, env: dict[str, str], storage: Path) -> Path:
    """Of the job, submitted from another folder than its own, on two workers."""
    flags = ["--run.storage", str(storage), "--run.name", "first", "--run.workers", "2", *QUICK]
    said = submitted(env, storage, own_job.NAME, "--working-dir", str(place.folder), "--", *flags)
    assert f"python -m {own_job.NAME} --run.storage" in said
    return storage / "first/artifact"


def test_it_is_submitted_and_trains_on_the_cluster(artifact: Path) -> None:
    assert open_artifact(artifact).manifest.description.job == own_job.NAME
    assert runs.result(artifact.parent)["metrics"]["test"]["accuracy"] > 0.9


def test_it_is_tuned_from_its_own_folder(place: own_job.Place, env: dict[str, str], storage: Path) -> None:
    flags = ["--run.storage", str(storage), "--run.name", "search", "--num-trials", "2", "--then-train", "1", *QUICK]
    submitted(env, place.folder, f"tuning.{own_job.NAME}", "--", *flags)
    found = runs.result(storage / "search")
    assert (found["status"], found["trials"]["completed"] + found["trials"]["stopped"]) == ("done", 2)
    assert list(found["best"]["values"]) == ["optim.lr"]
    assert open_artifact(found["artifact"]).manifest.description.job == own_job.NAME


@pytest.mark.parametrize("placement", ["ingress", "replicas", "shared"])
def test_it_is_served_where_it_is_named(artifact: Path, place: own_job.Place, storage: Path, placement: str) -> None:
    port, home = free_port(), {"TRAINYARD_HOME": str(storage / "home")}
    command = ["up", "--model", f"churn={artifact}", "--no-auth", "--port", str(port), "--cpus-per-replica", "0.5",
               "--placement", placement]
    with runs.python("serving", *command, folder=storage, env=place.env | home, cwd=place.folder) as job:
        assert job.wait(60) == 2
        assert "pass --job my_package.churn if you trust that package" in job.text
    command += ["--job", own_job.NAME]
    with runs.python("serving", *command, folder=storage, env=place.env | home, cwd=place.folder) as job:
        job.until(lambda: "ready: " in job.text, 120)
        probe = open_artifact(artifact).probe()
        answer = infer(port, probe.inputs["features"].tolist())
        (probabilities,) = [each["data"] for each in answer["outputs"] if each["name"] == "probabilities"]
        assert probabilities == pytest.approx(probe.outputs["probabilities"].ravel().tolist(), rel=1e-5)
        with pytest.raises(urllib.error.HTTPError) as refused:
            infer(port, [[1.0, 2.0]])
        with refused.value as answered:
            assert answered.code == 400
        job.process.send_signal(signal.SIGINT)
        assert job.wait(60) == 0, job.text


# ── a model of one's own, in one file ──
def test_a_file_with_a_class_is_submitted_tuned_and_served_without_its_code(place: own_job.Place, env: dict[str, str],
                                                                            storage: Path) -> None:
    said = submitted(env, storage, str(place.folder / "my_file.py"), "--", str(storage))
    assert "python -m my_file" in said and "R² " in said
    artifact = open_artifact(storage / "mine/artifact")
    assert artifact.manifest.description.config["model"]["build"] == "my_file:Mine"
    flags = ["--run.storage", str(storage), "--run.name", "own-search", "--num-trials", "2", "--then-train", "1",
             "--model.build", "my_file:Mine", *QUICK]
    tuned = subprocess.run([sys.executable, "-m", "tuning", "tabular", *flags], cwd=place.folder, env=env,
                           capture_output=True, text=True, check=False, timeout=250)
    assert tuned.returncode == 0, tuned.stdout + tuned.stderr
    assert "test RMSE" in tuned.stdout and "log loss" not in tuned.stdout
    port, home = free_port(), {"TRAINYARD_HOME": str(storage / "home")}
    command = ["up", "--model", f"own={artifact.uri}", "--no-auth", "--port", str(port), "--cpus-per-replica", "0.5"]
    with runs.python("serving", *command, folder=storage, env=place.env | home, cwd=storage) as job:  # not beside it
        job.until(lambda: "ready: " in job.text, 120)
        probe = artifact.probe()
        inputs = [{"name": name, "datatype": "BYTES" if values.dtype == object else "FP64", "shape": [len(values)],
                   "data": values.tolist()} for name, values in probe.inputs.items()]
        found = {each["name"]: each["data"] for each in asked(port, "own", inputs)["outputs"]}
        assert found["prediction"] == pytest.approx(probe.outputs["prediction"].ravel().tolist(), rel=1e-4)
        assert found["unseen_values"] == [0] * len(found["prediction"])
        inputs[1]["data"] = ["third"] * len(found["prediction"])
        found = {each["name"]: each["data"] for each in asked(port, "own", inputs)["outputs"]}
        assert inputs[1]["name"] == "sex" and set(found["unseen_values"]) == {1}
        job.process.send_signal(signal.SIGINT)
        assert job.wait(60) == 0, job.text


def infer(port: int, rows: list[list[float]]) -> dict[str, Any]:
    tensor = {"name": "features", "datatype": "FP32", "shape": [len(rows), len(rows[0])],
              "data": [x for row in rows for x in row]}
    return asked(port, "churn", [tensor])


def asked(port: int, model: str, inputs: list[dict[str, Any]]) -> dict[str, Any]:
    body, json_type = json.dumps({"inputs": inputs}).encode(), {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v2/models/{model}/infer", body, json_type)
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.loads(response.read())
