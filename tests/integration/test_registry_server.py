"""The registry on a real `mlflow server`, and what happens to a run whose server goes away."""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace

import numpy as np
import pytest

from cluster.core.errors import RegistryError
from cluster.core.storage import Store
from jobs.common.artifact.artifact import WEIGHTS, Probe, weights_file, write_artifact
from jobs.common.artifact.manifest import Description
from jobs.common.artifact.tensor_spec import TensorSpec
from jobs.common.registry.__main__ import main
from jobs.common.registry.connection import open_registry
from jobs.common.runs.run import main as run_job
from jobs.mlp.job import JOB
from tests.s3 import BUCKET, s3_server


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_it_answers(url, process):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=2).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"mlflow server did not answer at {url}")


class Server:
    """`mlflow server` with SQLite and a local artifact root, in a process group of its own;
    can be killed and started."""

    def __init__(self, folder):
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = None

    def start(self):
        line = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers",
                "1",
                "--backend-store-uri", f"sqlite:///{self.folder}/server.db",
                "--artifacts-destination", str(self.folder / "kept")]
        environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(line, stdout=log, stderr=log, env=environment, start_new_session=True)
        wait_until_it_answers(self.url, self.process)

    def signal(self, number):
        os.killpg(self.process.pid, number)

    def kill(self):
        if self.process and self.process.poll() is None:
            self.signal(signal.SIGKILL)
            self.process.wait()


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
def server(running):
    return running.url


@pytest.fixture
def signals_kept():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def storage(tmp_path):
    return Store.open(str(tmp_path / "storage"))


def make_artifact(store):
    scores = TensorSpec(name="scores", datatype="FP32", shape=(-1, 2))
    rows = {"scores": np.zeros((1, 2), np.float32)}
    description = Description(
        job="mlp", task="image-classification", inputs=(scores,), outputs=(scores,), labels=("a", "b"),
        preprocessing={},
        metrics={"test": {"accuracy": 0.98}}, config={}, data={"fingerprint": "f00d"}, about="A test.",
    )
    weights = {"w": np.arange(100_000, dtype=np.float32)}
    probe = Probe(inputs=rows, outputs=rows)
    return write_artifact(store, "artifact", description=description, probe=probe,
                          files={WEIGHTS: weights_file(weights)})


def client_of(url):
    from mlflow.tracking import MlflowClient

    return MlflowClient(url, url)


def test_a_run_its_metrics_and_its_model_are_on_the_server(server, storage, tmp_path, capsys):
    registry = open_registry(server, storage, "server-run")
    run_id = registry.start("r", {"optim.lr": 0.1}, {"job": "mlp"})
    registry.log({"validation_accuracy": 0.9}, step=5)
    artifact = make_artifact(storage)
    assert registry.register(artifact) == "1"
    registry.finish("done")
    assert registry.problem is None

    run = client_of(server).get_run(run_id)
    assert (run.data.params, run.data.metrics, run.info.status) == (
        {"optim.lr": "0.1"}, {"validation_accuracy": 0.9}, "FINISHED",
    )
    assert not (tmp_path / "storage" / "mlflow.db").exists()
    main(["promote", "server-run", "1", "--tracking-uri", server])
    assert capsys.readouterr() == ("models:/server-run@champion is version 1\n", "")
    champion = registry.resolve("models:/server-run@champion")
    assert (champion.version, champion.digest, champion.uri) == ("1", artifact.digest, artifact.uri)
    fetched = registry.fetch(champion, tmp_path / "fetched")
    np.testing.assert_array_equal(fetched.weights()["w"], artifact.weights()["w"])


def test_a_later_attempt_goes_on_with_the_same_run(server, storage):
    first = open_registry(server, storage, "server-resume")
    run_id = first.start("r", {"run.workers": 3}, {})
    first.log({"loss": 1.0}, 1)
    first.finish("stopped")
    second = open_registry(server, storage, "server-resume")
    assert second.start("r", {"run.workers": 1}, {}, run_id=run_id) == run_id
    second.log({"loss": 0.5}, 2)
    second.finish("done")
    assert [m.step for m in client_of(server).get_metric_history(run_id, "loss")] == [1, 2]
    assert second.start("r", {}, {}, run_id="0" * 32) != "0" * 32
    second.finish("done")


def test_a_version_that_is_not_there_is_said_with_those_that_are(server, storage):
    registry = open_registry(server, storage, "server-lookup")
    registry.start("r", {}, {})
    registry.register(make_artifact(storage))
    registry.finish("done")
    for reference in ("models:/server-lookup@champion", "models:/server-lookup/7"):
        with pytest.raises(RegistryError, match="it has version 1 @candidate"):
            registry.resolve(reference)
    with pytest.raises(RegistryError, match="it has no model nothing"):
        registry.resolve("models:/nothing@champion")


def test_a_model_on_an_object_store_is_registered(server, tmp_path):
    with s3_server():
        store = Store.open(f"s3://{BUCKET}/runs/r")
        registry = open_registry(server, Store.open(f"s3://{BUCKET}/runs"), "server-s3")
        registry.start("r", {}, {})
        artifact = make_artifact(store)
        assert registry.register(artifact) == "1"
        registry.finish("done")
        assert registry.fetch(registry.resolve("models:/server-s3@candidate"), tmp_path / "x").digest == artifact.digest


def go_on_without(server, storage, caplog):
    """What the driver does, on a registry that has gone away; returns what it is told at the end."""
    registry, artifact = open_registry(server.url, storage, "away"), make_artifact(storage)
    registry.start("r", {}, {})
    yield
    began = time.monotonic()
    for step in range(1000):
        registry.log({"loss": 1.0}, step)
    assert time.monotonic() - began < 10, "one that waited for the server would take its timeout, again and again"
    with caplog.at_level(logging.WARNING):
        assert registry.register(artifact) is None
        registry.finish("done")
    assert time.monotonic() - began < 90
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("jobs.")]
    assert len(ours) == 1 and "Training goes on without it" in ours[0]
    assert "1000 metrics were not recorded" in registry.problem
    yield registry.problem, artifact.digest


def test_a_server_that_hangs_neither_stops_nor_delays_training(running, storage, caplog):
    steps = go_on_without(running, storage, caplog)
    next(steps)
    running.signal(signal.SIGSTOP)
    try:
        next(steps)
    finally:
        running.signal(signal.SIGCONT)


def test_a_server_that_dies_neither_stops_nor_delays_training_and_the_remedy_works(
        running, storage, caplog, capsys, signals_kept):
    """Beside it a run loses the server before its first step, and has it again when its model is judged."""
    steps = go_on_without(running, storage, caplog)
    next(steps)
    problem = digest = None

    def prepare(*given, **named):
        nonlocal problem, digest
        running.kill()
        problem, digest = next(steps)
        return JOB.prepare(*given, **named)

    def judge(trained):
        running.start()
        return JOB.judge(trained)

    flags = ["--run.engine", "local", "--run.tracking-uri", running.url, "--train.max-steps", "3", "--model.hidden",
             "8",
             "--eval.bootstrap-samples", "100", "--run.storage", storage.location(), "--run.name", "back"]
    assert run_job(replace(JOB, prepare=prepare, judge=judge), flags) == 0
    assert "registry: " not in capsys.readouterr().out
    version = open_registry(running.url, storage, "back").resolve("models:/back@candidate")
    client = client_of(running.url)
    assert client.get_run(version.run_id).info.status == "FINISHED"
    assert client.get_metric_history(version.run_id, "validation_accuracy")
    remedy = problem.partition("python -m jobs.common.registry ")[2].partition(";")[0]
    main(remedy.split())
    assert open_registry(running.url, storage, "away").resolve("models:/away@candidate").digest == digest
