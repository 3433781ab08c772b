"""`trainyard evaluate`: a model's figures on new data are those of a training run, by slices, with drift; and whether
models really differ."""

import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.common.artifact.artifact import open_artifact
from jobs.common.evaluation.metrics import evaluate as figures_of
from jobs.common.paired import paired_classes
from jobs.common.predicting.evaluate import main
from jobs.common.predictor.find import load_predictor
from jobs.common.vision.sources.digits import DigitsFragment
from tests import kept

pytestmark = pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy is deprecated")  # MLflow's
ROWS = 400


def digits(path: Path, labels: Sequence[object] | None = None, change: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Some of them as Parquet, with a column that says which half a row is of. Returns the images and the codes."""
    fragment = DigitsFragment()
    images = next(fragment.decode(fragment.spec())).pixels[:ROWS]
    codes = np.array(fragment.labels().to_pylist()[:ROWS])
    images = np.clip(images.astype(int) + change, 0, 255).astype(np.uint8)
    pixels = pa.FixedSizeListArray.from_arrays(pa.array(images.reshape(-1)), 784)
    pq.write_table(pa.table({"image": pixels, "label": pa.array(codes if labels is None else labels),
                             "half": ["first" if row < ROWS // 2 else "second" for row in range(ROWS)],
                             "number": np.arange(ROWS)}), path)
    return images, codes


def evaluated(out: Path) -> dict[str, Any]:
    return json.loads((out / "evaluation.json").read_text())


def test_the_figures_are_those_of_the_models_answers_and_mlflow_has_them(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage, out = kept.storage(tmp_path / "storage"), tmp_path / "out"
    images, codes = digits(tmp_path / "new.parquet")
    command = ["--model", "models:/mlp/1", "--model", str(storage / "cnn/artifact"), "--storage", str(storage),
               "--data.uri", str(tmp_path / "new.parquet"), "--slices", "half,number", "--out", str(out),
               "--batch-rows", "64"]
    assert main(command) == 0
    said = capsys.readouterr().out
    mlp, cnn = evaluated(out)["models"]
    answers = [load_predictor(open_artifact(storage / name / "artifact")).predict(images) for name in ("mlp", "cnn")]
    names = open_artifact(storage / "mlp/artifact").manifest.description.labels
    for found, probabilities in zip((mlp, cnn), answers, strict=True):
        wanted = figures_of(probabilities, codes, names, top_k=3, bootstrap_samples=1000).scalars()
        assert found["metrics"] == pytest.approx(wanted, abs=1e-5)
    first = figures_of(answers[0][: ROWS // 2], codes[: ROWS // 2], names, top_k=3, bootstrap_samples=1000).accuracy
    assert {each["value"]: each["figures"]["accuracy"] for each in mlp["slices"]["half"]}["first"] == first
    assert [each["rows"] for each in mlp["slices"]["number"]] == [100] * 4
    (pair,) = evaluated(out)["pairs"]
    wanted_pair = paired_classes("a", "b", tuple(each.argmax(1) == codes for each in answers))  # type: ignore[arg-type]
    assert (pair["only_first"], pair["p_value"]) == (wanted_pair.only_first, wanted_pair.p_value)
    assert pair["sentence"] in said
    assert "DRIFT" not in said.splitlines()[2], "most of these rows are those of its training"
    page = (out / "report.html").read_text()
    assert "By half" in page and "Since it was trained" in page and "goodput" not in page
    with sqlite3.connect(storage / "mlflow.db") as database:
        (run,) = database.execute("select run_uuid from runs where name = 'evaluation of mlp/1'").fetchall()
        metrics = dict(database.execute("select key, value from metrics where run_uuid = ?", run).fetchall())
        tags = dict(database.execute("select key, value from tags where run_uuid = ?", run).fetchall())
    assert run == (mlp["mlflow_run"],) and cnn["mlflow_run"] is None
    assert metrics["new_accuracy"] == pytest.approx(mlp["metrics"]["accuracy"])
    assert metrics["drift_brightness"] in [each["psi"] for each in mlp["drift"]]
    assert tags["evaluates"] == "models:/mlp/1"


def test_rows_unlike_those_of_training_are_drift(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digits(tmp_path / "new.parquet", change=90)
    assert main(["--model", str(kept.artifact("mlp")), "--data.uri", str(tmp_path / "new.parquet"), "--out",
                 str(tmp_path / "out"), "--batch-rows", "64"]) == 0
    assert "DRIFT (PSI above 0.25): " in (said := capsys.readouterr().out)
    assert "brightness" in said


@pytest.mark.parametrize(("labels", "flags", "said"), [
    (["cat"] * ROWS, (), "column 'label' has 'cat', and the model tells 0, 1, 2, 3, 4 … apart"),
    (None, ("--data.label-column", "digit"), "there is no column 'digit': the data has image, label, half, number"),
    (None, ("--slices", "third"), "there is no column 'third'"),
    (None, ("--bootstrap-samples", "10"), "--bootstrap-samples 10: must be at least 100")])
def test_what_cannot_be_judged_is_said_in_one_line(labels: Sequence[object] | None, flags: Sequence[str], said: str,
                                                   tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digits(tmp_path / "new.parquet", labels)
    assert main(["--model", str(kept.artifact("mlp")), "--data.uri", str(tmp_path / "new.parquet"), "--out",
                 str(tmp_path / "out"), "--batch-rows", "64", *flags]) == 2
    assert said in capsys.readouterr().err
