"""The job for tables: it learns numbers and classes, resumes bit for bit, says what does not fit, and answers by named
columns."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.core.errors import ConfigError, InputError
from cluster.core.storage import Store
from jobs.common.artifact.artifact import Artifact, open_artifact
from jobs.common.config import from_dict
from jobs.common.data.dataset import Dataset
from jobs.common.predicting.export import export
from jobs.common.predictor.find import load_predictor
from jobs.common.predictor.loading import check_probe
from jobs.common.runs.run import main
from jobs.common.tables.info import TableInfo
from jobs.common.tables.prepare import prepare
from jobs.common.tables.report import importance
from jobs.tabular.config import TabularConfig
from jobs.tabular.job import JOB
from jobs.tabular.model import load, residual_network
from jobs.tabular.train import train as loop
from serving.model.drift_monitor import watch
from tests import image_loops
from tests.unit.starts import first_model, of_tensors
from tests.unit.test_tables import csv, rows_of


def mixed(folder: Path, classes: bool = False) -> Path:
    """300 rows whose score is of their size, city and age, and hardly of what else there is."""
    columns = rows_of(300)
    columns["score"] = [3 * size + 2 * (city == "Rome") + (age or 50) / 20
                        for size, city, age in zip(*(columns[name] for name in ("size", "city", "age")), strict=True)]
    if classes:
        columns["score"] = ["high" if value > 3 else "low" for value in columns["score"]]
    return csv(folder, columns)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("mixed")
    config = from_dict(TabularConfig, {"data": {"uri": str(mixed(folder)), "label_column": "score"}})
    return prepare(config.data, Store.open(str(folder)), say=lambda _: None)


def config_of(model: dict[str, Any] | None = None, **groups: Any) -> TabularConfig:
    values = {"train": {"epochs": 2, "global_batch_size": 48}, "run": {"workers": "3"}, "optim": {"warmup": 2}}
    return from_dict(TabularConfig, {"model": model or {}, **values, **groups})


def train(folder: Path, dataset: Dataset, config: TabularConfig, **how: Any) -> Any:
    return image_loops.train(loop, folder, dataset, config, num_shards=3, **how)


@pytest.mark.parametrize("build", ["jobs.tabular.model:residual_network", "tests.unit.own_tables:normalised"])
def test_a_run_in_pieces_ends_with_the_same_bits_as_one_at_once(build: str, table: Dataset, tmp_path: Path) -> None:
    config = config_of({"build": build})
    assert train(tmp_path / "at once", table, config)[0] == "finished"
    assert image_loops.in_pieces(loop, tmp_path / "in pieces", table, config, num_shards=3) > 6
    assert image_loops.same(tmp_path / "in pieces", tmp_path / "at once")


def test_a_model_of_another_table_is_no_start_unless_layers_begin_anew(table: Dataset, tmp_path: Path) -> None:
    info = TableInfo.of(table, TabularConfig().model)
    first = {name: each.numpy() for name, each in residual_network(info).state_dict().items()}
    fields = [{**each, "values": [*each["values"][:-1], "Oslo"]} if each["name"] == "city" else each
              for each in table.details["_fields"]]
    origins = [first_model(tmp_path / str(number), "tabular", of_tensors(first), (), preprocessing={
        "fields": each, "targets": table.details["targets"]}) for number, each in enumerate((table.details["_fields"],
                                                                                             fields))]
    frozen = {"init_from": origins[0].uri, "freeze": ["embeddings", "first", "blocks"]}
    assert train(tmp_path / "run", table, config_of(frozen))[0] == "finished"
    kept = image_loops.tensors(tmp_path / "run")
    assert {name for name in first if kept[f"model.{name}"].tobytes() == first[name].tobytes()} == {
        name for name in first if not name.startswith("last")}
    with pytest.raises(ConfigError, match=r"is of another table: column 'city' is a category of .*Oslo.* there and a "
                                          r"category of .* here: take data of the same columns"):
        train(tmp_path / "other", table, config_of({"init_from": origins[1].uri}))
    assert train(tmp_path / "anew", table, config_of({"init_from": origins[1].uri, "init_except": ["embeddings"]}))


@pytest.mark.parametrize(("model", "said"), [
    ({"build": "tests.unit.own_tables:one_too_many"},
     r"for numbers \(1, 4\) and categories \(1, 3\) its module gives \(1, 2\): it must give numbers \(1, 1\)"),
    ({"loss": "tests.unit.own_modules:detached"}, r"--model\.loss .*detached")])
def test_what_cannot_be_trained_is_refused_by_name(model: dict[str, str], said: str, table: Dataset,
                                                   tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        train(tmp_path, table, config_of(model))


def test_a_metric_of_the_other_kind_of_target_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, mixed(tmp_path), "--eval.metric", "accuracy") == 2
    assert "--eval.metric accuracy: evaluations on this data report loss, rmse, mae, r2" in capsys.readouterr().err


# ── a run's whole life ──
def run(folder: Path, uri: Path | str, *flags: str, epochs: int = 30) -> int:
    return main(JOB,
                ["--run.engine", "local", "--run.storage", str(folder), "--run.name", "run", "--data.uri", str(uri),
                 "--data.label-column", "score", "--train.epochs", str(epochs), "--eval.bootstrap-samples", "100",
                 "--run.tracking-uri", "none", *flags])


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run that predicts quantiles, beside the baseline."""
    folder = tmp_path_factory.mktemp("numbers")
    assert run(folder, mixed(folder), "--model.loss", "quantile", "--eval.baseline", "--model.dropout", "0") == 0
    yield folder / "run"


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("classes")
    assert run(folder, mixed(folder, classes=True), epochs=10) == 0
    yield folder / "run"


def test_it_learns_numbers_and_reports_their_errors_and_no_log_loss(numbers: Path) -> None:
    test = json.loads((numbers / "result.json").read_text())["metrics"]["test"]
    assert test["r2"] > 0.9 and test["rmse_low"] < test["rmse"] < test["rmse_high"]
    assert 0.5 < test["coverage"] <= 1
    assert not {"accuracy", "log_loss"} & set(test)
    declared = json.loads((numbers / "result.json").read_text())["declared_metrics"]
    assert {"name": "rmse", "direction": "min", "title": "RMSE", "unit": "", "primary": True,
            "while_training": "rmse"} in declared
    report = (numbers / "report.html").read_text()
    for said in ("test RMSE", "predicted against true", "residuals", "What it rests on", "Against gradient boosting",
                 "Validation RMSE", "by validation loss"):
        assert said in report, said
    assert "log loss" not in report and "nats" not in report
    assert all(f">{said}<" in (numbers / "data.html").read_text() for said in ("Columns", "Targets", "Near-duplicates"))
    environment = report[report.index(">Environment<") :]
    for said in ("command", "code", "attempt", "MLflow run", "memory"):
        assert f">{said}<" in environment, said


def test_the_learning_rate_is_drawn_at_every_step_and_not_where_it_was_judged_alone() -> None:
    from jobs.common.runs.finalize import _with_rates

    class State:
        history = ({"step": 5, "learning_rate": 7.0, "validation_loss": 1.0},)
        highest_step = 10

    class Rows:
        splits = {"train": type("Split", (), {"num_rows": 244})}  # noqa: RUF012

    config = config_of(train={"epochs": 2, "global_batch_size": 48}, optim={"warmup": 4, "lr": 0.004})
    rows: Any = _with_rates(config, Rows(), State())  # type: ignore[arg-type]
    rates = {row["step"]: row["learning_rate"] for row in rows if "learning_rate" in row}
    assert [rates[step] for step in (1, 2, 4, 5)] == pytest.approx([0.001, 0.002, 0.004, 0.004])
    assert len(rates) == 10 and 0 < rates[10] < rates[6]
    assert {"step": 5, "validation_loss": 1.0} in rows
    own = config_of({"build": "tests.unit.own_classes:Rows"})
    assert _with_rates(own, Rows(), State()) == State.history  # type: ignore[arg-type]


def test_it_learns_classes_and_reports_what_every_classifier_does(classes: Path) -> None:
    result = json.loads((classes / "result.json").read_text())
    assert result["metrics"]["test"]["accuracy"] > 0.85
    report = (classes / "report.html").read_text()
    assert "test accuracy" in report and "ROC" in report and "RMSE" not in report


def opened(run: Path) -> Artifact:
    return open_artifact(str(run / "artifact"))


def asked(**columns: list[object]) -> dict[str, np.ndarray]:
    """Two rows; a column that is given replaces its values."""
    rows: dict[str, list[object]] = {"age": ["40", ""], "city": ["Rome", "Paris"],
                                     "since": ["2024-05-06", "2024-07-08"],
                                     "size": [0.5, -0.5]} | columns
    return {name: np.array(values, np.float64 if isinstance(values[0], float) else object)
            for name, values in rows.items()}


def test_an_endpoint_takes_named_columns_and_says_what_it_has_never_seen(numbers: Path) -> None:
    artifact = opened(numbers)
    assert {each.name: each.datatype for each in artifact.manifest.description.inputs} == {
        "age": "BYTES", "city": "BYTES", "since": "BYTES", "size": "FP64"}
    predictor = load_predictor(artifact)
    check_probe(predictor, artifact)
    found = predictor.encode(predictor.predict(predictor.decode(asked())))
    assert found["prediction"][:, 0] == pytest.approx([5.5, 1.0], abs=0.8)
    assert (found["low"] <= found["prediction"]).all() and (found["prediction"] <= found["high"]).all()
    assert found["unseen_values"].tolist() == [0, 0], "an age is missing in training rows, too"
    strange = predictor.encode(predictor.predict(predictor.decode(asked(city=["Oslo", b"Rome"], size=["", "1e1"]))))
    assert strange["unseen_values"].tolist() == [2, 0]
    with pytest.raises(InputError, match="row 1: column 'since' is 'yesterday', which is no date"):
        predictor.decode(asked(since=["2024-05-06", "yesterday"]))


def test_the_graph_answers_as_the_module_and_as_the_workers_did(numbers: Path, classes: Path) -> None:
    for of in (numbers, classes):
        artifact = opened(of)
        predictor, model = load_predictor(artifact), load(artifact)
        rows = predictor.decode(artifact.probe().inputs)
        split = model.info.num_numbers
        by_module = model.predict(rows[:, :split], rows[:, split:-1])
        assert predictor.predict(rows)[:, :-1] == pytest.approx(by_module, rel=1e-5, abs=1e-6)
        export(artifact, "onnx", str(of / "model.onnx"))
        assert (of / "model.onnx").read_bytes() == artifact.read("model.onnx")


def test_a_module_that_makes_no_use_of_an_input_is_served(tmp_path: Path) -> None:
    assert run(tmp_path, mixed(tmp_path), "--model.build", "tests.unit.own_tables:NumbersAlone", epochs=1) == 0
    check_probe(load_predictor(opened(tmp_path / "run")), opened(tmp_path / "run"))


def test_drift_is_watched_of_columns_and_of_what_is_predicted(numbers: Path, classes: Path) -> None:
    from serving.core.settings import ModelSettings

    for of, answer in ((numbers, "prediction"), (classes, "predicted_class")):
        artifact = opened(of)
        settings = ModelSettings(name="m", version="1", uri=artifact.uri, digest=artifact.digest)
        predictor = load_predictor(artifact)
        drift = watch(artifact, predictor, settings)
        assert drift is not None
        shown: dict[str, float] = {}
        drift._show = shown.__setitem__  # the gauge needs a cluster
        rows = predictor.decode({name: np.resize(each, 600) for name, each in asked(size=[40.0, 50.0]).items()})
        for start in range(0, 600, 50):
            drift.see(rows[start : start + 50], predictor.predict(rows[start : start + 50]))
            drift.count()
        assert shown["column size"] > 1 and {answer, "column city", "column since month"} <= set(shown)


def test_a_column_that_decides_is_important_and_one_that_does_not_is_not(table: Dataset) -> None:
    info = TableInfo.of(table, TabularConfig().model)

    def by_size(numbers: np.ndarray, categories: np.ndarray) -> np.ndarray:
        return numbers[:, [info.schema.numbers.index("size")]].astype(np.float64)

    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(200, info.num_numbers)).astype(np.float32)
    codes = rng.integers(0, 3, (200, len(info.cardinalities)))
    found = importance(info, numbers, codes, by_size(numbers, codes), by_size)
    assert found[0].column == "size" and found[0].low > 0
    assert [(each.median, each.high) for each in found[1:]] == [(0, 0)] * 3


def test_numbers_of_an_evaluation_are_those_that_are_judged(numbers: Path) -> None:
    """What chooses the best checkpoint is what the report shows of it."""
    result = json.loads((numbers / "result.json").read_text())
    history = [row for row in json.loads((numbers / "progress.json").read_text())["history"]
               if row["kind"] == "evaluation"]
    best = min(history, key=lambda row: row["validation_loss"])
    for name in ("loss", "rmse", "mae", "r2"):
        assert result["metrics"]["validation"][name] == pytest.approx(best[f"validation_{name}"], rel=1e-4), name
