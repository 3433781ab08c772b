"""What k8s/SECURITY.md promises, as far as it needs no cluster: no pickle is read, names are no paths,
secrets stay out."""

import ast
import os
import pickle
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.core.errors import CheckpointError, ConfigError, TrainyardError
from cluster.core.shadows import PACKAGES
from cluster.core.storage import Store
from jobs.common.artifact.artifact import open_artifact
from jobs.common.checkpoint.manifest import Checkpoint, FileEntry
from jobs.common.checkpoint.store import Checkpoints
from jobs.common.checkpoint.writer import CheckpointWriter
from jobs.common.config import parse
from jobs.common.data.dataset import Dataset
from jobs.common.execution.run_state import RunState
from jobs.common.runs.run_folder import RunFolder
from jobs.common.training import predictions
from jobs.common.training.step_file import take_marks
from jobs.mlp.config import MlpConfig
from jobs.transformer.config import TransformerConfig
from serving.commands.deploy_config import find

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "k8s/SECURITY.md"


def test_each_test_that_the_threat_table_names_exists() -> None:
    text = TABLE.read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text)
    assert len(named) > 20
    for file, name in named:
        path = ROOT / file
        assert path.exists(), file
        assert not name or re.search(rf"^def {name}\(", path.read_text(), re.MULTILINE), f"{file}::{name}"
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith(("| who", "|---"))]
    assert [row for row in rows if "`tests/" not in row
            and "no test" not in row] == [], "each has a test, or says that it has none"


# ── pickle ──
UNSAFE = {"pickle.load", "pickle.loads", "pickle.Unpickler", "torch.load", "joblib.load", "cloudpickle.load",
          "cloudpickle.loads",
          "marshal.loads", "yaml.unsafe_load", "yaml.full_load", "np.load", "numpy.load", "pd.read_pickle"}
ALLOWED = {("jobs/common/training/predictions.py", "np.load")}  # allow_pickle=False, tested there


def test_no_code_of_ours_unpickles_what_lies_in_storage() -> None:
    found = {(str(path.relative_to(ROOT)), name) for top in PACKAGES
             for path in (ROOT / top).rglob("*.py") for name in _calls(path)}
    assert {(file, name) for file, name in found if name in UNSAFE} == ALLOWED


def _calls(path: Path) -> set[str]:
    return {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self._mark),)


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a run's record": ("run.json", lambda folder: RunFolder.find(_config(folder))),
    "its account": ("progress.json", lambda folder: RunState.open(Store.open(str(folder)))),
    "the steps left out": ("excluded_steps.json", lambda folder: RunState.open(Store.open(str(folder)))),
    "a step's mark": ("logs/steps/g-0", lambda folder: take_marks(Store.open(str(folder)))),
    "predictions": ("predictions/g/test-00000.npz",
                    lambda folder: predictions.read(Store.open(str(folder)), "g", "test")),
    "an artifact's manifest": ("artifact/manifest.json", lambda folder: open_artifact(str(folder / "artifact"))),
    "a data set": ("dataset.json", lambda folder: Dataset.load(Store.open(str(folder)))),
}


def _config(folder: Path) -> MlpConfig:
    return parse(MlpConfig, ["--run.storage", str(folder.parent), "--run.name", folder.name], "test")


@pytest.mark.parametrize("what", READERS)
def test_a_pickle_in_storage_is_not_run(what: str, tmp_path: Path) -> None:
    path, read = READERS[what]
    folder = tmp_path / "run"
    (folder / path).parent.mkdir(parents=True)
    (folder / path).write_bytes(pickle.dumps(Bomb(tmp_path / "owned")))
    with suppress(TrainyardError, ValueError, OSError):
        read(folder)
    assert not (tmp_path / "owned").exists()
    pickle.loads((folder / path).read_bytes() if (folder / path).exists() else pickle.dumps(Bomb(tmp_path / "owned")))
    assert (tmp_path / "owned").exists(), "it would have worked"


def test_a_pickle_in_the_place_of_a_checkpoint_is_damage(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "checkpoints"))
    checkpoints = Checkpoints(store)
    with CheckpointWriter(store, checkpoints.begin_generation(), config_fingerprint="f", environment={},
                          keep_last=2) as writer:
        writer.save({"w": np.ones(4)}, {"step": 1}, step=1, epoch=0)
    for file in store.files("data"):
        store.write_bytes(file.path, pickle.dumps(Bomb(tmp_path / "owned")))
    told: list[str] = []
    assert checkpoints.newest_intact(told.append) is None
    assert "bytes" in told[0]
    assert not (tmp_path / "owned").exists()


# ── names ──
@pytest.mark.parametrize("name", ["../up", "a/b", "/etc", "..", ".", "", "a\nb", "a b", "~root", "%2e%2e", "a" * 64,
                                  "-flag"])
def test_a_run_name_is_no_path(name: str) -> None:
    with pytest.raises(ConfigError, match=r"run\.name"):
        parse(MlpConfig, [f"--run.name={name}"], "test")


@pytest.mark.parametrize("name", ["../up", "a/b", "..", ".a", "_a", "", "A", "a b", "a\n", "a" * 63])
def test_a_served_name_is_no_path(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"NAME of a-z, 0-9, -, _ and \."):
        find(f"{name}={tmp_path}", None, Store.open(str(tmp_path)))


def test_a_checkpoints_manifest_names_no_file_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"x" * 100)
    store = Store.open(str(tmp_path / "run"))
    entry = FileEntry(path="../secret", size=100, sha256="0" * 64, rank=0)
    made = Checkpoint(generation="g", sequence=1, step=1, epoch=0, state={}, metric=None, config_fingerprint="f",
                      world_size=1,
                      created=0.0, environment={}, files=(entry,))
    with pytest.raises(TrainyardError, match=r"may not contain '\.\.'"):
        Checkpoints(store).load(made)
    assert issubclass(CheckpointError, TrainyardError)


# ── secrets ──
@pytest.mark.parametrize(("kind", "flag", "value"), [
    (MlpConfig, "--run.storage", "s3://key:hush@bucket/x"), (MlpConfig, "--data.uri", "s3://key:hush@bucket/x"),
    (MlpConfig, "--data.test-uri", "s3://bucket/x?secret_key=hush"),
    (MlpConfig, "--run.tracking-uri", "http://me:hush@host:5000"),
    (TransformerConfig, "--data.uri", "s3://key:hush@bucket/x"),
])
def test_a_password_in_a_uri_is_refused_and_not_repeated(kind: Any, flag: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(kind, [flag, value], "test")
    said = str(caught.value)
    assert said.startswith(f"{flag}: its URI holds a password or key") and "AWS_SECRET_ACCESS_KEY" in said
    assert "hush" not in said
    kept = parse(kind, [flag, value.replace("key:hush@", "").replace("me:hush@", "").partition("?")[0]], "test")
    assert isinstance(kept, kind)
