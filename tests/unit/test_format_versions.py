"""What a newer Trainyard wrote is refused by name, with the way out;
what was written before there were versions is read."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.core.errors import NewerVersionError
from cluster.core.storage import Store
from jobs.common.checkpoint.manifest import write_json
from jobs.common.checkpoint.store import Checkpoints
from jobs.common.checkpoint.writer import CheckpointWriter
from jobs.common.data.dataset import VERSION, Dataset
from jobs.common.execution.run_state import RunState
from jobs.common.training.train_state import TrainState
from serving.commands.deployment_record import Running
from serving.core.settings import INGRESS, ModelSettings
from tests import kept
from tuning.journal import Journal

KEY = b"0123456789abcdef"
REMEDY = "written by a newer Trainyard .*: go on with that one, or "


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Checkpoints at steps 10 and 20."""
    store = Store.open(str(tmp_path / "checkpoints"))
    writer = CheckpointWriter(store, Checkpoints(store).begin_generation(), config_fingerprint="f", environment={},
                              keep_last=3)
    with writer:
        for step in (10, 20):
            writer.save({"w": np.ones(step)}, {"step": step}, step=step, epoch=0)
    return store


def rewrite(store: Store, path: str, **changed: Any) -> None:
    """As a newer version would write it: with a sha256 that is right."""
    content = json.loads(store.read_text(path))["content"]
    write_json(store, path, content | changed)


@pytest.mark.parametrize(("changed", "why"), [({"schema_version": 2}, "version 2, this one reads up to 1"),
                                              ({"schema_version": "2026"}, "version '2026'"),
                                              ({"tide": 1}, "its field 'tide'")])
def test_a_newer_checkpoint_is_refused_by_name_and_no_older_one_resumed_instead(store: Store, changed: dict[str, Any],
                                                                                why: str) -> None:
    path = Checkpoints(store).committed()[0].name.manifest
    rewrite(store, path, **changed)
    driver, damages = Checkpoints(store), list[str]()
    driver.begin_generation()
    for ask in (lambda: driver.newest_intact(damages.append), driver.best, driver.committed, lambda: driver.prune(1)):
        with pytest.raises(NewerVersionError, match=f"{path} was {REMEDY}begin another run with --run.name") as refused:
            ask()
        assert why in str(refused.value)
        assert refused.value.exit_code == 2
    assert not damages
    assert store.exists(path)


def test_a_damaged_newer_checkpoint_is_skipped_and_named(store: Store) -> None:
    path = Checkpoints(store).committed()[0].name.manifest
    text = store.read_text(path)
    store.write_text(path, text.replace('"schema_version": 1', '"schema_version": 3'))
    damages = list[str]()
    checkpoint = Checkpoints(store).newest_intact(damages.append)
    assert checkpoint is not None
    assert checkpoint.step == 10
    assert damages == [f"checkpoint at step 20: {path}: sha256 differs"]


def test_a_newer_record_of_a_generation_is_refused(store: Store) -> None:
    generation = Checkpoints(store).current_generation()
    rewrite(store, f"generations/{generation}.json", schema_version=2)
    with pytest.raises(NewerVersionError, match=REMEDY):
        Checkpoints(store).begin_generation()


def test_checkpoints_without_a_version_are_read() -> None:
    store = Store.open(str(kept.FIXTURES / "storage/mlp/checkpoints"))
    (manifest,) = [file.path for file in store.files("manifests")]
    assert "schema_version" not in store.read_text(manifest)
    checkpoint = Checkpoints(store).newest_intact(pytest.fail)
    assert checkpoint is not None
    assert TrainState.saved({key: value for key, value in checkpoint.state.items()
                             if key in asdict(TrainState())}).step == 18


def test_new_checkpoints_say_their_version(store: Store) -> None:
    for file in (*store.files("manifests"), *store.files("generations")):
        assert json.loads(store.read_text(file.path))["content"]["schema_version"] == 1


def test_what_a_newer_loop_kept_beside_its_tensors_is_refused() -> None:
    with pytest.raises(NewerVersionError, match=r"its field 'tide'.*or begin another run"):
        TrainState.saved({"step": 3, "skipped_steps": 0, "tide": 1})


def test_a_newer_list_of_steps_to_leave_out_is_refused(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    RunState(store=store).exclude([3])
    rewrite(store, "excluded_steps.json", schema_version=2)
    with pytest.raises(NewerVersionError, match=REMEDY):
        RunState.open(store)


def _journal(store: Store, monkeypatch: pytest.MonkeyPatch, version: int | None) -> None:
    """A search that began in this version and went on in another; None: in one that wrote no version."""
    journal = Journal.open(store, KEY)
    journal.begin({"job": "mlp"})

    def written(text: str) -> dict[str, Any]:
        content = {key: value for key, value in json.loads(text).items() if key != "schema_version"}
        return content if version is None else content | {"schema_version": version}

    monkeypatch.setattr("tuning.journal.parse_json", written)
    journal.add(0, kind="begun", values={})
    monkeypatch.undo()


def test_a_newer_journal_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(str(tmp_path))
    _journal(store, monkeypatch, 2)
    with pytest.raises(NewerVersionError,
                       match=rf"journal/0000\.json was {REMEDY}begin another search with --run.name"):
        Journal.open(store, KEY)


def test_a_journal_without_a_version_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(str(tmp_path))
    _journal(store, monkeypatch, None)
    assert "schema_version" not in store.read_text("journal/0000.json")
    assert Journal.open(store, KEY).trials[0].values == {}


def test_newer_prepared_data_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    store.write_text("dataset.json", json.dumps({"version": VERSION + 1, "waves": []}))
    with pytest.raises(NewerVersionError, match=rf"dataset\.json was {REMEDY}pass another --run.storage"):
        Dataset.load(store)


def test_a_newer_record_of_an_endpoint_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = asdict(ModelSettings(name="digits", version="1", uri="/m", digest="d"))
    for extra, outcome in (({}, None), ({"tide": 1}, "its field 'tide'")):
        user_config = {"models": {"digits": [{"weight": 1.0, "settings": settings | extra}]}, "guards": {},
                       "shadows": {}}
        config = {"applications": [{"name": "endpoint",
                                    "deployments": [{"name": INGRESS, "user_config": user_config}]}]}
        read: Callable[[], Any] = Running(port=8000, pid=1, address="a", config=config).models
        if outcome is None:
            assert read()["digits"][0]["settings"] == settings
        else:
            with pytest.raises(NewerVersionError,
                               match=rf"serving-8000\.json was .*{outcome}.*: go on with that one, or end that"):
                read()
