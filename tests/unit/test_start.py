"""A model that begins with another one's weights: how that one is named, found, and kept account of."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.core.errors import ConfigError, StoppedError
from jobs.common.artifact.artifact import Artifact, open_artifact
from jobs.common.artifact.manifest import Base
from jobs.common.config import from_dict, parse
from jobs.common.runs.origin import at_origin
from jobs.common.runs.run import Run, main
from jobs.common.runs.run_folder import open_storage
from jobs.common.start import check_labels, frozen, named, taken
from jobs.common.start_config import StartConfig
from jobs.common.training.optim_config import OptimConfig
from jobs.mlp.config import MlpConfig
from jobs.mlp.job import JOB
from tests import image_loops
from tests.unit.starts import first_model, of_tensors
from tests.unit.test_run import flags, result

FAILING = replace(JOB, train="tests.unit.loops:fail")
OWN = {"first.weight": (4, 3), "first.bias": (4,), "blocks.0.weight": (4, 4), "blocks.1.weight": (4, 4),
       "last.weight": (2, 4)}


# ── names and shapes ──
@pytest.mark.parametrize(("wanted", "found"), [
    (["first"], {"first.weight", "first.bias"}), (["first.bias"], {"first.bias"}),
    (["blocks.1", "last"], {"blocks.1.weight", "last.weight"}), (["block*"], {"blocks.0.weight", "blocks.1.weight"}),
    (["*.bias"], {"first.bias"})])
def test_layers_are_named_by_their_names_or_the_beginnings_of_these(wanted: list[str], found: set[str]) -> None:
    assert named("model.freeze", wanted, OWN) == found


def test_a_name_that_no_layer_has_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match=r"--model\.freeze firs: the model has no such layer: it has first, "
                                          r"blocks\.0, blocks\.1, last"):
        frozen(StartConfig(freeze=("firs",)), OWN)
    with pytest.raises(ConfigError, match=r"--model\.freeze first blocks l\*: nothing is left to train"):
        frozen(StartConfig(freeze=("first", "blocks", "l*")), OWN)


def test_what_does_not_fit_is_refused_with_all_names_and_shapes_or_begins_anew_by_name() -> None:
    there = {**OWN, "last.weight": (9, 4), "extra.bias": (1,)}
    del there["first.bias"]
    start = StartConfig(init_from="somewhere")
    with pytest.raises(ConfigError) as refused:
        taken(start, OWN, there)
    for said in ("last.weight is (9, 4) there and (2, 4) here", "extra.bias is (1,) there and missing here",
                 "first.bias is missing there and (4,) here", "--model.init-except extra first last"):
        assert said in str(refused.value)
    anew = replace(start, init_except=("extra", "first.bias", "last"))
    assert taken(anew, OWN, there) == ["first.weight", "blocks.0.weight", "blocks.1.weight"]
    with pytest.raises(ConfigError, match=r"--model\.init-except head: the model has no such layer"):
        taken(replace(start, init_except=("head",)), OWN, there)
    with pytest.raises(ConfigError, match="nothing is left to begin with"):
        taken(replace(start, init_except=("*",)), OWN, there)


def test_options_of_another_model_need_one() -> None:
    with pytest.raises(ConfigError, match=r"--model\.init-except \('last',\): .* pass --model\.init-from, too"):
        StartConfig(init_except=("last",))


# ── which model ──
@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return first_model(tmp_path_factory.mktemp("first"), "mlp", of_tensors({"w": np.zeros(2)}), "ab")


def found(where: object, storage: Path, **model: Any) -> Any:
    config = from_dict(MlpConfig, {"model": {"init_from": str(where), **model}, "run": {"storage": str(storage)}})
    return at_origin("mlp", config, open_storage(config.run.storage))


def test_a_model_that_this_job_cannot_begin_with_is_refused_with_the_remedy(mlp: Artifact, tmp_path: Path) -> None:
    files = of_tensors({"w": np.zeros(2)})
    config, origins = found(mlp.uri, tmp_path)
    assert (config.model.init_from, config.model.init_digest) == (mlp.uri, mlp.digest)
    assert [(each.name, each.digest) for each in origins] == [(mlp.uri, mlp.digest)]
    base = Base(name="/base", digest="0" * 64, size_bytes=1)
    for number, (about, said) in enumerate([
        ({"job": "cnn"}, r"is a model of the job cnn, and this is mlp: name a model of mlp, or train it with"),
        ({"base": base}, r"is an adapter of /base, and no model by itself: train it again with --export\.merge"),
    ]):
        made = first_model(tmp_path / str(number), **{"job": "mlp", "files": files, "labels": "ab", **about})
        with pytest.raises(ConfigError, match=rf"--model\.init-from {made.uri}: {said}"):
            found(made.uri, tmp_path)
    with pytest.raises(ConfigError, match=rf"has the digest {mlp.digest}, and --model\.init-digest is 1234: name the"):
        found(mlp.uri, tmp_path, init_digest="1234")
    with pytest.raises(ConfigError, match=r"there is no run and no artifact at .*/none, nor at .*: name a finished"):
        found("none", tmp_path)
    with pytest.raises(ConfigError, match=r"its answers mean 2 classes \(a, b\), and those of this data 2 classes"):
        check_labels(config.model, mlp, ("b", "a"))


def test_an_artifact_that_does_not_verify_is_refused(mlp: Artifact, tmp_path: Path,
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    copy = mlp.copy_to(tmp_path / "copy")
    copy.store.write_bytes("model.safetensors", copy.read("model.safetensors")[:-1] + b"!")
    assert main(JOB, flags(tmp_path, "run", "--model.init-from", copy.uri)) == 2
    assert "model.safetensors differs from its sha256" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# ── a run ──
def test_a_run_begins_with_another_s_weights_and_says_so_wherever_it_is_looked_at(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(JOB, flags(tmp_path, "one")) == 0
    assert main(JOB, flags(tmp_path, "two", "--model.init-from", "one", "--model.freeze", "layers.0")) == 0
    assert main(JOB, flags(tmp_path, "three", "--model.init-from", str(tmp_path / "two"),
                           "--model.init-except", "layers.0")) == 0
    one, two, three = (open_artifact(tmp_path / name / "artifact") for name in ("one", "two", "three"))
    before, after = one.weights(), two.weights()
    assert {name for name in before if before[name].tobytes() == after[name].tobytes()} == {
        "layers.0.weight", "layers.0.bias"}
    lineage = [{"name": str(tmp_path / "two"), "uri": two.uri, "digest": two.digest},
               {"name": "one", "uri": one.uri, "digest": one.digest}]
    assert result(tmp_path / "three")["started_from"] == lineage
    assert [vars(each) for each in three.manifest.description.started_from] == lineage
    assert "started_from" not in json.loads((tmp_path / "one/artifact/manifest.json").read_text())
    said = f"{tmp_path}/two ({two.digest[:12]}), which began with one ({one.digest[:12]})"
    assert f"began with: {said}" in three.read("model_card.md").decode().replace("\\", "")
    assert f"{said}<" in (tmp_path / "three/report.html").read_text()

    capsys.readouterr()
    again = flags(tmp_path, "two", "--model.freeze", "layers.0")
    assert main(JOB, again) == 2
    assert f"model.init_digest: {one.digest} -> None" in capsys.readouterr().err
    assert main(JOB, [*again, "--model.init-from", str(one.uri)]) == 0, "the same weights by another name"
    assert main(JOB, [*again, "--model.init-from", "three"]) == 2
    assert f"model.init_digest: {one.digest} -> {three.digest}" in capsys.readouterr().err
    assert main(JOB, flags(tmp_path, "one", "--run.resume", "never", "--model.init-from", "one")) == 2
    assert "--model.init-from one: is this very run" in capsys.readouterr().err


def test_a_run_that_is_not_finished_is_none_to_begin_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(FAILING, flags(tmp_path, "StorageFullError")) == 3
    assert main(JOB, flags(tmp_path, "two", "--model.init-from", "StorageFullError")) == 2
    assert "that run is not finished (stopped): go on with it first" in capsys.readouterr().err


# ── extending a run ──
STEADY = ["--optim.schedule", "constant", "--optim.warmup", "0", "--eval.robustness-rows", "0"]


@pytest.mark.parametrize(("first", "then"), [
    (["--train.epochs", "1", "--train.max-steps", "None"], ["--train.epochs", "2", "--train.max-steps", "None"]),
    (["--train.max-steps", "3"], ["--train.epochs", "2", "--train.max-steps", "25"])], ids=["epochs", "within one"])
def test_a_run_that_is_extended_ends_with_the_bits_of_one_that_was_as_long_at_once(
        first: list[str], then: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(JOB, flags(tmp_path, "short", *STEADY, *first)) == 0
    extended = flags(tmp_path, "longer", *STEADY, *then, "--run.extend-from", "short")
    assert main(JOB, extended) == 0
    assert main(JOB, flags(tmp_path, "at-once", *STEADY, *then)) == 0
    assert image_loops.same(tmp_path / "longer", tmp_path / "at-once")
    short, longer = result(tmp_path / "short"), result(tmp_path / "longer")
    assert longer["steps"] == result(tmp_path / "at-once")["steps"] > short["steps"] and longer["lost_steps"] == 0
    assert [(each["name"], each["digest"]) for each in longer["started_from"]] == [("short", short["artifact_digest"])]
    rows = json.loads((tmp_path / "longer/progress.json").read_text())["history"]
    assert {row["step"] for row in rows if row["kind"] == "evaluation"} == {short["steps"], longer["steps"]} | (
        {19} if "25" in then else set())
    capsys.readouterr()
    assert main(JOB, extended) == 0 and "run 'longer' (attempt 1) is done" in capsys.readouterr().out
    for wrong, said in ((["--optim.lr", "1"], "was made with another config:\n  optim.lr: 0.002 -> 1.0\npass the"),
                        (first, f"has made {short['steps']} steps, and this run would have {short['steps']}: pass"),
                        (["--run.extend-from", "none"], f"there is no run at {tmp_path}/none: name a finished one")):
        assert main(JOB, [*flags(tmp_path, "other", *STEADY, *then, "--run.extend-from", "short"), *wrong]) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "other/run.json").exists()
    _by_its_own_name(tmp_path, flags(tmp_path, "short", *STEADY, *first), flags(tmp_path, "short", *STEADY, *then))
    assert "run 'short' was made with another config:\n  train.epochs: 2 -> 1\n" in capsys.readouterr().err
    with pytest.raises(StoppedError):
        Run(JOB, parse(JOB.config_type, flags(tmp_path, "begun", *STEADY, *first), ""), until_epoch=1).carry_out()
    assert main(JOB, flags(tmp_path, "begun", *STEADY, *then)) == 0
    assert image_loops.same(tmp_path / "begun", tmp_path / "at-once") and not (tmp_path / "begun/attempts").exists()
    assert any(f"extended: {then[0][2:]}: " in event for event in result(tmp_path / "begun")["events"])


def _by_its_own_name(tmp_path: Path, first: list[str], then: list[str]) -> None:
    """A finished run that is started again with more steps, and with fewer."""
    short, before = tmp_path / "short", result(tmp_path / "short")
    kept = {path: path.read_bytes() for path in short.rglob("*") if path.is_file() and path.name != "result.json"}
    assert main(JOB, then) == 0
    second = result(short / "attempts/2")
    assert image_loops.same(short / "attempts/2", tmp_path / "at-once")
    assert (second["attempt"], second["steps"]) == (2, result(tmp_path / "at-once")["steps"])
    assert [(each["name"], each["digest"]) for each in second["started_from"]] == [("short", before["artifact_digest"])]
    assert f"short ({before['artifact_digest'][:12]})<" in (short / "attempts/2/report.html").read_text()
    assert {path: path.read_bytes() for path in kept} == kept, "what the first attempt has made stays"
    assert (result(short), result(short / "attempts/1")) == (second, before)
    assert main(JOB, then) == 0 and main(JOB, first) == 2


def test_a_schedule_that_has_come_to_its_end_goes_on_by_the_rule_that_is_asked_for(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    optim = OptimConfig(lr=1.0, warmup=2, extend="cosine", extended_at=10)
    rates = [optim.learning_rate(step, 20) for step in range(20)]
    assert rates[:10] == [OptimConfig(lr=1.0, warmup=2).learning_rate(step, 10) for step in range(10)] == rates[10:]
    assert {replace(optim, extend="constant").learning_rate(step, 20) for step in range(10, 20)} == {1.0}
    assert main(JOB, flags(tmp_path, "short")) == 0
    longer = flags(tmp_path, "longer", "--train.max-steps", "6", "--run.extend-from", "short")
    assert main(JOB, longer) == 2
    assert "its schedule, cosine, has come to its end: pass --optim.extend constant" in capsys.readouterr().err
    stopped = [*longer, "--optim.extend", "cosine", "--run.name", "StorageFullError"]
    assert main(FAILING, stopped) == 3
    record = json.loads((tmp_path / "StorageFullError/run.json").read_text())
    assert (record["config"]["optim"]["extended_at"], record["started_from"][0]["name"]) == (3, "short")
    assert main(FAILING, flags(tmp_path, "StoppedError")) == 3
    for asked, said in (
            (flags(tmp_path, "short", "--train.max-steps", "6"), "'short': its schedule, cosine, has come to its end"),
            (flags(tmp_path, "StoppedError", "--train.max-steps", "6"), "schedule, cosine, comes to its end at step 3"),
            ([*stopped, "--train.max-steps", "9"], "its rate rises and falls in the steps from 3 on, which are not")):
        assert main(FAILING, asked) == 2
        assert said in capsys.readouterr().err
    shutil.rmtree(tmp_path / "short/checkpoints/manifests")
    assert main(JOB, [*longer, "--optim.extend", "constant"]) == 2
    assert "its last checkpoint, of step 3, is not there any more: take its weights" in capsys.readouterr().err


def test_a_run_that_stopped_early_is_not_extended_to_stop_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]
                                                                 ) -> None:
    early = [*STEADY, "--train.max-steps", "None", "--train.early-stopping-epochs", "1", "--optim.lr", "1e-9"]
    assert main(JOB, flags(tmp_path, "short", *early, "--train.epochs", "5")) == 0
    assert result(tmp_path / "short")["steps"] < 5 * 19
    longer = flags(tmp_path, "longer", *early, "--train.epochs", "6", "--run.extend-from", "short")
    assert main(JOB, longer) == 2
    assert "had stopped early, and would again at once: pass a larger" in capsys.readouterr().err
