"""The MLP: its network and presets, one step, its schedule, what ends training, and the way back from an artifact."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from cluster.core.errors import ArtifactError
from cluster.core.storage import Store
from jobs.common.checkpoint.store import Checkpoints
from jobs.common.config import from_dict, parse
from jobs.common.data.dataset import Dataset
from jobs.common.data.reader import Reader
from jobs.common.training.optim_config import OptimConfig
from jobs.common.training.session import Session
from jobs.common.training.train_state import NonFiniteError, StepOutcome, TrainState
from jobs.common.vision.config import AugmentConfig, ImageDataConfig
from jobs.mlp import train as loop
from jobs.mlp.config import MlpConfig
from jobs.mlp.model import Mlp, load, new_model
from jobs.pytorch.images.augment import augment
from jobs.pytorch.optimizer import build_optimizer, step_if_finite
from tests import image_loops, runs
from tests.image_loops import StopAfterEachStep, tensors

PLAIN = {"augment": {"shift": 0, "rotate": 0, "scale": 0}, "model": {"hidden": [16], "dropout": 0},
         "train": {"epochs": 2, "global_batch_size": 60}}


def config_of(**groups: dict[str, Any]) -> MlpConfig:
    """PLAIN with changes."""
    return from_dict(MlpConfig, {name: {**PLAIN.get(name, {}), **groups.get(name, {})} for name in {*PLAIN, *groups}})


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return image_loops.digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return image_loops.odd(tmp_path_factory.mktemp("odd"))


def train(
    folder: Path, dataset: Dataset, config: MlpConfig, kind: type[Session] = Session
) -> tuple[str, list[dict[str, Any]]]:
    return image_loops.train(loop.train, folder, dataset, config, kind)


def network(config: MlpConfig, dataset: Dataset) -> Mlp:
    return new_model(config, dataset)


# ── the network ──
def test_textbook_is_the_textbook_network(digits: Dataset) -> None:
    config = parse(MlpConfig, ["--config", str(runs.ROOT / "jobs/mlp/textbook.yaml")], "mlp")
    model = network(config, digits)
    assert [type(layer) for layer in model.layers] == [nn.Linear, nn.ReLU, nn.Linear]
    assert [tuple(p.shape) for p in model.parameters()] == [(128, 784), (128,), (10, 128), (10,)]
    optimizer = build_optimizer(model.parameters(), config.optim)
    assert isinstance(optimizer, torch.optim.SGD)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"], group["nesterov"]) == (0.01, 0, 0, False)
    assert config.train.epochs == 10
    assert [config.optim.learning_rate(step, 180) for step in (0, 1, 90, 179)] == [0.01] * 4
    assert not config.augment.active and config.optim.clip_norm is None

    rows = Reader.open(digits, "train", config.data).rows(0, 64)
    loss = loop.backward(model, rows, config, 0, torch.device("cpu"))
    pixels = torch.from_numpy(rows["image"]).flatten(1) / 255
    assert loss == pytest.approx(F.cross_entropy(model.layers(pixels), torch.from_numpy(rows["label"])).item(),
                                 rel=1e-5)


@pytest.mark.parametrize("hidden", [[], [7], [16, 8, 4]])
@pytest.mark.parametrize("normalise", ["standard", "unit"])
def test_any_depth_size_and_number_of_classes_trains(hidden: list[int], normalise: str, odd: Dataset,
                                                     tmp_path: Path) -> None:
    config = config_of(model={"hidden": hidden, "normalise": normalise}, train={"epochs": 12, "global_batch_size": 32},
                       optim={"lr": 0.02, "warmup": 0})
    sizes = [p.shape for p in network(config, odd).parameters() if p.ndim == 2]
    assert [tuple(size) for size in sizes] == [*zip([*hidden, 4], [90, *hidden], strict=True)]
    outcome, evaluations = train(tmp_path, odd, config)
    assert outcome == "finished"
    assert evaluations[-1]["validation_accuracy"] > 0.8, "chance is 0.25"


def test_inputs_are_normalised_inside_the_model(digits: Dataset) -> None:
    model = network(config_of(model={"hidden": []}), digits)
    seen: list[torch.Tensor] = []
    model.layers.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    reader = Reader.open(digits, "train", ImageDataConfig())
    model(torch.from_numpy(reader.rows(0, digits.splits["train"].num_rows)["image"]))
    reader.close()
    assert seen[0].mean().abs() < 1e-4
    assert seen[0].std() == pytest.approx(1, abs=1e-3)


# ── the schedule ──
def test_learning_rate_warms_up_and_falls_along_a_cosine() -> None:
    optim = OptimConfig(lr=1.0, warmup=4, schedule="cosine")
    rates = [optim.learning_rate(step, 12) for step in range(12)]
    golden = [0.25, 0.5, 0.75, 1.0, 1.0, 0.961940, 0.853553, 0.691342, 0.5, 0.308658, 0.146447, 0.038060]
    assert rates == pytest.approx(golden, abs=1e-6)
    flat = OptimConfig(lr=0.3, warmup=2, schedule="constant")
    assert [flat.learning_rate(step, 5) for step in range(5)] == pytest.approx([0.15, 0.3, 0.3, 0.3, 0.3])
    assert OptimConfig(lr=1.0, warmup=50).learning_rate(9, 10) == pytest.approx(0.2), "shorter than its warm-up"


# ── augmentation ──
def some_images(count: int = 8) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 9, 7, 2), np.uint8))


def test_augmentation_is_a_function_of_seed_epoch_and_row_only() -> None:
    images, ids, config = some_images(), np.arange(100, 108), AugmentConfig()
    together = augment(images, ids, config, seed=3, epoch=5)
    order = np.array([6, 1, 4])
    assert torch.equal(augment(images[order], ids[order], config, seed=3, epoch=5), together[order])
    torch.manual_seed(99)
    assert torch.equal(augment(images[2:3], ids[2:3], config, seed=3, epoch=5), together[2:3])
    for changed in (augment(images, ids, config, seed=4, epoch=5), augment(images, ids, config, seed=3, epoch=6),
                    augment(images, ids + 8, config, seed=3, epoch=5)):
        assert all(not torch.equal(a, b) for a, b in zip(changed, together, strict=True))


def test_augmentation_by_nothing_is_the_image_and_a_shift_moves_it_no_further_than_asked() -> None:
    images, ids = some_images(), np.arange(8)
    none = AugmentConfig(shift=0, rotate=0, scale=0)
    torch.testing.assert_close(augment(images, ids, none, 0, 0), images.float(), atol=1e-3, rtol=0)
    dot = torch.zeros(200, 21, 21, 1)
    dot[:, 10, 10] = 1
    moved = augment(dot, np.arange(200), AugmentConfig(shift=3, rotate=0, scale=0), 0, 0)[..., 0]
    places = torch.arange(21.0)
    down, across = (moved.sum(2) @ places - 10), (moved.sum(1) @ places - 10)
    assert torch.stack([down, across]).abs().max() <= 3 + 1e-3
    assert min(down.std(), across.std()) > 1, "a uniform draw of ±3 pixels has 1.7"


# ── one step ──
def test_a_batch_in_pieces_gives_the_same_step(digits: Dataset, tmp_path: Path) -> None:
    whole = config_of(train={"max_steps": 3, "epochs": 1}, augment={"shift": 1.5},
                      optim={"name": "sgd", "lr": 0.1, "warmup": 0})
    pieces = replace(whole, train=replace(whole.train, max_rows_per_pass=7))
    for name, config in (("whole", whole), ("pieces", pieces)):
        train(tmp_path / name, digits, config)
    mine, theirs = tensors(tmp_path / "pieces"), tensors(tmp_path / "whole")
    start = {f"model.{name}": p.detach().numpy() for name, p in network(whole, digits).named_parameters()}
    for name, before in start.items():
        moved = np.linalg.norm(theirs[name] - before)
        assert moved > 1e-3
        assert np.linalg.norm(mine[name] - theirs[name]) < 1e-6 * np.linalg.norm(theirs[name])


def stepped(clip_norm: float | None, gradient: float) -> tuple[float, StepOutcome]:
    """Length of the step that SGD with rate 1 takes from a gradient of this length."""
    config = config_of(optim={"name": "sgd", "lr": 1.0, "weight_decay": 0, "clip_norm": clip_norm})
    model = Mlp((2, 2, 1), 3, [4], 0.0, (0.0,), (1.0,))
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, gradient / before.numel() ** 0.5)
    outcome = step_if_finite(build_optimizer(parameters, config.optim), 1.0, config.optim.clip_norm)
    return (nn.utils.parameters_to_vector(parameters).detach() - before).norm().item(), outcome


@pytest.mark.parametrize(("clip_norm", "gradient", "length"), [(0.5, 4.0, 0.5), (0.5, 0.1, 0.1), (None, 4.0, 4.0)])
def test_clipping_shortens_long_gradients_only(clip_norm: float | None, gradient: float, length: float) -> None:
    assert stepped(clip_norm, gradient)[0] == pytest.approx(length, rel=1e-4)


def test_a_gradient_that_is_not_finite_is_not_stepped_along() -> None:
    assert stepped(1.0, float("inf")) == (0.0, "skipped")


def test_a_loss_that_is_not_finite_is_not_stepped_along() -> None:
    model = Mlp((2, 2, 1), 3, [], 0.0, (0.0,), (1.0,))
    optimizer = build_optimizer(model.parameters(), config_of().optim)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    assert step_if_finite(optimizer, float("nan"), 1.0) == "skipped"
    assert torch.equal(nn.utils.parameters_to_vector(model.parameters()), before)


def test_too_many_skips_in_a_row_are_an_error_that_names_the_steps() -> None:
    state = TrainState()
    for outcome in ("skipped", "taken", "skipped"):
        state.record(outcome, max_skipped_steps=2)
    with pytest.raises(NonFiniteError) as caught:
        state.record("skipped", max_skipped_steps=2)
    assert caught.value.steps == (2, 3)
    assert (state.skipped_steps, state.optimizer_steps) == (3, 1)


# ── what ends training, and what goes on ──
def test_training_stops_when_the_validation_metric_no_longer_improves(digits: Dataset, tmp_path: Path) -> None:
    config = config_of(train={"epochs": 50, "early_stopping_epochs": 3}, optim={"lr": 1e-12, "warmup": 0})
    outcome, evaluations = train(tmp_path, digits, config)
    assert outcome == "finished"
    assert [row["epoch"] for row in evaluations] == [1, 2, 3,
                                                     4], "the first is the best, then three without improvement"


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_the_best_checkpoint_is_that_of_the_metric(metric: str, digits: Dataset, tmp_path: Path) -> None:
    config = config_of(eval={"metric": metric}, train={"epochs": 6}, optim={"lr": 0.03, "warmup": 0})
    _, evaluations = train(tmp_path, digits, config)
    values = [row[f"validation_{metric}"] for row in evaluations]
    best = Checkpoints(Store.open(str(tmp_path)).child("checkpoints")).best()
    assert best is not None
    chosen = values.index(max(values) if metric == "accuracy" else min(values))
    assert best.step == evaluations[chosen]["step"]


@pytest.mark.parametrize("limit", [{}, {"max_steps": 4}])
def test_stopping_after_every_step_changes_nothing(limit: dict[str, int], odd: Dataset, tmp_path: Path) -> None:
    """Also at an epoch's last step, and at the very last one: what then is left to do is done when it continues."""
    config = config_of(train={"epochs": 2, "global_batch_size": 60, **limit}, model={"dropout": 0.3},
                       augment={"rotate": 10})
    _, expected = train(tmp_path / "at once", odd, config)
    outcomes, evaluations = [], []
    while not outcomes or outcomes[-1] != "finished":
        outcome, reported = train(tmp_path / "in pieces", odd, config, StopAfterEachStep)
        outcomes.append(outcome)
        evaluations += [row for row in reported if row not in evaluations]  # those of its checkpoint are told once more
        assert len(outcomes) <= 7
    assert len(outcomes) == limit.get("max_steps", 6) + 1
    assert evaluations == expected
    assert image_loops.same(tmp_path / "in pieces", tmp_path / "at once")


def test_steps_that_are_left_out_count_but_are_not_taken(odd: Dataset, tmp_path: Path) -> None:
    class LeavingOut(Session):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**{**arguments, "assignment": replace(arguments["assignment"], excluded_steps=(1, 3))})

    config = config_of(train={"epochs": 3, "max_steps": 4, "global_batch_size": 60})
    _, evaluations = train(tmp_path, odd, config, LeavingOut)
    assert [row["step"] for row in evaluations] == [3, 4]
    assert int(tensors(tmp_path)["optimizer.0.step"]) == 2


# ── hardware ──
def test_bf16_trains_and_keeps_weights_in_float32(digits: Dataset, tmp_path: Path) -> None:
    evaluations = {}
    for precision in ("fp32", "bf16"):
        config = config_of(hardware={"precision": precision}, train={"epochs": 4}, optim={"warmup": 0})
        _, evaluations[precision] = train(tmp_path / precision, digits, config)
    mine, theirs = tensors(tmp_path / "bf16"), tensors(tmp_path / "fp32")
    assert {array.dtype for array in mine.values()} == {np.dtype(np.float32)}
    assert any(not np.array_equal(mine[name], theirs[name]) for name in mine), "it was in use"
    assert evaluations["bf16"][-1]["validation_loss"] == pytest.approx(evaluations["fp32"][-1]["validation_loss"],
                                                                       rel=0.05)


def test_an_evaluation_that_is_not_finite_is_never_the_best(odd: Dataset, tmp_path: Path,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([float("nan"), 0.7, float("inf")])
    monkeypatch.setattr(loop.MlpTraining, "evaluate", lambda *_: {"accuracy": 0.5, "loss": next(losses)})
    config = config_of(train={"epochs": 3}, eval={"metric": "loss"})
    assert train(tmp_path, odd, config)[0] == "finished"
    best = Checkpoints(Store.open(str(tmp_path)).child("checkpoints")).best()
    assert best is not None and (best.metric, best.epoch) == (-0.7, 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_trains_to_the_cpus_weights_within_rounding(tmp_path: Path, precision: str) -> None:
    flags = ["--train.epochs", "3", "--hardware.precision", precision]
    for device in ("0", "1"):
        with runs.run(tmp_path / device, *flags, "--run.gpus-per-worker", device) as job:
            job.finished()
    difference = runs.relative_difference(runs.weights(tmp_path / "1"), runs.weights(tmp_path / "0"))
    assert difference < {"fp32": 1e-3, "bf16": 0.1}[precision]


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ (apt-get install g++)")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_model_trains_to_the_same_weights_within_rounding(odd: Dataset, tmp_path: Path) -> None:
    for compiled in (False, True):
        config = config_of(hardware={"compile": compiled}, train={"max_steps": 3, "epochs": 1},
                           optim={"name": "sgd", "lr": 0.1, "warmup": 0})
        train(tmp_path / str(compiled), odd, config)
    mine, theirs = tensors(tmp_path / "True"), tensors(tmp_path / "False")
    assert set(mine) == set(theirs)
    for name, array in theirs.items():
        np.testing.assert_allclose(mine[name], array, rtol=1e-4, atol=1e-6)


UNDECORATED = """
import sys
import torch
from jobs.common.training.optim_config import OptimConfig
from jobs.pytorch.optimizer import build_optimizer

for name, kind in (("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)):
    models = [torch.nn.Linear(3, 2) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    ours = build_optimizer(models[0].parameters(), OptimConfig(name=name, momentum=0.9))
    for step in range(3):
        ours.zero_grad()
        (models[0](torch.ones(4, 3)) ** 2).sum().backward()
        ours.step()
        ours.load_state_dict(ours.state_dict())
    assert "torch._dynamo" not in sys.modules
    if name == "sgd":
        plain = kind(models[1].parameters(), lr=OptimConfig().lr, momentum=0.9, weight_decay=OptimConfig().weight_decay,
                     fused=True)
        for step in range(3):
            plain.zero_grad()
            (models[1](torch.ones(4, 3)) ** 2).sum().backward()
            plain.step()
        assert torch.equal(models[0].weight, models[1].weight)
        assert ours.state_dict()["param_groups"] == plain.state_dict()["param_groups"]
"""


def test_an_optimiser_does_not_import_what_compiles_and_steps_as_pytorchs_own() -> None:
    subprocess.run([sys.executable, "-c", UNDECORATED], cwd=runs.ROOT, check=True)


# ── the way back ──
LOAD = """
import json, sys
import numpy as np
from jobs.common.artifact.artifact import open_artifact
from jobs.mlp.model import load

probe = open_artifact(sys.argv[1]).probe()
classifier = load(sys.argv[1])
found = classifier.predict(probe.inputs["image"])
print(json.dumps({"difference": float(np.abs(found - probe.outputs["probabilities"]).max()), "shape": found.shape,
                  "labels": classifier.labels, "ray": sorted(m for m in sys.modules if m.split(".")[0] == "ray")}))
"""


def test_an_artifact_loads_without_ray_and_answers_as_its_probe_says(tmp_path: Path) -> None:
    with runs.run(tmp_path / "run", "--train.epochs", "2") as job:
        job.finished()
    done = subprocess.run([sys.executable, "-c", LOAD, str(job.folder / "artifact")], cwd=runs.ROOT,
                          capture_output=True, text=True,
                          check=True, timeout=60)
    found = json.loads(done.stdout)
    assert found["difference"] < 1e-6
    assert found["shape"] == [4, 10]
    assert found["labels"] == [str(digit) for digit in range(10)]
    assert found["ray"] == []
    path = job.folder / "artifact/manifest.json"
    manifest = json.loads(path.read_text())
    for group, name, value, says in (("config", "model", {"hidden": [10**12], "dropout": 0.0},
                                      "does not hold the network"),
                                     ("config", "model", 5, "not iterable"),
                                     ("preprocessing", "mean", "x", "mean: Input"),
                                     ("config", "model", {"hidden": [32, 32], "dropout": 0.0},
                                      "does not hold the network")):
        path.write_text(json.dumps(manifest | {group: manifest[group] | {name: value}}))
        with pytest.raises(ArtifactError, match=says):  # and no memory was taken for 10^12 numbers
            load(job.folder / "artifact")
