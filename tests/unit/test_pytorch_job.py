"""A PyTorch module of a user's own: it trains as the house's own, resumes bit for bit, and answers without its code."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cluster.core.errors import ArtifactError, ConfigError
from cluster.core.storage import Store
from jobs.common.artifact.artifact import open_artifact
from jobs.common.checkpoint.store import Checkpoints
from jobs.common.config import from_dict
from jobs.common.data.counter_rng import micro_batch_seed
from jobs.common.data.dataset import Dataset
from jobs.common.predictor.find import explains, load_predictor
from jobs.common.runs.run import main
from jobs.common.vision.build_info import BuildInfo
from jobs.pytorch.config import PytorchConfig
from jobs.pytorch.draws import Draws
from jobs.pytorch.job import JOB
from jobs.pytorch.model import load, new_model
from jobs.pytorch.running_statistics import RunningStatistics
from jobs.pytorch.train import train as loop
from jobs.pytorch.trainable import share_of_a_row, share_of_rows
from tests import image_loops
from tests.image_loops import StopAfterEachStep, tensors
from tests.unit import own_modules
from tests.unit.starts import first_model, of_tensors


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return image_loops.odd(tmp_path_factory.mktemp("odd"))


def config_of(build: str = "normalised", loss: str | None = None, **groups: Any) -> PytorchConfig:
    model = {"build": f"tests.unit.own_modules:{build}", "loss": loss and f"tests.unit.own_modules:{loss}",
             **groups.pop("start", {})}
    values = {"train": {"epochs": 2, "global_batch_size": 48}, "run": {"workers": "3"},
              "optim": {"warmup": 2}} | groups
    return from_dict(PytorchConfig, {"model": model, **values})


def train(folder: Path, dataset: Dataset, config: PytorchConfig, **how: Any) -> Any:
    return image_loops.train(loop, folder, dataset, config, num_shards=3, **how)


# ── training ──
def test_a_run_in_pieces_ends_with_the_same_bits_as_one_at_once(odd: Dataset, tmp_path: Path) -> None:
    """Weights, moments, and what batch normalisation keeps; dropout draws the same."""
    config = config_of()
    assert train(tmp_path / "at once", odd, config)[0] == "finished"
    assert image_loops.in_pieces(loop, tmp_path / "in pieces", odd, config, num_shards=3) > 6
    assert image_loops.same(tmp_path / "in pieces", tmp_path / "at once")
    kept = tensors(tmp_path / "at once")
    assert not np.array_equal(kept["model.module.0.running_mean"], np.zeros(3, np.float32))
    assert int(kept["model.module.0.num_batches_tracked"]) == 8, "a pass of each shard, in each of 8 steps"


@pytest.mark.parametrize(("build", "loss"),
                         [("normalised", None), ("small", "focal"), ("frozen", None), ("Tied", None)])
def test_it_learns_whatever_it_is_made_of(build: str, loss: str | None, odd: Dataset, tmp_path: Path) -> None:
    config = config_of(build, loss, train={"epochs": 10, "global_batch_size": 48},
                       augment={"shift": 0, "rotate": 0, "scale": 0},
                       optim={"lr": 0.02, "warmup": 2})
    outcome, evaluations = train(tmp_path, odd, config)
    assert outcome == "finished"
    assert evaluations[-1]["validation_accuracy"] > 0.8, "chance is 0.25"
    kept = tensors(tmp_path)
    if build == "frozen":
        torch.manual_seed(config.run.seed)
        first = own_modules.frozen(BuildInfo.of(odd, config.model)).state_dict()["1.weight"].numpy()
        assert np.array_equal(kept["model.module.1.weight"], first)
    if build == "Tied":
        assert np.array_equal(kept["model.module.first.weight"], kept["model.module.second.weight"])


def test_what_a_module_keeps_is_the_mean_over_shards_whoever_owns_them() -> None:
    module = nn.BatchNorm1d(2, momentum=1.0)
    shards = [torch.tensor([[0.0, 1.0], [2.0, 3.0]]), torch.tensor([[4.0, 4.0], [6.0, 4.0]])]
    statistics = RunningStatistics(module, num_shards=2)
    for taken in (True, False):
        before = module.running_mean.clone()
        statistics.begin_step()
        for shard in shards:
            statistics.begin_shard()
            module(shard + (0 if taken else 100))
            statistics.end_shard()
        statistics.end_step(taken=taken)
        assert module.running_mean.tolist() == ([3.0, 3.0]
                                                if taken else before.tolist()), "a step that is left out leaves nothing"
    assert int(module.num_batches_tracked) == 1


# ── a start with another model's weights ──
def test_layers_that_are_frozen_stay_to_the_last_bit_and_a_run_in_pieces_is_the_same(odd: Dataset, tmp_path: Path
                                                                                    ) -> None:
    """Also what batch normalisation keeps in them: it uses it as it is. They have no moments."""
    seeded = config_of(run={"seed": 7})
    made = new_model(seeded, BuildInfo.of(odd, seeded.model))
    first = {name: each.numpy() for name, each in made.state_dict().items()}
    first["module.0.running_mean"] += 100
    origin = first_model(tmp_path, "pytorch", of_tensors(first), odd.class_names)
    config = config_of(start={"init_from": origin.uri, "init_digest": origin.digest, "init_except": ["6"],
                              "freeze": ["0", "1", "3.weight"]})
    assert train(tmp_path / "at once", odd, config)[0] == "finished"
    image_loops.in_pieces(loop, tmp_path / "in pieces", odd, config, num_shards=3)
    assert image_loops.same(tmp_path / "in pieces", tmp_path / "at once")
    kept = tensors(tmp_path / "at once")
    same = {name for name in first if kept[f"model.{name}"].tobytes() == first[name].tobytes()}
    assert same == {name for name in first if name.startswith(("module.0.", "module.1.", "module.3.weight"))}
    assert {name.split(".")[1] for name in kept if name.startswith("optimizer.")} == {"0", "1", "2"}, "3.bias and 6"
    new_head = new_model(config, BuildInfo.of(odd, config.model)).state_dict()["module.6.weight"].numpy()
    assert np.abs(kept["model.module.6.weight"] - new_head).max() < np.abs(
        kept["model.module.6.weight"] - first["module.6.weight"]).max(), "it began anew"


def test_a_model_to_begin_with_that_does_not_fit_is_refused_by_the_names_of_one_s_own_module(
        odd: Dataset, tmp_path: Path) -> None:
    wide = {"module.1.weight": np.zeros((4, 91)), "module.1.bias": np.zeros(4)}
    origin = first_model(tmp_path, "pytorch", of_tensors(wide), odd.class_names)
    with pytest.raises(ConfigError, match=r"1\.weight is \(4, 91\) there and \(4, 90\) here: .*-except 1$"):
        train(tmp_path / "run", odd, config_of("small", start={"init_from": origin.uri}))
    with pytest.raises(ConfigError, match=r"--model\.freeze 1: nothing is left to train"):
        train(tmp_path / "run", odd, config_of("small", start={"freeze": ["1"]}))


# ── what does not fit is said before a step is made ──
@pytest.mark.parametrize(("build", "loss", "said"), [
    ("raises", None, r"IndexError: tuple index out of range, in .*own_modules\.py:\d+"),
    ("no_module", None, r"gave \(5, 6, 3\): it must return a torch\.nn\.Module"),
    ("no_parameters", None, r"has no parameter that is trained"),
    ("one_too_few", None, r"for images \(1, 3, 5, 6\) its module gives \(1, 3\): it must give logits \(1, 4\)"),
    ("two_inputs", None, r"TypeError: .*missing 1 required positional argument: 'age'"),
    ("flattened_norm", None,
     r"Expected more than 1 value per channel.*trained on 1 rows at a time: --train\.global-batch-size"),
    ("small", "of_each_row", r"--model\.loss .*of_each_row gives \(1,\): it must give one number"),
    ("small", "detached", r"does not depend on the module's parameters")])
def test_what_cannot_be_trained_is_refused_by_name(build: str, loss: str | None, said: str, odd: Dataset,
                                                   tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        train(tmp_path, odd, config_of(build, loss, train={"epochs": 1, "global_batch_size": 3}))
    assert Checkpoints(Store.open(str(tmp_path)).child("checkpoints")).newest_intact(pytest.fail) is None


@pytest.mark.parametrize("name", ["no_such_package.nets:build", "tests.unit.own_modules:not_there"])
def test_a_function_that_is_not_there_is_refused_before_anything(name: str, tmp_path: Path,
                                                                 capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--run.engine", "local", "--run.storage", str(tmp_path), "--run.name", "x", "--run.tracking-uri", "none"]
    assert main(JOB, [*flags, "--model.build", name]) == 2
    assert f"--model.build {name}: " in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_another_module_than_the_checkpoints_is_refused(odd: Dataset, tmp_path: Path,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    assert train(tmp_path, odd, config_of("small"), kind=StopAfterEachStep)[0] == "stopped"
    monkeypatch.setattr(own_modules, "small", own_modules.normalised)
    with pytest.raises(ConfigError,
                       match="builds another module than this run's checkpoints are of: put the function back"):
        train(tmp_path, odd, config_of("small"))


# ── the artifact ──
def run(folder: Path, build: str, odd: Dataset) -> Path:
    """The artifact of a short run."""
    flags = ["--run.engine", "local", "--run.storage", str(folder), "--run.name", "run", "--run.tracking-uri", "none",
             "--data.uri", str(Path(odd.store.location()).parents[1] / "odd.parquet"), "--train.epochs", "2",
             "--eval.bootstrap-samples", "100", "--eval.robustness-rows", "0"]
    assert main(JOB, [*flags, "--model.build", f"tests.unit.own_modules:{build}"]) == 0
    return folder / "run/artifact"


@pytest.fixture
def without_their_code() -> Iterator[None]:
    """As elsewhere: the package of the function is not there."""
    kept = {name: sys.modules.pop(name) for name in ("tests.unit.own_modules",)}
    sys.modules.update(dict.fromkeys(kept))  # whoever imports it gets an ImportError
    yield
    sys.modules.update(kept)


def test_its_artifact_answers_without_its_code_and_is_loaded_with_it(odd: Dataset, tmp_path: Path,
                                                                     request: pytest.FixtureRequest) -> None:
    where = run(tmp_path, "Tied", odd)
    artifact = open_artifact(where)
    probe = artifact.probe()
    np.testing.assert_allclose(load(where).predict(probe.inputs["image"]), probe.outputs["probabilities"], atol=1e-6)
    assert "Robust" not in (where.parent / "report.html").read_text()
    request.getfixturevalue("without_their_code")
    predictor = load_predictor(artifact)
    answered = predictor.encode(predictor.predict(predictor.decode(probe.inputs)))
    np.testing.assert_allclose(answered["probabilities"], probe.outputs["probabilities"], atol=1e-5)
    assert not explains(artifact)
    with pytest.raises(ConfigError, match=r"--model\.build tests\.unit\.own_modules:Tied: "):
        load(where)


def test_what_cannot_be_a_graph_is_said_and_has_no_endpoint(odd: Dataset, tmp_path: Path,
                                                            capsys: pytest.CaptureFixture[str]) -> None:
    where = run(tmp_path, "not_for_onnx", odd)
    assert "cannot be written as ONNX" in capsys.readouterr().out
    assert len(load(where).labels) == 4
    with pytest.raises(ArtifactError, match=r"has no model\.onnx"):
        load_predictor(open_artifact(where))


# ── what a pass draws, and what it counts for ──
def test_a_pass_draws_what_the_seed_of_its_rows_says() -> None:
    draws = Draws(7, torch.device("cpu"))
    for where in [(0, 0, 0, 0), (1, 5, 2, 1), (3, 100_000, 63, 0), (1, 5, 2, 1)]:
        draws.begin_pass(*where)
        drawn = torch.rand(3)
        torch.manual_seed(micro_batch_seed(7, *where))
        assert torch.equal(drawn, torch.rand(3))


def test_a_pass_takes_no_stack_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("traceback.format_stack", lambda *_: pytest.fail("as torch.manual_seed does: 0.2 ms"))
    Draws(7, torch.device("cpu")).begin_pass(0, 0, 0, 0)


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_a_part_counts_as_its_rows_do_in_the_global_batch(rows: int) -> None:
    weights, device = torch.randn(5, requires_grad=True), torch.device("cpu")
    (weights.square().mean() * rows).backward(share_of_a_row(60, device))
    of_rows, weights.grad = weights.grad, None
    weights.square().mean().backward(share_of_rows(rows, 60, device))
    assert torch.equal(of_rows, weights.grad), "to the last bit"
