"""A job in a folder outside this repository, beside an installed Trainyard: it trains, and answers where it may."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.core import shadows
from cluster.core.errors import ArtifactError, InputError
from cluster.core.storage import Store
from jobs.common.artifact.artifact import Artifact, open_artifact
from jobs.common.predictor.find import explains, load_predictor
from jobs.common.runs.run import main
from jobs.common.training.find_job import beside, find_job
from jobs.mlp.job import JOB
from serving.commands.deploy_config import find
from tests import own_job
from tests.runs import ROOT, result


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> own_job.Place:
    return own_job.make(tmp_path_factory.mktemp("own"))


def python(place: own_job.Place, *arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=folder or place.folder, env={**os.environ, **place.env},
                          capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def artifact(place: own_job.Place) -> Artifact:
    storage = place.folder.parent / "storage"
    done = python(place, "-m", own_job.NAME, "--run.engine", "local", "--run.workers", "2", "--run.storage",
                  str(storage),
                  "--run.name", "first", "--run.tracking-uri", "none", "--train.epochs", "3",
                  "--eval.bootstrap-samples", "100")
    assert done.returncode == 0, done.stdout + done.stderr
    assert result(storage / "first")["metrics"]["test"]["accuracy"] > 0.9
    return open_artifact(storage / "first/artifact")


@pytest.fixture
def importable(place: own_job.Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(place.folder))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_package"]:
        del sys.modules[name]


def test_it_is_trainyards_wheel_that_is_used(place: own_job.Place) -> None:
    said = python(place, "-c", "import cluster, jobs, serving, trainyard, tuning\n"
                               "for each in (cluster, jobs, serving, trainyard, tuning): print(each.__file__)")
    assert said.stdout.split() == [str(place.installed / name / "__init__.py") for name in shadows.PACKAGES]
    assert (place.installed / "jobs/mlp/search_space.yaml").is_file()
    templates = [path.relative_to(ROOT) for name in shadows.PACKAGES
                 for path in (ROOT / name).rglob("templates/*.html")]
    assert templates
    assert [path for path in templates if not (place.installed / path).is_file()] == []


def test_a_module_beside_an_installed_trainyard_trains_and_answers_without_it(place: own_job.Place) -> None:
    """On two workers, by the command `trainyard`."""
    storage = place.folder.parent / "module"
    done = python(place, "-m", "trainyard", "train", "pytorch", "--model.build", "my_package.nets:build",
                  "--run.engine", "local", "--run.workers", "2", "--run.storage", str(storage), "--run.name", "mine",
                  "--run.tracking-uri", "none", "--train.epochs", "1", "--eval.bootstrap-samples", "100",
                  "--eval.robustness-rows", "0")
    assert done.returncode == 0, done.stdout + done.stderr
    artifact = open_artifact(storage / "mine/artifact")
    predictor, probe = load_predictor(artifact), artifact.probe()
    answered = predictor.encode(predictor.predict(predictor.decode(probe.inputs)))
    np.testing.assert_allclose(answered["probabilities"], probe.outputs["probabilities"], atol=1e-5)
    assert not [name for name in sys.modules if name.partition(".")[0] == "my_package"]


@pytest.mark.usefixtures("importable")
def test_its_artifact_names_it_and_is_answered_by_its_predictor_for_who_has_named_it(artifact: Artifact) -> None:
    assert artifact.manifest.description.job == own_job.NAME
    predictor, probe = load_predictor(artifact, [own_job.NAME]), artifact.probe()
    answered = predictor.encode(predictor.predict(predictor.decode(probe.inputs)))
    np.testing.assert_allclose(answered["probabilities"], probe.outputs["probabilities"], rtol=1e-6)
    with pytest.raises(InputError, match="not finite"):
        predictor.decode({"features": np.full((1, 3), np.nan, np.float32)})
    assert not explains(artifact, [own_job.NAME])


@pytest.mark.usefixtures("importable")
@pytest.mark.parametrize("named", [(), ("my_package",), ("my_package.churn.predictor",), ("churn",), ("my_package.*",)])
def test_a_package_that_nobody_has_named_word_for_word_is_not_imported(
        artifact: Artifact, named: tuple[str, ...]) -> None:
    with pytest.raises(ArtifactError,
                       match=r"'my_package\.churn', which is none of Trainyard's own \(cnn, mlp, pytorch, "
                             r"tabular, transf"
                                            r"ormer\).* pass --job my_package\.churn if you trust that package"):
        load_predictor(artifact, named)
    with pytest.raises(ArtifactError, match="pass --job"):
        find(f"churn={artifact.uri}", None, Store.open(str(Path(artifact.uri).parent)), named)
    assert not [name for name in sys.modules if name.partition(".")[0] == "my_package"]


def test_who_has_named_a_package_that_is_not_here_is_told_so(artifact: Artifact) -> None:
    with pytest.raises(ArtifactError,
                       match=r"there is no module my_package: run this where Python finds my_package\.churn"):
        load_predictor(artifact, [own_job.NAME])


@pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field` is deprecated")  # Ray Serve's, of Pydantic
@pytest.mark.usefixtures("importable")
def test_a_replica_serves_it_where_its_settings_name_it(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.serve._private import replica as serve_replica

    from serving.core.settings import ModelSettings
    from serving.model.replica import Replica

    patched: Any = serve_replica  # what a replica sets for its process ends with the test
    monkeypatch.setattr(patched, "add_port_to_grpc_server", patched.add_port_to_grpc_server)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "RAYON_NUM_THREADS",
                 "TF_NUM_INTEROP_THREADS"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))
    settings = ModelSettings(name="churn", version="1", uri=artifact.uri, digest=artifact.digest)
    with pytest.raises(ArtifactError, match="pass --job"):
        Replica(asdict(settings))
    assert Replica(asdict(replace(settings, jobs=[own_job.NAME]))).about()["job"] == own_job.NAME


def test_a_search_of_it_has_its_options_and_its_space(place: own_job.Place) -> None:
    said = python(place, "-m", "tuning", own_job.NAME, "--help")
    assert said.returncode == 0 and "--optim.lr" in said.stdout and "--num-trials" in said.stdout
    assert said.stdout.startswith("usage: python -m tuning my_package.churn")
    none = python(place, "-m", "tuning", "my_package.none")
    assert (none.returncode, none.stderr.splitlines()) == (2, [none.stderr.strip()])
    assert "there is no job 'my_package.none', since my_package.none is not there: give one of cnn, mlp" in none.stderr


@pytest.mark.usefixtures("importable")
def test_its_own_files_are_found_beside_it() -> None:
    job = find_job(own_job.NAME)
    assert (job.name, job.package) == (own_job.NAME, own_job.NAME)
    found = beside(job, "search_space.yaml")
    assert found is not None and "optim.lr" in found.read_text()
    assert beside(job, "no.yaml") is None


def test_a_package_that_is_called_like_a_job_of_trainyard_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(replace(JOB, package="mlp"), []) == 2
    assert "the package mlp has the name of a job of Trainyard's own: call it otherwise" in capsys.readouterr().err


# ── folders that hide Trainyard's packages ──
@pytest.mark.parametrize("name", ["cluster", "jobs", "serving", "trainyard", "tuning", "jobs.py"])
def test_a_folder_that_hides_a_package_of_trainyard_is_named(place: own_job.Place, name: str, tmp_path: Path) -> None:
    if name.endswith(".py"):
        (tmp_path / name).touch()
    else:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    own = name.removesuffix(".py")
    for module in ("tuning", "serving", "cluster", "jobs.mlp"):
        if own != module.partition(".")[0]:  # else it is theirs that Python runs
            said = python(place, "-m", module, "--help", folder=tmp_path)
            assert said.returncode == 2 and said.stdout == ""
            assert said.stderr == (f"error: {tmp_path / name}: Python takes it for Trainyard's own {own} (in "
                                   f"{place.installed}): rename it, or work in a folder that has none\n")
    other = "tuning" if own != "tuning" else "serving"
    imported = python(place, "-c", f"import {other}", folder=tmp_path)
    assert f"ImportError: {tmp_path / name}: Python takes it" in imported.stderr


def test_a_folder_that_holds_no_package_hides_nothing(place: own_job.Place, tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/notes.txt").touch()
    assert python(place, "-m", "cluster", "--help", folder=tmp_path).returncode == 0
    assert shadows.found_in(tmp_path) is None
    (tmp_path / "jobs/__init__.py").touch()
    assert f"{tmp_path}/jobs: Python takes it for Trainyard's own jobs" in str(shadows.found_in(tmp_path))
    assert shadows.found_in(shadows.OURS) is None
