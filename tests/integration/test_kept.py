"""What users of an earlier version keep is read: runs go on to the same bits, their data,
configs and registry are found."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from cluster.core.storage import Store
from jobs.common.artifact.artifact import open_artifact
from jobs.common.checkpoint.manifest import write_json
from jobs.common.provenance import machine
from jobs.common.registry.connection import open_registry
from tests import kept, runs

FLAGS = ["--run.checkpoint-every-steps", "8", "--run.keep-checkpoints", "1000", "--run.tracking-uri", "none"]


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kept.storage(tmp_path_factory.mktemp("kept") / "storage")


@pytest.mark.parametrize(("job", "last_step"), [("mlp", 38), ("cnn", 62), ("transformer", 36)])
def test_a_run_goes_on_from_its_checkpoint_to_the_weights_that_it_would_have_had(storage: Path, job: str,
                                                                                 last_step: int) -> None:
    folder = storage / job
    made_on = json.loads(runs.manifests(folder)[-1].read_text())["content"]["environment"]
    config = ["--config", str(folder / "config.yaml")]  # what was saved is a valid --config
    with runs.run(folder, *config, *FLAGS, quick=False, job=job) as started:
        result = started.finished()
    assert "continuing at step" in started.text
    assert (result["steps"], result["lost_steps"]) == (last_step, 0)
    assert _names(storage / "data") == _names(kept.FIXTURES / "storage/data"), "nothing is prepared again"
    before, after = _weights(kept.artifact(job)), _weights(folder / "artifact")
    assert sorted(before) == sorted(after)
    if machine()["processor"] in json.dumps(made_on):
        assert {name: each.tobytes() for name, each in after.items()} == {name: each.tobytes()
                                                                          for name, each in before.items()}
    for name in before:  # another processor sums in another order
        np.testing.assert_allclose(after[name], before[name], rtol=1e-3, atol=1e-4)


def test_a_run_whose_checkpoint_is_newer_is_refused_and_goes_on_with_the_newer_program(storage: Path) -> None:
    folder = storage / "newer"
    shutil.copytree(kept.FIXTURES / "storage/mlp", folder)
    (manifest,) = runs.manifests(folder)
    store, path = Store.open(str(folder / "checkpoints")), manifest.relative_to(folder / "checkpoints").as_posix()
    before, content = manifest.read_text(), json.loads(manifest.read_text())["content"]
    write_json(store, path, content | {"schema_version": 2})
    flags = ["--config", str(folder / "config.yaml"), *FLAGS]
    with runs.run(folder, *flags, quick=False) as started:
        assert started.wait() == 2, started.text
    assert f"{manifest} was written by a newer Trainyard" in started.text
    assert "Traceback" not in started.text
    manifest.write_text(before)  # as the newer one would read it
    with runs.run(folder, *flags, quick=False) as again:
        assert again.finished()["lost_steps"] == 0
    assert "continuing at step 18" in again.text


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _weights(artifact: Path) -> dict[str, Any]:
    """By name; a Keras model's answers to its probe rows, since its file holds names only."""
    found = [*artifact.rglob("model.safetensors")]
    return load_file(found[0]) if found else dict(open_artifact(artifact).probe().outputs)


@pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy is deprecated")  # MLflow's, of SQLAlchemy
def test_a_registry_gives_its_candidate(storage: Path, tmp_path: Path) -> None:
    registry = open_registry(None, Store.open(str(storage)), "mlp")
    version = registry.resolve("models:/mlp@candidate")
    fetched = registry.fetch(version, tmp_path / "artifact")
    assert (fetched.digest, fetched.manifest.description.job) == (version.digest, "mlp")
