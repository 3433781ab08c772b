"""`trainyard export` and `registry download`: what other programs read answers as the model does, or is not there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.core.storage import Store
from jobs.common.artifact.artifact import WEIGHTS, Probe, open_artifact, write_artifact
from jobs.common.predicting.export import main
from jobs.common.registry.__main__ import main as registry
from tests import kept

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy is deprecated"),  # MLflow's, of SQLAlchemy
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),  # Keras's
]


def of_graph(path: Path, inputs: dict[str, np.ndarray]) -> np.ndarray:
    import onnxruntime

    (wanted,) = (session := onnxruntime.InferenceSession(path)).get_inputs()
    kinds = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}
    return session.run(None, {wanted.name: inputs["image"].astype(kinds[wanted.type])})[0]


def of_keras(path: Path, inputs: dict[str, np.ndarray]) -> np.ndarray:
    from jobs.cnn.framework import keras

    return np.asarray(keras.saving.load_model(path)(inputs["image"]))


def of_program(path: Path, inputs: dict[str, np.ndarray]) -> np.ndarray:
    import torch

    images = np.repeat(inputs["image"], 3, axis=0)  # any number of them
    return torch.export.load(path).module()(torch.from_numpy(images)).detach().numpy()[::3]


def of_transformers(path: Path, inputs: dict[str, np.ndarray]) -> np.ndarray:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    texts = AutoTokenizer.from_pretrained(path)([*inputs["text"]], padding=True, return_tensors="pt")
    model = AutoModelForSequenceClassification.from_pretrained(path)
    found = model(input_ids=texts["input_ids"], attention_mask=texts["attention_mask"])
    return found.logits.softmax(1).detach().numpy()


@pytest.mark.parametrize(("name", "kind", "file", "read"), [
    ("mlp", "onnx", "model.onnx", of_graph), ("cnn", "onnx", "model.onnx", of_graph),
    ("cnn", "keras", "model.keras", of_keras), ("mlp", "torch", "model.pt2", of_program),
    ("transformer", "hf", "model", of_transformers)])
def test_another_program_reads_it_and_gives_the_model_s_answers(
        name: str, kind: str, file: str, read: Callable[[Path, Any], np.ndarray], tmp_path: Path) -> None:
    pytest.importorskip({"keras": "jobs.cnn.framework", "hf": "transformers"}.get(kind, "onnxruntime"))
    assert main([str(kept.artifact(name)), "--format", kind, "--out", str(tmp_path / file)]) == 0
    assert [each.name for each in tmp_path.iterdir()] == [file]
    probe = open_artifact(kept.artifact(name)).probe()
    assert read(tmp_path / file, probe.inputs) == pytest.approx(probe.outputs["probabilities"], rel=1e-3, abs=1e-5)


def test_a_run_is_named_as_well_and_what_is_there_is_replaced_only_if_that_is_said(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    storage, out = kept.storage(tmp_path / "storage"), tmp_path / "out"
    digest = open_artifact(kept.artifact("transformer")).digest
    (storage / "transformer/result.json").write_text(
        json.dumps({"status": "done", "exit_code": 0, "artifact_digest": digest}))
    command = ["transformer", "--format", "hf", "--storage", str(storage), "--out", str(out)]
    assert main(command) == 0
    assert (out / "config.json").exists() and not (out / "manifest.json").exists()
    (out / "old").touch()
    assert main(command) == 2
    assert "is there already: pass --overwrite" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    assert not (out / "old").exists()
    assert main([*command[:-1], str(storage), "--overwrite"]) == 2
    assert "is something else, which is left as it is" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "kind", "out", "said"), [
    ("mlp", "keras", "x.keras", "a model of the job mlp (image-classification) cannot be given as keras: pass --format "
                                "onnx or torch"),
    ("lm", "onnx", "x.onnx", "(text-generation) cannot be given as onnx: pass --format hf"),
    ("mlp", "onnx", "x", "name a file that ends in .onnx, as onnx wants it"),
    ("mlp", "onnx", "s3://bucket/x.onnx", "is not on this machine"),
    ("none", "onnx", "x.onnx", "there is no run and no artifact at")])
def test_what_cannot_be_is_refused_by_name(name: str, kind: str, out: str, said: str, tmp_path: Path,
                                           capsys: pytest.CaptureFixture[str]) -> None:
    place = out if "://" in out else str(tmp_path / out)
    assert main([str(kept.artifact(name)), "--format", kind, "--out", place]) == 2
    assert said in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == []


def test_what_does_not_answer_as_the_model_is_not_left_behind(tmp_path: Path,
                                                             capsys: pytest.CaptureFixture[str]) -> None:
    good = open_artifact(kept.artifact("mlp"))
    probe = good.probe()
    wrong = Probe(inputs=probe.inputs, outputs={"probabilities": np.roll(probe.outputs["probabilities"], 1, axis=1)})
    made = write_artifact(Store.open(str(tmp_path)), "wrong", description=good.manifest.description, probe=wrong,
                          files={WEIGHTS: good.read(WEIGHTS)})
    for name in ("onnx", "torch"):
        out = tmp_path / "out" / f"model{'.onnx' if name == 'onnx' else '.pt2'}"
        assert main([made.uri, "--format", name, "--out", str(out)]) == 2
        assert f"was not exported: as {name}: its answers for its own probe rows differ" in capsys.readouterr().err
        assert [*out.parent.iterdir()] == []


def test_a_version_is_downloaded_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage, out = kept.storage(tmp_path / "storage"), tmp_path / "out"
    place = ["--storage", str(storage), "--out", str(out)]
    registry(["download", "mlp@candidate", *place])
    assert capsys.readouterr().out.endswith(f": {out}\n")
    copied = open_artifact(out)
    assert copied.digest == open_artifact(storage / "mlp/artifact").digest
    registry(["download", "mlp/1", *place, "--overwrite"])
    assert refused(capsys, "mlp/1", *place) == f"--out {out} is there already: pass --overwrite, or another --out"
    assert "has no models:/mlp@champion" in refused(capsys, "mlp", *place, "--overwrite")
    (storage / "mlp/artifact/model.safetensors").write_bytes(b"damaged")
    assert "model.safetensors differs" in refused(capsys, "mlp/1", *place, "--overwrite")
    assert open_artifact(out).digest == copied.digest
    assert sorted(each.name for each in tmp_path.iterdir()) == ["out", "storage"]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        registry(["download", *arguments])
    assert ended.value.code == 2
    return capsys.readouterr().err.strip().removeprefix("error: ")
