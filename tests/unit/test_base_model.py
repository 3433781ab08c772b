"""A Hugging Face folder is taken as data: it runs no code, leads nowhere else,
and a model of it has all of its weights."""

import builtins
import hashlib
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load as parse_tensors
from safetensors.torch import load_file, save_file

from cluster.core.errors import ArtifactError, ConfigError
from cluster.core.storage import Store
from jobs.common.artifact.artifact import Artifact, Probe, open_artifact, weights_file, write_artifact
from jobs.common.artifact.manifest import Description
from jobs.common.artifact.tensor_spec import TensorSpec
from jobs.common.checkpoint.store import Checkpoints
from jobs.common.predictor.find import load_predictor, module_of
from jobs.common.training.job import TrainingResult
from jobs.transformer import data
from jobs.transformer.build import build_model
from jobs.transformer.export import hugging_face_files
from jobs.transformer.model import Classifier, load
from jobs.transformer.text import tokenizer
from jobs.transformer.train import train
from tests import image_loops, runs
from tests.s3 import BUCKET
from tests.unit.adapters import save_base
from tests.unit.starts import first_model
from tests.unit.token_rows import config_of, token_rows

LABELS = ("a", "b")
SIZE = {"model": {"layers": 1, "width": 16, "heads": 2}}
TEXTS = ["one two three", "four five", "six"]


def words() -> Any:
    return tokenizer.train(config_of(task="classify", data={"uri": "languages", "tokenizer": "characters"}), TEXTS)


def details(made: Any) -> dict[str, Any]:
    return {"max_length": 16, "vocab_size": len(made), "pad_id": made.pad_token_id, "start_id": made.cls_token_id,
            "end_id": None}


def network(made: Any, labels: tuple[str, ...] = LABELS) -> Any:
    return build_model(config_of(task="classify", data={"uri": "languages"}, **SIZE), details(made), labels)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    made = words()
    model = network(made).eval()
    model.config.architectures = [type(model).__name__]
    files = {"config.json": model.config.to_json_string(use_diff=False).encode(), **tokenizer.files_of(made),
             "model.safetensors": weights_file({name: p.detach().numpy() for name, p in model.named_parameters()})}
    answers = Classifier(model, made, LABELS, 16).predict(TEXTS)
    about = Description(
        job="transformer", task="text-classification", inputs=(TensorSpec(name="text", datatype="BYTES", shape=(-1,)),),
        outputs=(TensorSpec(name="probabilities", datatype="FP32", shape=(-1, 2)),), labels=LABELS,
        preprocessing={name: details(made)[name] for name in ("max_length", "pad_id", "start_id", "end_id")},
        metrics={}, config={"task": "classify"}, data={}, about="Tells a from b.")
    return write_artifact(Store.open(str(tmp_path_factory.mktemp("model"))), "artifact", description=about,
                          probe=Probe(inputs={"text": np.array(TEXTS, object)}, outputs={"probabilities": answers}),
                          files={f"model/{name}": content for name, content in files.items()})


@pytest.fixture
def artifact(original: Artifact, tmp_path: Path) -> Path:
    return original.copy_to(tmp_path / "artifact").store.local_path()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A pretrained classifier's folder."""
    made = words()
    model = network(made)
    model.save_pretrained(tmp_path / "base")
    made.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def forge(folder: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    """Changes a file, and the manifest with it."""
    path = folder / name
    path.write_bytes(change(path.read_bytes()))
    manifest = json.loads((folder / "manifest.json").read_text())
    for entry in manifest["files"]:
        content = (folder / entry["path"]).read_bytes()
        entry |= {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def with_fields(**fields: Any) -> Callable[[bytes], bytes]:
    return lambda text: json.dumps(json.loads(text) | fields).encode()


def fine_tuning(base: Path) -> Any:
    return config_of(task="classify", data={"uri": "languages"},
                     model={"name": str(base), "layers": None, "heads": None, "width": None})


# ── an artifact ──
def test_an_artifact_loads_from_what_was_verified_whatever_its_folder_becomes(artifact: Path,
                                                                              original: Artifact) -> None:
    opened = open_artifact(artifact)
    model = load(opened)
    assert isinstance(model, Classifier)
    np.testing.assert_array_equal(model.predict(TEXTS), original.probe().outputs["probabilities"])
    load_predictor(opened)
    for name, change in (("model/config.json", with_fields(vocab_size=5)),
                         ("model/model.safetensors", lambda d: d[:-1] + b"!"),
                         ("model/tokenizer.json", with_fields(version="2"))):
        before = (artifact / name).read_bytes()
        forge(artifact, name, change)  # another manifest, too: as an attacker would
        with pytest.raises(ArtifactError, match=f"{name}.*differs"):
            load(opened)
        (artifact / name).write_bytes(before)


def test_an_index_is_not_followed(artifact: Path, tmp_path: Path) -> None:
    """What it names is in the artifact, so it verifies; the weights come from the declared files all the same."""
    model = load(artifact)
    assert isinstance(model, Classifier)
    manifest = json.loads((artifact / "manifest.json").read_text())
    index = {"weight_map": dict.fromkeys(dict(model.model.named_parameters()), "model.safetensors")}
    (artifact / "model/model.safetensors.index.json").write_text(json.dumps(index))
    manifest["files"].append({"path": "model/model.safetensors.index.json", "size": 0, "sha256": ""})
    (artifact / "manifest.json").write_text(json.dumps(manifest))
    forge(artifact, "model/config.json", lambda text: text)
    assert isinstance(load(artifact), Classifier)


def drop(data: bytes) -> bytes:
    from safetensors.torch import load as parse
    from safetensors.torch import save

    return save({name: tensor for name, tensor in parse(data).items() if "classifier" not in name})


def test_a_model_that_lacks_weights_is_refused(artifact: Path) -> None:
    forge(artifact, "model/model.safetensors", drop)
    with pytest.raises(ArtifactError, match=r"its weights lack \d of the model's tensors \(classifier"):
        load(artifact)


@pytest.mark.parametrize(("change", "says"), [
    (with_fields(vocab_size=10**9), r"weight .* has the shape .*, and by config.json \(1000000000, 16\)"),
    (with_fields(hidden_size="x"), "model/ cannot be loaded"),
    (with_fields(model_type="nothing"), "model/ cannot be loaded"),
    (with_fields(model_type=5), "model/ cannot be loaded"),
    (lambda text: b"[]", "model/ cannot be loaded"),
])
def test_a_config_that_does_not_fit_is_refused_before_memory_is_taken_for_it(artifact: Path, change: Any,
                                                                             says: str) -> None:
    forge(artifact, "model/config.json", change)
    with pytest.raises(ArtifactError, match=says) as caught:
        load(artifact)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change",
                         [{"preprocessing": {}}, {"preprocessing": {"max_length": "x", "start_id": 0, "end_id": None}}])
def test_a_manifest_without_what_the_loader_needs_is_refused(artifact: Path, change: dict[str, Any]) -> None:
    forge(artifact, "manifest.json", with_fields(**change))
    with pytest.raises(ArtifactError, match="max_length"):
        load(artifact)


@pytest.mark.parametrize("job", ["keys", "__main__", "", "../x", "mlp.x", "a b", "jobs.mlp", "common", "json", ".mlp"])
def test_a_job_that_nobody_has_named_is_refused_and_nothing_is_imported(artifact: Path, job: str) -> None:
    forge(artifact, "manifest.json", with_fields(job=job))
    before = set(sys.modules)
    with pytest.raises(ArtifactError,
                       match=r"none of Trainyard's own \(cnn, mlp, pytorch, "
                             r"tabular, transformer\).* if you trust that package"):
        module_of(open_artifact(artifact), ["mine", "mine.more"])
    assert set(sys.modules) == before


# ── a base model ──
EVIL = "import pathlib\npathlib.Path({!r}).write_text('owned')\n"


@pytest.mark.parametrize(("file", "fields", "says"), [
    ("config.json", {"auto_map": {"AutoConfig": "evil.C", "AutoModelForSequenceClassification": "evil.M"}},
     "has auto_map"),
    ("config.json", {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C"}}, "has auto_map"),
    ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}}, "has auto_map"),
    ("processor_config.json", {"auto_map": {"AutoProcessor": "evil.P"}}, "has auto_map"),
    ("config.json", {"_attn_implementation": "somebody/kernel"}, "would fetch compiled code"),
    ("model.safetensors.index.json", {"weight_map": {"a": "../../outside.safetensors"}},
     "not a .safetensors file beside it"),
])
def test_a_folder_that_would_run_code_is_refused_at_once_and_nobody_is_asked(
        file: str, fields: dict[str, Any], says: str, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    (base / "evil.py").write_text(EVIL.format(str(base / "owned")))
    before = json.loads((base / file).read_text()) if (base / file).exists() else {}
    (base / file).write_text(json.dumps(before | fields))
    config = fine_tuning(base)
    for loading in (lambda: data.check(config), lambda: tokenizer.pretrained(str(base)),
                    lambda: build_model(config, details(words()), LABELS)):
        with pytest.raises(ConfigError, match=rf"--model.name .*{file} .*{says}"):
            loading()
    assert not (base / "owned").exists()


def test_code_is_not_trusted_even_where_nothing_looks_first(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`trust_remote_code` is False in each call, so transformers neither asks nor runs it."""
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    for module in ("jobs.transformer.build.check_base", "jobs.transformer.text.tokenizer.check_base"):
        monkeypatch.setattr(module, lambda _: None)
    (base / "evil.py").write_text(EVIL.format(str(base / "owned")))
    for file, fields in (("config.json", {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C"}}),
                         ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}})):
        (base / file).write_text(json.dumps(json.loads((base / file).read_text()) | fields))
    with pytest.raises(ConfigError):
        build_model(fine_tuning(base), details(words()), LABELS)
    try:
        tokenizer.pretrained(str(base))
    except ConfigError as error:
        assert "trust_remote_code" in str(error)
    assert not (base / "owned").exists()


def test_a_new_head_is_said_and_a_missing_body_is_refused(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = load_file(base / "model.safetensors")
    body = {name: tensor for name, tensor in weights.items() if not name.startswith(("classifier", "head"))}
    save_file(body, base / "model.safetensors", {"format": "pt"})
    with caplog.at_level(logging.WARNING, "jobs.transformer.model"):
        made = build_model(fine_tuning(base), details(words()), LABELS)
    assert "begin with random values, and are learnt" in caplog.text and "classifier.weight" in caplog.text
    assert torch.equal(dict(made.named_parameters())[next(iter(body))], next(iter(body.values())))
    body.pop(next(name for name in body if "layers.0" in name))
    save_file(body, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=r"its weights lack 1 of the model's tensors \(model\.layers\.0"):
        build_model(fine_tuning(base), details(words()), LABELS)


def test_an_adapter_that_names_another_model_is_refused(base: Path, tmp_path: Path) -> None:
    (base / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "elsewhere")}))
    with pytest.raises(ConfigError, match="merge the adapter"):
        data.check(fine_tuning(base))


# ── an artifact to begin with ──
def beginning(origin: Artifact, task: str = "generate", **groups: Any) -> Any:
    model = {"layers": None, "heads": None, "width": None, "init_from": origin.uri} | groups.pop("model", {})
    data = {"uri": "languages" if task == "classify" else "stdlib"} | groups.pop("data", {})
    return config_of(task=task, model=model, data=data, **groups)


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A small language model's artifact."""
    folder = save_base(tmp_path_factory.mktemp("writer") / "model")
    files = {f"model/{path.name}": path.read_bytes() for path in folder.iterdir()}
    return first_model(folder.parent, "transformer", files, ())


def test_layers_that_are_frozen_stay_to_the_last_bit_and_a_run_in_pieces_is_the_same(writer: Artifact, tmp_path: Path
                                                                                    ) -> None:
    """Neither their weights nor moments are in a checkpoint; the artifact has them whole."""
    first = writer.tensors("model/model.safetensors")
    dataset = token_rows(tmp_path)
    dataset = replace(dataset, details={**dataset.details, "vocab_size": 257})
    config = beginning(writer, model={"freeze": ["model.embed_tokens", "model.layers.0"]}, optim={"lr": 1e-2},
                       train={"max_steps": 3})
    assert image_loops.train(train, tmp_path / "at once", dataset, config)[0] == "finished"
    image_loops.in_pieces(train, tmp_path / "in pieces", dataset, config)
    assert image_loops.same(tmp_path / "in pieces", tmp_path / "at once")
    assert not any("embed_tokens" in name or "layers.0" in name for name in image_loops.tensors(tmp_path / "at once"))
    files = hugging_face_files(trained(tmp_path / "at once", dataset, config))
    pieces: Any = files["model.safetensors"]
    kept = parse_tensors(b"".join(pieces()))
    assert {name for name in first if kept[name].numpy().tobytes() == first[name].tobytes()} == {
        name for name in first if name.startswith(("model.embed_tokens", "model.layers.0"))}


def trained(folder: Path, dataset: Any, config: Any) -> TrainingResult:
    store = Store.open(str(folder))
    checkpoints = Checkpoints(store.child("checkpoints"))
    best, generation = checkpoints.best(), checkpoints.current_generation()
    assert best is not None and generation is not None
    return TrainingResult(job="transformer", config=config, dataset=dataset, store=store, generation=generation,
                          best=best)


def test_a_head_for_another_task_begins_anew_by_name(writer: Artifact) -> None:
    about = details(words()) | {"vocab_size": 257}
    config = beginning(writer, "classify", model={"init_except": ["score"]})
    weights, again = (dict(build_model(config, about, LABELS).named_parameters()) for _ in range(2))
    first = writer.tensors("model/model.safetensors")
    assert all(weights[name].detach().numpy().tobytes() == values.tobytes() for name, values in first.items())
    assert torch.equal(weights["score.weight"], again["score.weight"]), "a function of the seed"
    with pytest.raises(ConfigError, match=r"score\.weight is missing there and \(2, 32\) here: .*-except score$"):
        build_model(beginning(writer, "classify"), about, LABELS)


@pytest.mark.parametrize(("options", "said"), [
    ({"model": {"name": "llama-1b"}}, r"--model\.name llama-1b: --model\.init-from brings its own architecture"),
    ({"model": {"pretrained": False}}, r"--model\.pretrained False: --model\.init-from brings its own"),
    ({"model": {"layers": 3}}, r"--model\.layers 3: is for a preset .*; .*/first brings its own"),
    ({"data": {"tokenizer": "bpe"}}, r"--data\.tokenizer bpe: --model\.init-from brings its own tokenizer"),
    ({"model": {"lora_rank": 2, "freeze": ["model"]}}, r"--model\.freeze .*: updates of low rank leave the whole")])
def test_what_an_artifact_to_begin_with_brings_is_not_asked_for_beside_it(options: Any, said: str, writer: Artifact
                                                                         ) -> None:
    with pytest.raises(ConfigError, match=said):
        beginning(writer, **options)


def test_an_artifact_in_an_object_store_is_copied_to_the_machine_once(
        writer: Artifact, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    address = f"endpoint_override={s3.removeprefix('http://')}&scheme=http&region=us-east-1"
    place = writer.copy_to(f"s3://{BUCKET}/first?{address}")
    there = build_model(beginning(place), details(words()) | {"vocab_size": 257}, ())
    here = build_model(beginning(writer), details(words()) | {"vocab_size": 257}, ())
    assert all(torch.equal(a, b) for a, b in zip(there.parameters(), here.parameters(), strict=True))
    (copy,) = tmp_path.glob("trainyard-models-*/*/")
    assert copy.name == writer.digest


USE = """
import sys
from jobs.common.artifact.artifact import open_artifact
from jobs.transformer.weights.copies import copy_of
print(copy_of(open_artifact(sys.argv[1])).uri, flush=True)
sys.stdin.read()
"""


def test_a_copy_is_there_until_the_last_process_that_uses_it_ends(writer: Artifact, tmp_path: Path) -> None:
    def user() -> "tuple[subprocess.Popen[str], Path]":
        process = subprocess.Popen([sys.executable, "-c", USE, writer.uri], cwd=runs.ROOT, text=True,
                                   env={**os.environ, "TMPDIR": str(tmp_path)}, stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE)
        assert process.stdout is not None
        return process, Path(process.stdout.readline().strip())

    (first, kept), (second, same) = user(), user()
    assert kept == same and open_artifact(kept).digest == writer.digest
    first.communicate()
    assert open_artifact(kept).digest == writer.digest
    (kept.parent / f"{writer.digest}-draft").mkdir()
    second.kill()
    second.communicate()
    assert kept.exists(), "a process that is killed removes nothing"
    third, _ = user()
    assert [each.name for each in kept.parent.glob("*/")] == [writer.digest]
    third.communicate()
    assert [each.name for each in kept.parent.iterdir()] == [f"{writer.digest}.lock"]
