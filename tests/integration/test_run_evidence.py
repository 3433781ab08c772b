"""What a run whose driver was killed, and that went on, shows of itself: each step once, and the libraries it used."""

import json
from pathlib import Path

import pytest

from jobs.common.provenance import library_versions
from tests import runs
from tests.event_files import of_history, series

FLAGS = ["--run.tensorboard", "--train.epochs", "6", "--run.workers", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("storage") / "run"
    with runs.run(folder, *FLAGS) as job:
        job.until(lambda: any(row["kind"] == "evaluation" for row in runs.progress(folder).get("history", [])))
        job.until_past_a_checkpoint(50)
        job.process.kill()
        job.wait()
    assert "validation/loss" in series(folder / "tensorboard")
    with runs.run(folder, *FLAGS) as job:
        assert job.finished()["restarts"] == 1
    return folder


def test_tensorboard_shows_each_step_once_with_its_learning_rate(folder: Path) -> None:
    found = series(folder / "tensorboard")
    assert len(list((folder / "tensorboard").iterdir())) == 2
    assert found == of_history(runs.progress(folder)["history"])
    assert [step for step, _ in found["validation/accuracy"]] == [19 * epoch for epoch in range(1, 7)]
    rates = dict(found["learning_rate"])
    assert {step for step, _ in found["train/loss"]} <= {*rates}
    assert rates[114] == pytest.approx(0, abs=1e-5)


def test_report_artifact_and_checkpoints_name_the_libraries_that_were_used_alone(folder: Path) -> None:
    unused = {"tensorflow", "keras", "transformers", "tokenizers", "deepspeed", "ray", "mlflow"}
    assert unused <= library_versions().keys(), "they are installed"
    report = (folder / "report.html").read_text()
    environment = report[report.index(">Environment<") :]
    named = {name for name in library_versions() if f">{name}<" in environment}
    described = json.loads((folder / "artifact/manifest.json").read_text())
    kept = json.loads(runs.manifests(folder)[-1].read_text())["content"]["environment"]
    for libraries in (named, {*described["libraries"]}, {*kept["libraries"]}):
        assert {"python", "numpy", "torch", "pyarrow"} <= libraries
        assert not libraries & unused
