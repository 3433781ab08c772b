"""What a version must show before it is promoted, and whose rows it may be judged on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.core.errors import ConfigError
from cluster.core.storage import Store
from jobs.common.artifact.artifact import open_artifact
from jobs.common.config import from_dict
from jobs.common.paired import improvement
from jobs.common.predicting.gates import Gates
from jobs.common.predicting.overlap import trained_on
from jobs.common.predictor.find import load_predictor
from jobs.common.predictor.predictor import Changing
from jobs.common.registry.__main__ import main
from jobs.common.registry.connection import open_registry
from jobs.common.vision.prepare import prepare
from jobs.common.vision.robustness import CHANGES
from jobs.common.vision.sources.digits import DigitsFragment
from jobs.mlp.config import MlpConfig
from jobs.transformer.text.robustness import PERTURBATIONS
from tests import kept

pytestmark = pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy is deprecated")  # MLflow's
ROWS = 300


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model `mlp` has version 1, the champion, and version 2, which is a CNN."""
    found = kept.storage(tmp_path_factory.mktemp("gates") / "storage")
    where = ["--storage", str(found)]
    main(["register", "mlp", str(found / "cnn/artifact"), *where])
    main(["promote", "mlp", "1", *where])
    return found


@pytest.fixture(scope="module")
def data(storage: Path) -> Path:
    """Digits that neither was trained on: shifted by a pixel, which half of them notice in a column."""
    fragment = DigitsFragment()
    images = np.roll(next(fragment.decode(fragment.spec())).pixels[:ROWS], 1, axis=2)
    labels = fragment.labels().to_pylist()[:ROWS]
    pixels = pa.FixedSizeListArray.from_arrays(pa.array(images.reshape(-1)), 784)
    pq.write_table(pa.table({"image": pixels, "label": labels, "half": ["a", "b"] * (ROWS // 2)}),
                   storage / "new.parquet")
    return storage / "new.parquet"


def right(storage: Path, data: Path, change: str = "") -> dict[str, Any]:
    """By version, which rows it gets right. change: of the images, as in a run's report."""
    table = pq.read_table(data)
    images = table.column("image").combine_chunks().flatten().to_numpy().reshape(ROWS, 28, 28, 1).copy()
    if change:
        images = np.clip(CHANGES[change](images, np.arange(ROWS), 0, 255.0), 0, 255)
    found: dict[str, Any] = {}
    for version, name in (("1", "mlp"), ("2", "cnn")):
        artifact = open_artifact(storage / name / "artifact")
        labels = np.array([int(label) for label in artifact.manifest.description.labels])
        answers = load_predictor(artifact).predict(images).argmax(1)
        found[version] = labels[answers] == table.column("label").to_numpy()
    return found


def champion(storage: Path) -> str:
    return open_registry(None, Store.open(str(storage)), "mlp").resolve("models:/mlp@champion").version


def asked(storage: Path, *words: str) -> int:
    try:
        main(["promote", "mlp", *words, "--storage", str(storage)])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_a_version_is_promoted_only_if_it_is_better_on_these_rows(storage: Path, data: Path, tmp_path: Path,
                                                                  capsys: pytest.CaptureFixture[str]) -> None:
    found = right(storage, data)
    gap = found["2"].mean() - found["1"].mean()
    bound = improvement(1.0 - found["1"][:, None], 1.0 - found["2"][:, None], confidence=0.95, root=False)[1]
    assert abs(gap) > 0.01, "they differ, or the test tells nothing"
    better, worse = ("2", "1") if bound > 0 else ("1", "2")
    main(["promote", "mlp", worse, "--storage", str(storage)])
    out = tmp_path / "gate"
    assert asked(storage, better, "--if-better-on", str(data), "--at-least", "0.9", "--out", str(out)) == 1
    said = capsys.readouterr()
    assert f"NOT KEPT: accuracy better than that of mlp/{worse}, the champion: by {abs(gap):.4f}" in said.out
    assert f"version {better} of mlp was not promoted" in said.err and champion(storage) == worse
    assert not json.loads((out / "gate.json").read_text())["passed"]
    assert asked(storage, better, "--if-better-on", str(data)) == 0
    assert champion(storage) == better
    assert "kept: rows that it was trained on: nobody knows" in capsys.readouterr().out
    made = open_registry(None, Store.open(str(storage)), "mlp").promotions("mlp")[-1]
    assert made.why.startswith("gate: ") and made.why.endswith("/gate.html")
    page = Path(made.why.removeprefix("gate: "))
    assert page.parent.parent == storage / "gates" and "accuracy better than that of" in page.read_text()


def test_rules_of_a_file_are_checked_each(storage: Path, data: Path, tmp_path: Path,
                                          capsys: pytest.CaptureFixture[str]) -> None:
    other = "2" if champion(storage) == "1" else "1"
    exact = right(storage, data)[other].mean()
    rules = tmp_path / "gates.yaml"
    rules.write_text(f"""
data: {data}
figures: [{{metric: accuracy, at_least: {exact:.6f}}}, {{metric: log_loss, at_most: 0}}]
slices: [{{column: half, metric: accuracy, at_least: 0.0}}]
most_size_mb: 1000
most_latency_ms: 60000
""")
    assert asked(storage, other, "--gates", str(rules)) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("kept", "NOT KEPT"))]
    assert [line.partition(":")[0] for line in lines] == ["kept", "kept", "NOT KEPT", "kept", "kept", "kept", "kept"]
    assert "log loss" in lines[2] and "wanted at most 0.0000" in lines[2]
    assert {"accuracy where half is a (150 rows)", "accuracy where half is b (150 rows)"} == {
        line.split(": ")[1] for line in lines[3:5]}
    assert "ms, wanted at most 60000 ms" in lines[6]


def test_robustness_is_measured_by_the_changes_of_a_run_s_report(storage: Path, data: Path, tmp_path: Path,
                                                                 capsys: pytest.CaptureFixture[str]) -> None:
    other = "2" if champion(storage) == "1" else "1"
    exact = {change: right(storage, data, change)[other].mean() for change in ("noise", "shift")}
    assert exact["shift"] < right(storage, data)[other].mean(), "it is harder, or the test tells nothing"
    rules = tmp_path / "gates.yaml"
    rules.write_text(f"""
data: {data}
robustness:
- {{change: noise, metric: accuracy, at_least: {exact["noise"]:.6f}}}
- {{change: shift, metric: accuracy, at_most: {exact["shift"]:.6f}}}
- {{change: shift, metric: accuracy, at_least: {exact["shift"] + 0.001:.6f}}}
""")
    out = tmp_path / "gate"
    assert asked(storage, other, "--gates", str(rules), "--out", str(out)) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("kept", "NOT KEPT"))][1:]
    assert [line.partition(",")[0] for line in lines] == [
        f"kept: accuracy with noise: {exact['noise']:.4f}", f"kept: accuracy with shift: {exact['shift']:.4f}",
        f"NOT KEPT: accuracy with shift: {exact['shift']:.4f}"]
    assert "accuracy with noise" in (out / "gate.html").read_text()
    for change, says in (("PGD 0.1", "noise, blur, rotation, shift; attacks need gradients"), ("typos", "noise, blur")):
        rules.write_text(f"{{data: {data}, robustness: [{{change: {change}, metric: accuracy, at_least: 0.5}}]}}")
        assert asked(storage, other, "--gates", str(rules)) == 2
        said = capsys.readouterr()
        assert f"the gates ask for robustness to '{change}'" in said.err and says in said.err
        assert "rows" not in said.out, "before anything is evaluated"


def test_texts_are_changed_as_in_a_run_s_report() -> None:
    artifact = open_artifact(kept.artifact("transformer"))
    predictor = load_predictor(artifact)
    assert isinstance(predictor, Changing) and list(predictor.changes) == list(PERTURBATIONS)
    texts = np.array(["Where is the station?", "Wo ist der Bahnhof?"], object)
    seed = artifact.manifest.description.config["run"]["seed"]
    for name, perturb in PERTURBATIONS.items():
        expected = [perturb(text, (seed, row)) for text, row in zip(texts, (7, 9), strict=True)]
        assert predictor.change(name, {"text": texts}, np.array([7, 9]))["text"].tolist() == expected
    assert texts[0] == "Where is the station?"


def test_rows_that_a_version_was_trained_on_tell_nothing(storage: Path, tmp_path: Path,
                                                         capsys: pytest.CaptureFixture[str]) -> None:
    fragment = DigitsFragment()
    images = next(fragment.decode(fragment.spec())).pixels[:100]
    pixels = pa.FixedSizeListArray.from_arrays(pa.array(images.reshape(-1)), 784)
    pq.write_table(pa.table({"image": pixels, "label": fragment.labels().to_pylist()[:100]}), tmp_path / "old.parquet")
    about = open_artifact(storage / "mlp/artifact").manifest.description
    here, where = Store.open(str(storage)), str(tmp_path / "old.parquet")
    assert trained_on(about, here, where, None) is None, "what an earlier version prepared has no hashes"
    here.delete_folder("data")
    prepare(from_dict(MlpConfig, about.config).data, here, use_ray=False)
    seen = trained_on(about, here, where, None)
    assert seen is not None and 40 < seen < 90, "about 64 of a hundred are training rows"
    other = "2" if champion(storage) == "1" else "1"
    assert asked(storage, other, "--if-better-on", str(tmp_path / "old.parquet"), "--at-least", "-1") == 1
    assert f"NOT KEPT: rows that it was trained on: {seen} of 100 rows" in capsys.readouterr().out


@pytest.mark.parametrize(("text", "says"), [
    ("data: [", "it is not YAML|while parsing"), ("figures: []", "data: Field required"),
    ("{data: x, figure: []}", "figure: there is no such rule, but data, "),
    ("{data: x, figures: [{metric: accuracy, at_leest: 1}]}", "figures.at_leest: there is no such rule"),
    ("{data: x, figures: [{metric: accuracy, at_least: high}]}", "valid number"),
])
def test_rules_that_mean_nothing_are_refused(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "gates.yaml").write_text(text)
    with pytest.raises(ConfigError, match=says):
        Gates.read(tmp_path / "gates.yaml")
    with pytest.raises(ConfigError, match="name a file of rules"):
        Gates.read(tmp_path / "none.yaml")


def test_metrics_and_columns_that_there_are_not_are_named(storage: Path, data: Path,
                                                          capsys: pytest.CaptureFixture[str]) -> None:
    other = "2" if champion(storage) == "1" else "1"
    assert asked(storage, other, "--if-better-on", str(data), "--by", "macro_f1") == 2
    assert "by accuracy or log_loss, not by 'macro_f1'" in capsys.readouterr().err
    assert asked(storage, champion(storage), "--if-better-on", str(data)) == 2
    assert "is the champion already" in capsys.readouterr().err


def test_the_bound_holds_the_true_improvement_about_as_often_as_it_says() -> None:
    rng, held = np.random.default_rng(0), 0
    for _ in range(150):
        first, second = rng.normal(1.0, 0.5, (60, 1)), rng.normal(0.9, 0.5, (60, 1))
        held += improvement(first, second, confidence=0.9, root=False)[1] <= 0.1
    assert 0.83 <= held / 150 <= 0.96
