"""The registry on SQLite: what is recorded, what two first writers do, and that training never waits or dies for it."""

import os
import platform
import re
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cluster.core.auth import user_name
from cluster.core.errors import ArtifactError, ConfigError, RegistryError, StorageFullError
from cluster.core.storage import Store
from jobs.common.artifact.artifact import WEIGHTS, Probe, weights_file, write_artifact
from jobs.common.artifact.manifest import Description
from jobs.common.artifact.tensor_spec import TensorSpec
from jobs.common.config import parse
from jobs.common.registry.__main__ import main
from jobs.common.registry.async_logger import Metric as Entry
from jobs.common.registry.async_logger import MetricLog
from jobs.common.registry.connection import experiment_of, open_registry
from jobs.common.registry.sqlite_versions import read_versions
from jobs.common.runs.run import main as carry_out
from jobs.common.runs.run_folder import RunFolder, read_record
from jobs.common.runs.tracking import Tracking
from jobs.mlp.config import MlpConfig
from serving.commands.deploy_config import find
from tests.unit.test_run import FAILING, QUICK

# MLflow's models of its tables use an option that SQLAlchemy 2.1 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy is deprecated")


def make_artifact(folder, scale=1.0):
    scores = TensorSpec(name="scores", datatype="FP32", shape=(-1, 2))
    rows = {"scores": np.zeros((1, 2), np.float32)}
    description = Description(
        job="mlp", task="image-classification", inputs=(scores,), outputs=(scores,), labels=("a", "b"),
        preprocessing={},
        metrics={"test": {"accuracy": 0.98}}, config={}, data={"fingerprint": "f00d"}, about="A test.", code="git:1",
    )
    weights = {"w": np.full(4, scale, np.float32)}
    probe = Probe(inputs=rows, outputs=rows)
    return write_artifact(Store.open(str(folder)), "artifact", description=description, probe=probe,
                          files={WEIGHTS: weights_file(weights)})


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    """One database for the tests that do not care: making it takes 2 s."""
    folder = tmp_path_factory.mktemp("storage")
    open_registry(None, Store.open(str(folder)), "warm").start("warm", {}, {})
    return Store.open(str(folder))


def client_of(storage):
    from mlflow.tracking import MlflowClient

    return MlflowClient(f"sqlite:///{storage.local_path()}/mlflow.db")


def test_a_run_is_recorded_with_params_tags_metrics_and_status(storage):
    registry = open_registry(None, storage, "recorded")
    run_id = registry.start("first", {"optim.lr": 0.1, "data.uri": "s3://k:hush@b"}, {"job": "mlp"})
    registry.log({"train_loss": 1.5, "validation_accuracy": 0.5, "auc_macro": None, "odd{name}": 1.0}, step=10)
    registry.log({"train_loss": 0.5, "skipped": float("nan")}, step=20)
    registry.finish("done")
    run = client_of(storage).get_run(run_id)
    assert run.data.params == {"optim.lr": "0.1", "data.uri": "s3://***@b"}
    assert run.data.metrics == {"train_loss": 0.5, "validation_accuracy": 0.5, "odd_name_": 1.0}
    assert (run.info.run_name, run.info.status, run.data.tags["job"]) == ("first", "FINISHED", "mlp")
    history = client_of(storage).get_metric_history(run_id, "train_loss")
    assert [(m.step, m.value) for m in history] == [(10, 1.5), (20, 0.5)]
    assert registry.problem is None


def test_a_report_is_beside_its_run_and_the_training_loss_is_a_series(storage, tmp_path):
    registry = open_registry(None, storage, "attached")
    tracking = Tracking(registry, lambda: registry.start("first", {}, {}))
    tracking.log([{"kind": "progress", "step": 1, "epoch": 0, "train_loss": 2.0, "samples_per_s": 10.0},
                  {"kind": "evaluation", "step": 2, "epoch": 1, "validation_loss": 1.5},
                  {"kind": "progress", "step": 3, "epoch": 1, "train_loss": 1.0}])
    tracking.attach("report.html", "<p>how it went</p>")
    assert tracking.finish("done") is None
    history = client_of(storage).get_metric_history(registry.run_id, "train_loss")
    assert [(m.step, m.value) for m in history] == [(1, 2.0), (3, 1.0)]
    path = client_of(storage).download_artifacts(registry.run_id, "report.html", str(tmp_path))
    assert Path(path).read_text() == "<p>how it went</p>"


@pytest.mark.parametrize(("given", "experiment"), [([], "mlp"), (["--run.experiment", "digits at night"],
                                                                "digits at night")])
def test_runs_of_a_job_are_in_one_experiment_and_each_registers_a_model_of_its_name(storage, tmp_path, given,
                                                                                    experiment):
    places = set()
    for name in ("one", "two"):
        config = parse(MlpConfig, ["--run.storage", storage.location(), "--run.name", name, *given], "test")
        folder = RunFolder.find(config).create(config, 1, {})
        tracking = Tracking.open("mlp", config, folder)
        version = tracking.register(make_artifact(tmp_path / name), {}, 1)
        assert tracking.finish("done") is None
        assert version is not None and open_registry(None, storage, "").resolve(f"models:/{name}/{version}")
        run = client_of(storage).get_run(folder.record["registry_run_id"])
        places.add(client_of(storage).get_experiment(run.info.experiment_id).name)
        storage.delete_folder(name)
    assert places == {experiment}


def test_a_model_that_is_registered_later_is_in_the_experiment_of_its_run(storage, tmp_path):
    artifact = make_artifact(tmp_path)
    main(["register", "late", artifact.uri, "--storage", storage.location()])
    (version,) = open_registry(None, storage, "late").versions("late")
    run = client_of(storage).get_run(version.run_id)
    assert client_of(storage).get_experiment(run.info.experiment_id).name == artifact.manifest.description.job
    named = replace(artifact.manifest.description, config={"run": {"experiment": "mine"}})
    assert experiment_of(named) == "mine"


def test_a_later_attempt_goes_on_with_the_same_run_although_a_parameter_changed(storage):
    first = open_registry(None, storage, "resumed")
    run_id = first.start("r", {"run.workers": "3"}, {})
    first.log({"loss": 1.0}, step=1)
    first.finish("stopped")
    assert client_of(storage).get_run(run_id).info.status == "KILLED"
    second = open_registry(None, storage, "resumed")
    assert second.start("r", {"run.workers": "1", "run.new": "x"}, {}, run_id=run_id) == run_id
    assert client_of(storage).get_run(run_id).info.status == "RUNNING"
    second.log({"loss": 0.5}, step=2)
    second.finish("failed")
    run = client_of(storage).get_run(run_id)
    assert run.data.params == {"run.workers": "3", "run.new": "x"} and run.info.status == "FAILED"
    assert run.data.tags["now run.workers"] == "1"
    assert [m.step for m in client_of(storage).get_metric_history(run_id, "loss")] == [1, 2]


def test_a_run_that_the_registry_does_not_have_becomes_a_new_one(storage):
    registry = open_registry(None, storage, "unknown")
    run_id = registry.start("r", {}, {}, run_id="0123456789abcdef0123456789abcdef")
    assert run_id and run_id != "0123456789abcdef0123456789abcdef"
    registry.finish("done")


def test_an_artifact_becomes_the_candidate_and_is_promoted_and_fetched(storage, tmp_path, capsys):
    registry = open_registry(None, storage, "models")
    registry.start("r", {}, {})
    first = make_artifact(tmp_path / "first")
    assert registry.register(first) == "1"
    assert registry.register(first) == "1"  # the driver died after registering: the same version again
    registry._client.delete_registered_model_alias("models", "candidate")  # and before it had named the candidate
    assert registry.register(first) == "1"
    assert registry.resolve("models:/models@candidate").version == "1"
    second = make_artifact(tmp_path / "second", scale=2.0)
    assert registry.register(second) == "2"
    registry.finish("done")

    candidate = registry.resolve("models:/models@candidate")
    assert (candidate.version, candidate.digest, candidate.uri) == ("2", second.digest, second.uri)
    assert candidate.tags["data_fingerprint"] == "f00d"
    fetched = registry.fetch(candidate, tmp_path / "fetched")
    np.testing.assert_array_equal(fetched.weights()["w"], np.full(4, 2, np.float32))

    assert registry.promote("models", "1") is None
    assert registry.promote("models", "2") == "1"
    assert registry.resolve("models:/models@champion").version == "2"
    assert registry.resolve("models:/models/1").digest == first.digest
    assert [(v.version, sorted(v.aliases)) for v in registry.versions("models")] == [
        ("2", ["candidate", "champion"]), ("1", []),
    ]
    assert capsys.readouterr() == ("", "")


def test_the_registrys_copy_is_held_to_the_registered_digest(storage, tmp_path):
    registry = open_registry(None, storage, "tampered")
    registry.start("r", {}, {})
    registry.register(make_artifact(tmp_path))
    version = registry.resolve("models:/tampered@candidate")
    [copy] = Path(storage.location("mlartifacts")).glob(f"{version.run_id}/artifacts/artifact")
    other = make_artifact(tmp_path / "other", scale=3.0)
    for path in (*other.manifest.paths, "manifest.json"):
        (copy / path).write_bytes(other.store.read_bytes(path))
    with pytest.raises(ArtifactError, match="as was registered"):
        registry.fetch(version, tmp_path / "fetched")


def test_a_version_whose_tag_names_a_storage_that_does_not_answer_is_one_message(storage, tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    registry = open_registry(None, storage, "unreachable")
    registry.start("r", {}, {})
    registry.register(make_artifact(tmp_path))
    uri = "s3://bucket/runs/r/artifact?endpoint_override=127.0.0.1:1&scheme=http&region=us-east-1"
    client_of(storage).set_model_version_tag("unreachable", "1", "artifact", uri)
    with pytest.raises(ArtifactError) as caught:
        find("digits=models:/unreachable@candidate", None, storage)
    assert str(caught.value).startswith(f"artifact {uri} cannot be read (When ")
    assert "check the address, that its storage can be reached from here" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("models:/lookups@champion", r"has no models:/lookups@champion: it has version 1 @candidate"),
        ("models:/lookups/7", "has no models:/lookups/7"),
        ("models:/lookups/newest", "has no models:/lookups/newest"),
        ("models:/nothing@champion", "it has no model nothing"),
        ("lookups@champion", "write models:/NAME@ALIAS"),
    ],
)
def test_a_version_that_is_not_there_is_said_with_those_that_are(storage, tmp_path, reference, message):
    registry = open_registry(None, storage, "lookups")
    registry.start("r", {}, {})
    if not registry.versions("lookups"):
        registry.register(make_artifact(tmp_path))
    with pytest.raises(RegistryError, match=message):
        registry.resolve(reference)


def test_the_command_registers_after_the_fact_in_a_fresh_database_without_a_word_too_many(tmp_path):
    line = [sys.executable, "-m", "jobs.common.registry", "register", "later", make_artifact(tmp_path).uri]
    done = subprocess.run([*line, "--storage", str(tmp_path)], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "models:/later/1\n", "")


def test_the_command_promotes_and_lists(storage, tmp_path, capsys):
    registry = open_registry(None, storage, "chosen")
    registry.start("r", {}, {})
    registry.register(make_artifact(tmp_path))
    place = ["--storage", storage.location()]
    main(["promote", "chosen", "1", *place])
    assert capsys.readouterr() == ("models:/chosen@champion is version 1\n", "")
    main(["list", "chosen", *place])
    heading, row = capsys.readouterr().out.splitlines()
    assert heading.split()[:3] == ["MODEL", "VERSION", "ALIASES"]
    assert row.split()[:2] == ["chosen", "1"] and "accuracy 0.9800" in row
    assert {*row.split()[2].split(",")} == {"candidate", "champion"}
    with pytest.raises(SystemExit, match="2"):
        main(["promote", "chosen", "9", *place])
    assert "it has version 1" in capsys.readouterr().err


def test_each_promotion_is_recorded_and_the_last_can_be_undone(storage, tmp_path, capsys):
    for scale in (1.0, 2.0):
        registry = open_registry(None, storage, "undone")
        registry.start("r", {}, {})
        registry.register(make_artifact(tmp_path / str(scale), scale))
    place = ["undone", "--storage", storage.location()]
    main(["history", *place])
    assert capsys.readouterr().out == "no version of undone has been promoted\n"
    main(["promote", "undone", "1", *place[1:]])
    with pytest.raises(SystemExit, match="2"):
        main(["undo", *place])
    assert "there is nothing to undo" in capsys.readouterr().err
    main(["promote", "undone", "2", "--why", "better on new data", *place[1:]])
    main(["undo", *place])
    assert capsys.readouterr().out.splitlines()[-1] == "models:/undone@champion is version 1 (was 2)"
    assert registry.resolve("models:/undone@champion").version == "1"
    main(["history", *place])
    _, first, second, third = capsys.readouterr().out.splitlines()
    user = f"{user_name()}@{platform.node()}"
    assert re.split(r" {2,}", first)[1:] == ["1", "-", user, "-"]
    assert re.split(r" {2,}", second)[1:] == ["2", "1", user, "better on new data"]
    assert re.split(r" {2,}", third)[1:] == ["1", "2", user, "undoes the promotion of version 2"]
    for _ in range(40):
        registry.promote("undone", "2", "w" * 400)
    assert 5 < len(registry.promotions("undone")) < 20, "the oldest go, where MLflow has no room"
    client_of(storage).set_registered_model_tag("undone", "promotions", "no JSON")
    with pytest.raises(SystemExit, match="2"):
        main(["history", *place])
    assert "the tag 'promotions' of a registered model is damaged" in capsys.readouterr().err


def test_a_list_that_is_read_without_mlflow_is_the_one_that_mlflow_gives(storage, tmp_path):
    for name in ("read-b", "read-a"):
        for scale in (1.0, 2.0, 3.0):
            registry = open_registry(None, storage, name)
            registry.start("r", {}, {})
            assert registry.register(make_artifact(tmp_path / f"{name}-{scale}", scale)) is not None
    registry.promote("read-a", "1")
    client_of(storage).delete_model_version("read-b", "2")
    client_of(storage).create_registered_model("read-nothing")
    client_of(storage).register_prompt("read-prompt", "Say {{what}}.")
    database = storage.local_path("mlflow.db")
    assert [(v.name, v.version) for v in read_versions(database, "read-b")] == [("read-b", "3"), ("read-b", "1")]
    for name in (None, "read-a", "read-b", "read-nothing", "read-prompt", "not there"):
        assert [vars(v) | {"aliases": {*v.aliases}} for v in read_versions(database, name)] == [
            vars(v) | {"aliases": {*v.aliases}} for v in registry.versions(name)]


def test_a_database_with_other_tables_is_left_to_mlflow(tmp_path):
    (tmp_path / "mlflow.db").write_bytes(b"")
    assert read_versions(tmp_path / "mlflow.db", None) is None


def test_looking_makes_no_database(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["list", "--storage", str(tmp_path)])
    assert "no registry at" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


FIRST_WRITER = """
import sys, time
from pathlib import Path
from cluster.core.storage import Store
from jobs.common.registry.connection import open_registry
from jobs.common.registry.__main__ import main
import mlflow.tracking  # both are ready before either goes
folder = Path(sys.argv[1])
(folder / f"ready-{sys.argv[2]}").touch()
while len(list(folder.glob("ready-*"))) < 2:
    time.sleep(0.001)
registry = open_registry(None, Store.open(str(folder / "storage")), "shared")
registry.start(sys.argv[2], {"who": sys.argv[2]}, {})
registry.log({"loss": 1.0}, 1)
registry.finish("done")
assert registry.problem is None, registry.problem
"""


def test_two_first_writers_of_a_fresh_database_both_record(tmp_path):
    line = [sys.executable, "-c", FIRST_WRITER, str(tmp_path)]
    writers = [
        subprocess.Popen([*line, name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for name in "ab"
    ]
    try:
        heard = [writer.communicate(timeout=120)[0] for writer in writers]
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
    assert [(writer.returncode, text) for writer, text in zip(writers, heard, strict=True)] == [(0, ""), (0, "")]
    client = client_of(Store.open(str(tmp_path / "storage")))
    experiment = client.get_experiment_by_name("shared")
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.info.run_name for run in runs) == ["a", "b"]
    assert all(run.data.metrics == {"loss": 1.0} for run in runs)


def test_no_registry_records_nothing(tmp_path):
    registry = open_registry("none", Store.open(str(tmp_path)), "x")
    assert registry.start("r", {}, {}) is None
    registry.log({"loss": 1.0}, 1)
    assert registry.register(make_artifact(tmp_path)) is None
    registry.finish("done")
    assert not (tmp_path / "mlflow.db").exists()
    with pytest.raises(RegistryError, match="tracking is turned off"):
        registry.resolve("models:/x@champion")


def test_an_object_store_asks_for_a_tracking_server():
    with pytest.raises(ConfigError, match=r"--run\.tracking-uri"):
        open_registry(None, Store.open("s3://bucket/runs?region=us-east-1"), "x")


def test_a_dead_and_a_half_dead_server_are_found_out_in_seconds_and_named_without_the_password(tmp_path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        for state in ("dead", "half-dead"):
            began = time.monotonic()
            with pytest.raises(RegistryError, match=r"http://\*\*\*@127.0.0.1:\d+ cannot be used .* tracking URI"):
                open_registry(f"http://me:hush@127.0.0.1:{port}", Store.open(str(tmp_path)), "x").start("r", {}, {})
            assert time.monotonic() - began < 60, state  # by itself MLflow tries for minutes
            listener.listen()  # from now on it accepts, and says nothing


def test_a_storage_that_cannot_hold_the_database_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    registry = open_registry(f"sqlite:///{tmp_path}/file/mlflow.db", Store.open(str(tmp_path)), "x")
    with pytest.raises(RegistryError, match=r"registry sqlite:///.* cannot be used"):
        registry.start("r", {}, {})


def test_a_database_of_another_mlflow_names_the_upgrade(tmp_path):
    import sqlite3

    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("create table alembic_version (version_num varchar(32) not null)")
        database.execute("insert into alembic_version values ('ffffffffffff')")
    database.close()
    registry = open_registry(None, Store.open(str(tmp_path)), "x")
    with pytest.raises(RegistryError, match="cannot be used"):
        registry.start("r", {}, {})


class Place:
    """Somewhere that takes metrics, or not."""

    def __init__(self):
        self.taken, self.down, self.warnings, self.asked = [], False, [], threading.Event()

    def send(self, batch):
        self.asked.set()
        if self.down:
            raise OSError("down")
        self.taken += batch


def entries(numbers):
    return [Entry("loss", float(n), n, 0) for n in numbers]


def test_metrics_arrive_in_order_and_in_batches():
    place = Place()
    log = MetricLog(place.send, place.warnings.append)
    for start in range(0, 5000, 100):
        log.add(entries(range(start, start + 100)))
    assert log.close() == 0
    assert [entry.step for entry in place.taken] == list(range(5000))


def test_what_a_place_that_was_down_missed_is_sent_when_it_is_back():
    place = Place()
    place.down = True
    log = MetricLog(place.send, place.warnings.append, retry_s=0.01)
    log.add(entries(range(10)))
    assert place.asked.wait(10)
    place.down = False
    log.add(entries(range(10, 20)))
    assert log.close() == 0
    assert [entry.step for entry in place.taken] == list(range(20))


def test_a_place_that_stays_down_costs_no_waiting_and_the_missing_are_counted():
    place = Place()
    place.down = True
    log = MetricLog(place.send, place.warnings.append, retry_s=600)
    log.add(entries(range(10)))
    assert place.asked.wait(10)
    began = time.monotonic()
    log.add(entries(range(10, 30)))
    assert log.close() == 30
    assert time.monotonic() - began < 60
    assert place.warnings and place.taken == []


def test_the_module_is_imported_without_mlflow():
    check = ("import sys, jobs.common.registry.registry, jobs.common.registry.mlflow_registry; sys.exit('mlflow' in "
             "sys.modules)")
    assert subprocess.run([sys.executable, "-c", check], env=os.environ, check=False).returncode == 0


def test_a_database_that_was_not_finished_is_made_anew_and_a_disk_that_is_full_says_so(tmp_path):
    """A disk of 300 kB: MLflow's empty tables take about 900."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("this machine mounts no tmpfs")
    try:
        with pytest.raises(StorageFullError, match=r"mlflow\.db is full: make room"):
            open_registry(None, Store.open(str(disk)), "full").start("first", {}, {})
        assert not (disk / "mlflow.db").exists()
        assert list(disk.glob("mlflow.db.new-*"))
        subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)
        assert open_registry(None, Store.open(str(disk)), "full").start("second", {}, {})
        assert not list(disk.glob("mlflow.db.new-*"))
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


# ── a model to begin with ──
def test_an_alias_that_has_moved_since_a_run_began_with_it_is_another_config(storage, tmp_path, capsys):
    registry = open_registry(None, storage, "moves")
    registry.start("run", {}, {})
    first, second = make_artifact(tmp_path / "1"), make_artifact(tmp_path / "2", 2.0)
    assert registry.register(first) == "1"
    command = [*QUICK[:2], "--run.storage", str(storage.local_path()), "--run.name", "StorageFullError"]
    assert carry_out(FAILING, [*command, "--model.init-from", "models:/moves@candidate"]) == 3
    assert carry_out(FAILING, [*command, "--model.init-from", "models:/moves@candidate"]) == 3, "it goes on"
    assert registry.register(second) == "2"
    capsys.readouterr()
    assert carry_out(FAILING, [*command, "--model.init-from", "models:/moves@candidate"]) == 2
    assert f"model.init_digest: {first.digest} -> {second.digest}" in capsys.readouterr().err
    assert carry_out(FAILING, [*command, "--model.init-from", "models:/moves/1"]) == 3, "the same weights"
    record = read_record(storage.child("StorageFullError"), "run.json")
    assert record["started_from"] == [{"name": "models:/moves@candidate", "uri": first.uri, "digest": first.digest}]
    tags = client_of(storage).get_run(record["registry_run_id"]).data.tags
    assert tags["began_with"] == f"models:/moves@candidate ({first.digest[:12]})"
    assert carry_out(FAILING, [*command, "--model.init-from", "models:/moves@champion"]) == 2
    assert "has no models:/moves@champion: it has version 2 @candidate, 1" in capsys.readouterr().err
