"""Variants of trained classifiers: as good as their parents, or refused; what they say of themselves;
how a replica serves them."""

import asyncio
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.core.errors import ArtifactError
from cluster.core.storage import Store
from jobs.common.artifact.artifact import PROBE, WEIGHTS, Artifact, Probe, open_artifact, weights_file, write_artifact
from jobs.common.predictor.find import load_predictor
from jobs.common.predictor.loading import check_probe
from jobs.common.registry.connection import open_registry
from serving.__main__ import main
from serving.core.settings import ModelSettings
from serving.model.replica import Replica
from tests import kept

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy is deprecated"),  # MLflow's, of SQLAlchemy
    # Ray Serve's, of Pydantic
    pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field` is deprecated"),
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),  # Keras's
]
VARIANTS = {"mlp": ["onnx", "onnx-int8"], "cnn": ["onnx", "onnx-int8", "compiled"],
            "transformer": ["onnx", "onnx-int8"]}
QUICK = ["--seconds", "0.02"]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a replica sets for its process ends with the test."""
    from ray.serve._private import replica

    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "RAYON_NUM_THREADS",
                 "TF_NUM_INTEROP_THREADS"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))
    serve_replica: Any = replica
    monkeypatch.setattr(serve_replica, "add_port_to_grpc_server", serve_replica.add_port_to_grpc_server)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of an earlier version, with the data that they were trained on:
    to train new ones would take half a minute."""
    return kept.storage(tmp_path_factory.mktemp("kept") / "storage")


@pytest.fixture(scope="module", params=VARIANTS)
def parent(request: pytest.FixtureRequest, storage: Path) -> Iterator[Artifact]:
    """A trained model of each job, with its variants beside it."""
    yield optimised(storage, request.param)


def optimised(storage: Path, job: str) -> Artifact:
    if job != "mlp":
        pytest.importorskip({"cnn": "jobs.cnn.framework", "transformer": "transformers"}[job])
    folder = storage / job
    if not (folder / "artifact-onnx").exists():
        assert main(["optimise", str(folder / "artifact"), "--storage", str(storage), "--max-loss", "5", *QUICK]) == 0
    return open_artifact(folder / "artifact")


def variants(parent: Artifact) -> dict[str, Artifact]:
    job = parent.manifest.description.job
    return {name: open_artifact(f"{parent.uri}-{name}") for name in VARIANTS[job]}


# ── what is made ──
def test_variants_answer_nearly_as_their_parent_and_are_of_its_job(parent: Artifact) -> None:
    about, inputs = parent.manifest.description, parent.probe().inputs
    wanted = parent.probe().outputs["probabilities"]
    for name, made in variants(parent).items():
        of = made.manifest.description
        assert (of.job, of.task, of.inputs, of.outputs, of.labels, of.data) == (
            about.job, about.task, about.inputs, about.outputs, about.labels, about.data)
        predictor = load_predictor(made)
        found = predictor.encode(predictor.predict(predictor.decode(inputs)))["probabilities"]
        np.testing.assert_allclose(found, wanted, atol=0.15 if name == "onnx-int8" else 1e-5)
        np.testing.assert_allclose(made.probe().outputs["probabilities"], found, atol=1e-6)
        assert found.shape == wanted.shape and found.dtype == np.float32


def test_an_answer_in_8_bits_does_not_depend_on_what_else_is_in_the_batch(parent: Artifact) -> None:
    predictor = load_predictor(variants(parent)["onnx-int8"])
    rows = predictor.decode(parent.probe().inputs)
    together = predictor.predict(np.resize(rows, (64, *rows.shape[1:])))
    alone = np.concatenate([predictor.predict(rows[i : i + 1]) for i in range(len(rows))])
    np.testing.assert_allclose(together[: len(rows)], alone, atol=1e-6)


def test_a_variant_says_what_it_was_made_of_and_what_that_changed(parent: Artifact) -> None:
    for name, made in variants(parent).items():
        variant = made.manifest.description.variant
        assert variant is not None
        assert (variant.name, variant.parent_digest, variant.parent_version) == (name, parent.digest, "")
        stated = parent.manifest.description.metrics["test"]
        assert set(variant.figures) == {"size_bytes", "latency_ms_1_row", "latency_ms_64_rows",
                                        *(f"test_{key}" for key in stated)}
        for metric, value in stated.items():
            if metric not in ("accuracy_low", "accuracy_high"):  # an earlier version's interval was another one
                assert variant.parent_figures[f"test_{metric}"] == pytest.approx(value, abs=1e-4)
            assert variant.figures[f"test_{metric}"] == made.manifest.description.metrics["test"][metric]
        lost = variant.figures["test_accuracy"] - variant.parent_figures["test_accuracy"]
        assert variant.change["test_accuracy"] == lost
        assert min(variant.figures["latency_ms_1_row"], variant.parent_figures["latency_ms_1_row"]) > 0
        on_disk = sum(path.stat().st_size for path in made.store.local_path().rglob("*")
                      if path.name not in ("manifest.json", "probe.json", "model_card.md"))
        on_disk -= sum(path.stat().st_size for path in made.store.local_path().rglob("*") if path.is_dir())
        assert variant.figures["size_bytes"] == on_disk
        assert 0 <= variant.largest_difference < (0.5 if name == "onnx-int8" else 1e-5)
        card = made.read("model_card.md").decode()
        assert f"`{name}` of the model with digest `{parent.digest[:12]}`" in card
        assert re.search(r"\| size\\?_bytes \| [\d,]+ \| [\d,]+ \| [+-][\d,.]+ \|", card)
    raw = json.loads(parent.store.read_text("manifest.json"))
    assert "variant" not in raw, "a trained model's manifest has no such field"


def test_all_weights_are_of_8_bits_and_factors_use_no_more_than_7(parent: Artifact) -> None:
    import onnx

    graph = onnx.load_from_string(variants(parent)["onnx-int8"].read("model.onnx")).graph
    arrays = [onnx.numpy_helper.to_array(constant) for constant in graph.initializer]
    large = [array for array in arrays if array.ndim >= 2 and array.size >= 64]
    # the latter: embeddings
    assert large and {array.dtype for array in large} <= {np.dtype(np.int8), np.dtype(np.uint8)}
    assert max(int(np.abs(array.astype(int)).max()) for array in large if array.dtype == np.int8) <= 64


def test_variants_hold_safe_formats_only_and_no_weights_twice(parent: Artifact) -> None:
    for name, made in variants(parent).items():
        kept = {path for path in made.manifest.paths if path.endswith((".safetensors", ".keras", ".onnx"))}
        assert kept == ({"model.keras", "model.onnx"} if name == "compiled" else {"model.onnx"})


# ── as an endpoint's replica ──
def replica(made: Artifact) -> Replica:
    return Replica(asdict(ModelSettings(name="m", version="1", uri=made.uri, digest=made.digest, max_batch_rows=8)))


def test_a_replica_serves_variants(parent: Artifact) -> None:
    probe = parent.probe()
    for name, made in variants(parent).items():
        served = replica(made)
        assert served.about()["variant"] == name
        one = {key: values[:1] for key, values in probe.inputs.items()}
        found: Any = asyncio.run(served.infer([one, probe.inputs]))
        first, second = found
        np.testing.assert_allclose(first["probabilities"], made.probe().outputs["probabilities"][:1], atol=1e-6)
        np.testing.assert_allclose(second["probabilities"], made.probe().outputs["probabilities"], atol=1e-6)


def test_what_was_tampered_with_is_refused(storage: Path, tmp_path: Path) -> None:
    made = variants(optimised(storage, "mlp"))["onnx-int8"].copy_to(tmp_path / "copy")
    path = made.store.local_path("model.onnx")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"model\.onnx differs from its sha256"):
        replica(made)


def test_a_variant_with_another_models_answers_is_refused_by_its_probe(storage: Path, tmp_path: Path) -> None:
    """Also in 8 bits, where the answers may be a little off."""
    made = variants(optimised(storage, "mlp"))["onnx-int8"]
    probe = made.probe()
    wrong = Probe(inputs=probe.inputs, outputs={"probabilities": np.roll(probe.outputs["probabilities"], 1, axis=1)})
    written = write_artifact(Store.open(str(tmp_path)), "wrong", description=made.manifest.description, probe=wrong,
                             files={"model.onnx": made.read("model.onnx")})
    with pytest.raises(ArtifactError, match="its answers for its own probe rows differ by"):
        check_probe(load_predictor(written), written)


# ── what is refused ──
def refused(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 2) -> str:
    capsys.readouterr()
    assert main(["optimise", *arguments, *QUICK]) == code
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return said.err


def test_a_variant_that_loses_too_much_is_not_written(storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """8 bits whose ranges come from black images alone."""
    from serving.variants import benchmark

    artifact = optimised(storage, "mlp")
    plain = benchmark.Data.training_rows

    def black(data: benchmark.Data, count: int) -> Any:
        return plain(data, count) * 0

    monkeypatch.setattr(benchmark.Data, "training_rows", black)
    capsys.readouterr()
    assert main(["optimise", artifact.uri, "--storage", str(storage), "--output", str(tmp_path / "out"), *QUICK]) == 2
    said = capsys.readouterr()
    lost = re.search(r"onnx-int8 is refused: its test accuracy is 0\.\d{4}, (\d+\.\d\d) points less", said.err)
    assert lost and float(lost[1]) > 5
    assert "--max-loss is 0.5" in said.err
    assert re.search(r"^onnx-int8 .* refused$", said.out, re.MULTILINE)
    assert open_artifact(tmp_path / "out/onnx").manifest.description.variant is not None
    assert not (tmp_path / "out/onnx-int8").exists()


def test_what_no_variants_can_be_made_of_is_refused_with_the_reason(storage: Path, tmp_path: Path,
                                                                     capsys: pytest.CaptureFixture[str]) -> None:
    artifact = optimised(storage, "mlp")
    where = ["--storage", str(storage)]
    assert "is an artifact already: pass another --output" in refused(capsys, artifact.uri, *where)
    out = ["--output", str(tmp_path / "out")]
    assert "is the variant onnx of another model already" in refused(capsys, f"{artifact.uri}-onnx", *where, *out)
    assert "has no 'compiled': it has onnx, onnx-int8" in refused(capsys, artifact.uri, "--variants", "compiled",
                                                                  *where, *out)
    assert "it must be 0 to 100, in points of accuracy" in refused(capsys, artifact.uri, "--max-loss", "-1", *where,
                                                                   *out)
    assert "no artifact at" in refused(capsys, str(tmp_path), *where, *out)
    assert "--register" in refused(capsys, artifact.uri, "--register", *where, *out)

    from dataclasses import replace

    about = artifact.manifest.description
    files, probe = {WEIGHTS: artifact.read(WEIGHTS)}, artifact.probe()
    language = replace(about, task="text-generation", labels=(), metrics={"test": {"loss": 1.0}})
    written = write_artifact(Store.open(str(tmp_path)), "language", description=language, probe=probe, files=files)
    assert "is for text-generation: only classifiers are optimised" in refused(capsys, written.uri, *where, *out)
    assert not (tmp_path / "out").exists()


def test_a_model_that_does_not_do_what_its_manifest_says_is_no_parent(storage: Path, tmp_path: Path,
                                                                       capsys: pytest.CaptureFixture[str]) -> None:
    artifact = optimised(storage, "mlp")
    weights = {name: np.zeros_like(values) for name, values in artifact.weights().items()}
    written = write_artifact(Store.open(str(tmp_path)), "zeros", description=artifact.manifest.description,
                             probe=artifact.probe(),
                             files={WEIGHTS: weights_file(weights)})
    said = refused(capsys, written.uri, "--storage", str(storage))
    assert re.search(r"does not do on its test rows what its manifest says \(accuracy 0\.\d{4}, not 0\.\d{4}; ", said)
    assert not (tmp_path / "zeros-onnx").exists()


def test_other_data_than_the_model_was_tested_on_is_refused_and_moved_data_found(
    storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dataclasses import replace

    artifact, digits = optimised(storage, "mlp"), Store.open(str(tmp_path))
    about = artifact.manifest.description

    def like(name: str, **changes: Any) -> Artifact:
        config = {**about.config, "run": {**about.config["run"], "storage": str(tmp_path)},
                  "data": {**about.config["data"], **changes}}
        return write_artifact(digits, name, description=replace(about, config=config), probe=artifact.probe(),
                              files={WEIGHTS: artifact.read(WEIGHTS)})

    where = ["--storage", str(tmp_path), "--variants", "onnx"]
    gone = like("gone", uri=str(tmp_path / "gone.parquet"))
    said = refused(capsys, gone.uri, *where)
    assert "the data that the model was tested on cannot be had again" in said
    assert "pass --data.uri with where it is now" in said
    assert f"is not what {tmp_path}/split was trained on" in refused(capsys, like("split", split_seed=7).uri, *where)
    assert main(["optimise", gone.uri, *where, "--data.uri", "digits", *QUICK]) == 0
    assert main(["optimise", like("again", uri="nowhere").uri, "--variants", "onnx", "--storage", str(storage),
                 *QUICK]) == 0, \
        "prepared by the run, so its source need not be there"


# ── the registry ──
def test_variants_of_a_registered_model_become_versions_that_know_their_parent(
    storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = optimised(storage, "mlp").copy_to(tmp_path / "mlp")
    registry = open_registry(None, Store.open(str(tmp_path)), "digits")
    registry.start(run_name="test", params={}, tags={})
    assert registry.register(artifact) == "1"
    registry.finish("done")
    registry.promote("digits", "1")
    where = ["--storage", str(tmp_path), "--register", *QUICK]
    assert main(["optimise", "models:/digits@champion", "--variants", "onnx-int8", *where, "--max-loss", "5"]) == 0
    assert re.search(r"^onnx-int8 +[\d,]+ .* 2 +/", capsys.readouterr().out, re.MULTILINE)
    version = registry.resolve("models:/digits/2")
    made = open_artifact(version.uri, version.digest)
    assert made.uri == f"{tmp_path}/mlp-onnx-int8"
    variant = made.manifest.description.variant
    assert variant is not None and variant.parent_version == "digits/1"
    assert (version.tags["variant"], version.tags["parent"]) == ("onnx-int8", "digits/1")
    assert registry.resolve("models:/digits@champion").version == "1"

    from serving.commands.deploy_config import find

    assert find("digits=models:/digits/2", None, Store.open(str(tmp_path))).digest == made.digest
    assert PROBE in made.manifest.paths
