"""Updates of low rank as an artifact of their own: what it holds, what it is put onto, and what is refused."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from peft import PeftModel, set_peft_model_state_dict
from transformers import AutoModelForCausalLM

from cluster.core.errors import ArtifactError, ConfigError
from cluster.core.storage import Store
from jobs.common.artifact.artifact import Artifact, open_artifact, weights_file, write_artifact
from jobs.common.config import from_dict, to_dict
from jobs.common.config_changes import differences
from jobs.common.predicting.export import export
from jobs.transformer import data
from jobs.transformer.build import build_model
from jobs.transformer.config import TransformerConfig
from jobs.transformer.costs import sizes_of
from jobs.transformer.model import LanguageModel, load
from jobs.transformer.pages import parameters_of
from jobs.transformer.weights.four_bits import PackedLinear, pack
from serving.__main__ import main
from serving.text import vllm
from serving.variants.variants import recipe_of
from tests.unit.adapters import TOKENS, answers, save_base, train_adapter
from tests.unit.test_base_model import forge, with_fields
from tests.unit.token_rows import config_of

NEW = ("lora_layers", "lora_dropout", "rslora", "dora", "lora_base")
"""Fields of `model` that runs of earlier versions did not have."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return train_adapter(tmp_path_factory.mktemp("adapter"), base, rslora=True, dora=True)


def test_an_adapter_holds_its_updates_alone_and_names_its_base_by_digest(adapter: Artifact, base: Path) -> None:
    opened = open_artifact(adapter.store)
    assert {"model/adapter_config.json", "model/adapter_model.safetensors"} < set(opened.manifest.paths)
    assert "model/model.safetensors" not in opened.manifest.paths
    of = opened.manifest.description.base
    assert of is not None and of.name == str(base) and of.size_bytes == (base / "model.safetensors").stat().st_size
    by_hand = subprocess.run("LC_ALL=C sha256sum *.safetensors | sha256sum", shell=True, cwd=base,
                             capture_output=True, text=True, check=True)
    assert by_hand.stdout.split()[0] == of.digest
    assert of.digest in opened.read("model_card.md").decode()
    assert parameters_of(opened) > 30_000


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's own loading
def test_it_answers_as_the_merged_model_does_and_as_peft_s_own_loading(
        adapter: Artifact, base: Path, tmp_path: Path) -> None:
    whole = train_adapter(tmp_path, base, merge=True, rslora=True, dora=True)
    assert "model/model.safetensors" in whole.manifest.paths and whole.manifest.description.base is None
    wanted = answers(load(whole))
    a_token = 1e-5 * TOKENS.shape[1]
    np.testing.assert_allclose(answers(load(adapter)), wanted, rtol=0, atol=a_token)
    np.testing.assert_allclose(answers(load(adapter, merged=False)), wanted, rtol=0, atol=a_token)
    export(adapter, "hf", str(tmp_path / "exported"))
    by_hand = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), f"{adapter.uri}/model")
    found = load(adapter)
    assert isinstance(found, LanguageModel)
    np.testing.assert_allclose(
        answers(LanguageModel(by_hand, found.tokenizer, found.start_id, found.end_id)), wanted, rtol=0, atol=a_token)
    exported = LanguageModel(AutoModelForCausalLM.from_pretrained(tmp_path / "exported"), found.tokenizer,
                             found.start_id, found.end_id)
    np.testing.assert_allclose(answers(exported), wanted, rtol=0, atol=a_token)
    plain = LanguageModel(AutoModelForCausalLM.from_pretrained(base), found.tokenizer, found.start_id, found.end_id)
    assert np.abs(answers(plain) - wanted).max() > 1e-2, "it was trained"


def test_adapters_that_are_not_merged_share_the_base_s_memory(adapter: Artifact) -> None:
    one, other = load(adapter, merged=False), load(adapter, merged=False)
    places = [{p.data_ptr() for name, p in each.model.named_parameters() if "lora_" not in name}
              for each in (one, other)]
    assert places[0] == places[1]


def test_an_adapter_of_a_base_in_4_bits_is_put_onto_the_same_rounded_weights(base: Path, tmp_path: Path) -> None:
    made = train_adapter(tmp_path / "adapter", base, lora_base="nf4", dora=True)
    whole = train_adapter(tmp_path / "whole", base, lora_base="nf4", dora=True, merge=True)
    full = train_adapter(tmp_path / "full", base, dora=True)
    held = ['"held": "nf4"' in each.store.read_text("manifest.json") for each in (made, whole, full)]
    assert held == [True, False, False]
    found = load(made)
    assert isinstance(found, LanguageModel)
    packed = as_trained(made, found)
    for opened in (found, load(made, merged=False), load(whole)):
        np.testing.assert_allclose(answers(opened), packed, rtol=0, atol=1e-5 * TOKENS.shape[1])
    assert np.abs(answers(load(full)) - packed).max() > 1e-3
    one, other, third = load(made, merged=False), load(made, merged=False), load(full, merged=False)
    places = [next(p.data_ptr() for name, p in each.model.named_parameters() if "q_proj.base_layer" in name)
              for each in (one, other, third)]
    assert places[0] == places[1] != places[2]


def as_trained(made: Artifact, found: LanguageModel) -> np.ndarray:
    """The answers of the model that was trained: packed, with the updates of the artifact."""
    about = {"max_length": 32, "vocab_size": len(found.tokenizer), "pad_id": 0, "start_id": 0, "end_id": None}
    model = build_model(from_dict(TransformerConfig, dict(made.manifest.description.config)), about, ())
    whole = sum(sizes_of(model))
    pack(model)
    layers = [module for module in model.modules() if isinstance(module, PackedLinear)]
    assert layers and sum(sizes_of(model)) == whole
    held = sum(each.packed.nbytes + each.scales.nbytes for each in layers)
    assert held == 0.5625 * sum(each.packed_weights for each in layers)
    set_peft_model_state_dict(model, {
        name: torch.from_numpy(values) for name, values in made.tensors("model/adapter_model.safetensors").items()})
    return answers(LanguageModel(model.eval(), found.tokenizer, found.start_id, found.end_id))


def test_without_its_package_a_base_in_4_bits_is_refused(base: Path, monkeypatch: pytest.MonkeyPatch,
                                                         tmp_path: Path) -> None:
    made = train_adapter(tmp_path, base, lora_base="nf4")
    config = config_of(model={"lora_rank": 4, "lora_base": "nf4"})
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match=r"needs the package bitsandbytes: pip install 'trainyard\[four-bits\]'"):
        data.check(config)
    with pytest.raises(ArtifactError, match=r"of a base in 4 bits, which needs the package bitsandbytes: pip install"):
        load(made)
    with pytest.raises(ConfigError, match=r"pass --scale.strategy ddp"):
        config_of(model={"lora_rank": 4, "lora_base": "nf4"}, scale={"strategy": "zero2"})
    with pytest.raises(ConfigError, match="is for updates of low rank"):
        config_of(model={"lora_base": "nf4"})


def test_a_classifier_s_head_is_learnt_whole_and_kept_with_the_updates(base: Path, tmp_path: Path) -> None:
    made = train_adapter(tmp_path / "adapter", base, classes=3)
    whole = train_adapter(tmp_path / "whole", base, classes=3, merge=True)
    assert any("score" in name for name in made.tensors("model/adapter_model.safetensors"))
    for merged in (True, False):
        np.testing.assert_allclose(answers(load(made, merged=merged)), answers(load(whole)), rtol=0, atol=1e-5)


def test_another_base_and_what_needs_a_whole_model_are_refused(adapter: Artifact, base: Path, tmp_path: Path) -> None:
    other = save_base(tmp_path / "other", seed=1)
    copied = save_base(tmp_path / "copied")
    assert answers(load(adapter, str(copied))).shape == (2,), "the same weights elsewhere"
    with pytest.raises(ArtifactError, match=rf"is an adapter of {base}, whose weights have the digest \w{{12}}; those "
                                            rf"of {other} have \w{{12}}: pass the base that it was trained on"):
        load(adapter, str(other))
    with pytest.raises(ArtifactError, match=r"and its base .*/nowhere cannot be read"):
        load(adapter, str(tmp_path / "nowhere"))
    with pytest.raises(ArtifactError, match=r"is an adapter, and no model by itself: train it with --export.merge"):
        recipe_of(adapter)
    with pytest.raises(ArtifactError, match=r"is an adapter itself: pass the model that it is of"):
        load(adapter, adapter.uri)


def test_a_model_that_began_with_random_weights_is_always_exported_whole() -> None:
    with pytest.raises(ConfigError, match=r"--export.merge True: is for updates of low rank: pass --model.lora-rank"):
        config_of(export={"merge": True})
    assert not config_of(model={"lora_rank": 4}).exports_adapter
    elsewhere = {"name": "some/where", "layers": None, "heads": None, "width": None, "lora_rank": 4}
    assert config_of(model=elsewhere).exports_adapter
    assert not config_of(model=elsewhere | {"pretrained": False}).exports_adapter
    assert not config_of(model=elsewhere, export={"merge": True}).exports_adapter


def test_the_config_of_a_run_from_before_adapters_goes_on() -> None:
    now = to_dict(config_of(model={"lora_rank": 4}))
    old = {**now, "model": {name: now["model"][name] for name in now["model"] if name not in NEW}}
    del old["export"]
    assert differences(old, now) == []
    assert differences(old, to_dict(config_of(model={"lora_rank": 4, "dora": True}))) == ["model.dora: None -> True"]


def test_an_adapter_of_another_kind_is_refused(adapter: Artifact, tmp_path: Path) -> None:
    folder = adapter.copy_to(tmp_path / "odd").store.local_path()
    forge(folder, "model/adapter_config.json", with_fields(layer_replication=[[0, 2]]))
    with pytest.raises(ArtifactError, match=r"its adapter_config.json has layer_replication, which is no part of LoRA"):
        load(folder)
    forge(folder, "model/adapter_config.json", with_fields(layer_replication=None, r=2))
    with pytest.raises(ArtifactError, match=r"has the shape \(4, 32\), and by its config \(2, 32\)"):
        load(folder)
    assert json.loads((folder / "model/adapter_config.json").read_text())["peft_type"] == "LORA"


# ── endpoints ──
@pytest.fixture(scope="module")
def whole(base: Path, adapter: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The base as an artifact."""
    about = replace(adapter.manifest.description, base=None, about="The base.")
    files = {f"model/{path.name}": path.read_bytes() for path in base.iterdir()}
    return write_artifact(Store.open(str(tmp_path_factory.mktemp("whole"))), "artifact", description=about,
                          probe=adapter.probe(), files=files)


def test_an_endpoint_finds_the_base_of_each_adapter_by_its_digest(
        adapter: Artifact, whole: Artifact, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["config", "--no-auth", "--model", f"base={whole.uri}"]
    assert main([*command, "--adapter", f"a={adapter.uri}", "--adapter", f"b={adapter.uri}"]) == 0
    shared, endpoint = yaml.safe_load(capsys.readouterr().out)["applications"]
    assert (shared["name"], shared["args"]["max_loaded"]) == ("shared", 4)
    models = endpoint["deployments"][0]["user_config"]["models"]
    assert {name: versions[0]["settings"]["base"] for name, versions in models.items()} == dict.fromkeys(
        ("base", "a", "b"), whole.uri)


@pytest.mark.parametrize(("adapters", "flags", "message"), [
    (["whole"], [], r"--adapter a: .* is a whole model: pass it with --model"),
    (["adapter"], ["--placement", "replicas"], r"--placement replicas: adapters share replicas with their base"),
    (["adapter", "adapter"], [], r"two models have the same name"),
    (["adapter"], ["--model", "base=other"],
     r"--adapter a: it is of .*, whose weights have the digest \w{12}, and none of the models has that "
     r"\(base \w{12}\): pass its base with --model"),
    (["adapter"], ["--engine", "vllm", "--gpus-per-replica", "1"],
     r"the adapter .*/model is on this machine, and Ray fetches adapters from s3://"),
    ([], ["--engine", "vllm", "--gpus-per-replica", "1", "--model", "base=adapter"],
     r"base is an adapter: pass its base with --model, and it with --adapter")])
def test_adapters_that_cannot_be_served_are_refused(
        adapter: Artifact, whole: Artifact, adapters: list[str], flags: list[str], message: str,
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uris = {"adapter": adapter.uri, "whole": whole.uri, "other": str(tmp_path / "other")}
    if "base=other" in flags:
        files = {path: whole.read(path) for path in whole.manifest.paths if path.startswith("model/")}
        weights = {name: values + 1 for name, values in whole.tensors("model/model.safetensors").items()}
        write_artifact(Store.open(str(tmp_path)), "other", description=whole.manifest.description, probe=whole.probe(),
                       files=files | {"model/model.safetensors": weights_file(weights)})
    models = [] if "--model" in flags else ["--model", f"base={whole.uri}"]
    flags = [f"base={uris[flag.removeprefix('base=')]}" if flag.startswith("base=") else flag for flag in flags]
    named = [word for name in adapters for word in ("--adapter", f"a={uris[name]}")]
    assert main(["config", "--no-auth", *models, *named, *flags]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_what_vllm_is_told_of_adapters() -> None:
    fields, engine = vllm.lora({"s3://bucket/runs/one/artifact/model": {"r": 4},
                                "s3://bucket/runs/two/artifact/model": {"r": 12}})
    assert fields == {"lora_config": {"dynamic_lora_loading_path": "s3://bucket/runs",
                                      "max_num_adapters_per_replica": 2}}
    assert engine == {"enable_lora": True, "max_loras": 2, "max_lora_rank": 16}
    for about, message in (({"r": 4, "use_dora": True}, r"has DoRA, which vLLM does not compute"),
                           ({"r": 600}, r"has rank 600, and vLLM takes 512 at most")):
        with pytest.raises(ConfigError, match=message):
            vllm.lora({"s3://bucket/one": about})


def test_the_model_before_its_updates_is_the_same_without_any_of_their_options() -> None:
    config = config_of(model={"lora_rank": 4, "rslora": True, "dora": True, "lora_dropout": 0.1,
                              "lora_layers": ("q_proj",)})
    assert config.model.whole == config_of().model
