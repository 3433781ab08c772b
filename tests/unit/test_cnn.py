"""The CNN: its network and presets, a step against Keras's own, what state and dropout are made of,
the way to an artifact."""

import gzip
import io
import json
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jobs.cnn.framework", reason="needs TensorFlow (pip install 'trainyard[tensorflow]')")

from cluster.core.errors import ArtifactError, ConfigError
from cluster.core.storage import Store
from jobs.cnn import train as loop
from jobs.cnn.config import CnnConfig, ModelConfig
from jobs.cnn.explain import integrated_gradients
from jobs.cnn.export import keras_file, onnx_file
from jobs.cnn.framework import keras, tf
from jobs.cnn.group import Group
from jobs.cnn.model import Classifier, load_keras, new_model, with_probabilities
from jobs.cnn.pipeline import Pipeline
from jobs.cnn.step import NOT_FINITE, SCALED_DOWN, TAKEN
from jobs.common.config import from_dict, parse
from jobs.common.data.dataset import Dataset
from jobs.common.data.reader import Reader
from jobs.common.step_profile import tables
from jobs.common.training.session import Session
from jobs.common.training.train_state import NonFiniteError
from jobs.common.vision.build_info import BuildInfo
from jobs.common.vision.config import AugmentConfig
from jobs.common.vision.dataset import ImageFacts
from tests import image_loops, runs
from tests.image_loops import StopAfterEachStep, tensors
from tests.unit.starts import first_model

# Keras's
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

SMALL = {"augment": {"shift": 0, "rotate": 0, "scale": 0}, "eval": {"robustness_rows": 0},
         "model": {"width": 4, "dense": [8], "dropout": 0.0, "depth": 1, "head": "flatten"},
         "train": {"epochs": 1, "max_steps": 3, "global_batch_size": 60}}
OWN = "tests.unit.own_networks"


def config_of(**groups: Any) -> CnnConfig:
    """SMALL with changes."""
    return from_dict(CnnConfig, {name: {**SMALL.get(name, {}), **groups.get(name, {})} for name in {*SMALL, *groups}})


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return image_loops.digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return image_loops.odd(tmp_path_factory.mktemp("odd"))


def train(folder: Path, dataset: Dataset, config: CnnConfig, kind: type[Session] = Session,
          num_shards: int = 1) -> tuple[str, list[dict[str, Any]]]:
    return image_loops.train(loop.train, folder, dataset, config, kind, num_shards)


def info_of(shape: tuple[int, int, int], classes: int, model: object = None) -> BuildInfo:
    names, channels = tuple("abcd"[:classes]), shape[2]
    return BuildInfo(shape=shape, class_names=names, mean=(0.0,) * channels, std=(1.0,) * channels, model=model)


def network(config: CnnConfig, dataset: Dataset) -> Any:
    return new_model(config, BuildInfo.of(dataset, config.model))


def trainer_of(folder: Path, dataset: Dataset, config: CnnConfig, num_shards: int = 1) -> tuple[Any, Any]:
    """(trainer, iterator over the steps of the first epoch)."""
    found: list[Any] = []

    def build(session: Session, config: CnnConfig) -> str:
        group = Group(session, 1).__enter__()
        pipeline = Pipeline(session.data_loader(), config, ImageFacts.of(dataset))
        batches = list(pipeline.elements(0, 0, frozenset()).take(4))
        found.extend((loop.build_trainer(session, config, pipeline, group), batches))
        return "finished"

    image_loops.train(build, folder, dataset, config, num_shards=num_shards)
    return found[0], found[1]


def over(batches: list[Any]) -> Any:
    """An iterator over steps that are known already."""
    first = batches[0]
    stacked = {name: tf.stack([batch[name] for batch in batches]) for name in first}
    return iter(tf.data.Dataset.from_tensor_slices(stacked))


def steps(trainer: Any, batches: list[Any], lr: float) -> list[Any]:
    made = trainer.steps(over(batches), tf.constant(len(batches)), tf.constant([lr] * len(batches)),
                         tf.constant([0.0, 0.0]))
    return [value.numpy() for value in made]


# ── the network ──
def test_textbook_is_the_textbook_network(digits: Dataset) -> None:
    config = parse(CnnConfig, ["--config", str(runs.ROOT / "jobs/cnn/textbook.yaml")], "cnn")
    model = network(config, digits)
    kinds = [type(layer).__name__ for layer in model.layers]
    assert kinds == ["InputLayer", "Rescaling", "Conv2D", "MaxPooling2D", "Flatten", "Dense", "Dense"]
    conv, dense = model.layers[2], model.layers[5]
    assert (conv.filters, conv.kernel_size, conv.padding, conv.activation.__name__) == (32, (3, 3), "valid", "relu")
    assert (model.layers[3].pool_size, dense.units, dense.activation.__name__) == ((2, 2), 128, "relu")
    assert model.count_params() == 320 + 5408 * 128 + 128 + 1290
    last = with_probabilities(model).layers[-1]
    assert isinstance(last, keras.layers.Softmax)
    assert (config.train.epochs, config.train.global_batch_size) == (10, 32)
    assert (config.optim.name, config.optim.lr) == ("adamw", 1e-3)
    assert (config.optim.weight_decay, config.optim.clip_norm, config.augment.active) == (0, None, False)
    np.testing.assert_allclose(model.layers[1](np.full((1, 28, 28, 1), 255.0, np.float32)), 1.0, rtol=1e-6)


@pytest.mark.parametrize("model", [{"depth": 2, "convolutions": 1}, {"head": "average", "dense": []},
                                   {"padding": "valid", "kernel": 2, "convolutions": 1, "batch_norm": False,
                                    "normalise": "unit"}])
def test_any_shape_depth_and_number_of_classes_trains(model: dict[str, Any], odd: Dataset, tmp_path: Path) -> None:
    config = config_of(model={"width": 8, **model}, optim={"lr": 0.02, "warmup": 0},
                       train={"epochs": 15, "max_steps": None, "global_batch_size": 32})
    outcome, evaluations = train(tmp_path, odd, config)
    assert outcome == "finished"
    assert max(row["validation_accuracy"] for row in evaluations) > 0.8, "chance is 0.25"


@pytest.mark.parametrize("model", [{"depth": 2, "padding": "valid", "kernel": 3, "convolutions": 2}, {"depth": 3},
                                   {"depth": 1, "padding": "valid", "kernel": 5, "convolutions": 1}])
def test_the_smallest_side_is_the_smallest_that_can_be_built(model: dict[str, Any]) -> None:
    config = config_of(model={"head": "flatten", **model})
    for side, fits in ((config.model.smallest_side, True), (config.model.smallest_side - 1, False)):
        info = info_of((side, side, 1), 3, config.model)
        if fits:
            assert new_model(config, info).output.shape == (None, 3)
            continue
        with pytest.raises(ConfigError, match="cannot be built"):
            new_model(config, info)


# ── a step against Keras's own ──
@pytest.mark.parametrize(("optim", "theirs"), [
    ({"name": "adamw", "weight_decay": 0.0}, lambda: keras.optimizers.Adam(0.01)),
    ({"name": "adamw", "weight_decay": 0.1}, lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1)),
    ({"name": "sgd", "weight_decay": 0.0}, lambda: keras.optimizers.SGD(0.01)),
    ({"name": "sgd", "weight_decay": 0.0, "momentum": 0.9}, lambda: keras.optimizers.SGD(0.01, momentum=0.9)),
    ({"name": "adamw", "weight_decay": 0.0, "clip_norm": 0.05},
     lambda: keras.optimizers.Adam(0.01, global_clipnorm=0.05)),
], ids=["adam", "adamw", "sgd", "momentum", "clipped"])
def test_three_steps_are_those_of_keras(optim: dict[str, Any], theirs: Any, digits: Dataset, tmp_path: Path) -> None:
    config = config_of(model={"batch_norm": False},
                       optim={"lr": 0.01, "warmup": 0, "label_smoothing": 0.1, "clip_norm": None, **optim})
    trainer, batches = trainer_of(tmp_path, digits, config)
    batches = batches[:3]
    model = keras.models.clone_model(trainer.model)
    model.set_weights(trainer.model.get_weights())
    optimizer = theirs()
    if optim["weight_decay"]:
        optimizer.build(model.trainable_variables)
        optimizer.exclude_from_weight_decay(var_names=["bias"])
    criterion = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
    expected = []
    for batch in batches:
        with tf.GradientTape() as tape:
            loss = criterion(tf.one_hot(batch["label"][0], 10),
                             model(tf.cast(batch["image"][0], tf.float32), training=True))
        optimizer.apply_gradients(zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables,
                                      strict=True))
        expected.append(float(loss))
    losses, outcomes, *_ = steps(trainer, batches, 0.01)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert outcomes.tolist() == [TAKEN] * 3
    for mine, other in zip(trainer.model.trainable_variables, model.trainable_variables, strict=True):
        np.testing.assert_allclose(mine.numpy(), other.numpy(), rtol=2e-4, atol=2e-6)


def test_how_many_steps_a_call_makes_changes_nothing(digits: Dataset, tmp_path: Path) -> None:
    groups: dict[str, Any] = {"model": {"dropout": 0.3}, "augment": {"shift": 1, "rotate": 9}}
    for most in (1, 64):
        train(tmp_path / str(most), digits,
              config_of(**groups, train={"max_steps": 40, "epochs": 3, "most_steps_per_call": most}))
    assert image_loops.same(tmp_path / "1", tmp_path / "64")


def test_profiled_steps_change_nothing_and_have_their_operations(odd: Dataset, tmp_path: Path) -> None:
    limit = {"max_steps": 8, "epochs": 3}
    for profile in (None, "2-3,5-8"):
        train(tmp_path / str(profile), odd, config_of(train=limit, model={"dropout": 0.3}, run={"profile": profile}))
    assert image_loops.same(tmp_path / "None", tmp_path / "2-3,5-8")
    found = tables(Store.open(str(tmp_path / "2-3,5-8")))
    assert [(each.first, each.last) for each in found] == [(2, 3), (5, 6), (7, 8)]
    for each in found:
        trace = gzip.decompress((tmp_path / "2-3,5-8" / each.trace).read_bytes())
        names = [event["name"] for event in json.loads(trace)["traceEvents"]]
        calls = [(int(found[1]), int(found[2] or found[1])) for name in names
                 if (found := re.fullmatch(r"steps? (\d+)(?: to (\d+))?", name))]
        assert [step for first, last in calls for step in range(first, last + 1)] == [*range(each.first, each.last + 1)]
        filters = [name for name in names if name.endswith("Conv2DBackpropFilter")]
        assert len(filters) == 2 * (each.last - each.first + 1), "two convolutions"
        assert each.operations and not [each for each in each.operations if ":" in each.name], "kinds, not places"


@pytest.mark.parametrize("limit", [{"max_steps": None}, {"max_steps": 2}])
def test_stopping_after_every_call_changes_nothing(limit: dict[str, Any], odd: Dataset, tmp_path: Path) -> None:
    config = config_of(train=limit, model={"dropout": 0.3}, augment={"rotate": 10})
    _, expected = train(tmp_path / "at once", odd, config)
    outcomes: list[str] = []
    evaluations: list[dict[str, Any]] = []
    while not outcomes or outcomes[-1] != "finished":
        outcome, reported = train(tmp_path / "in pieces", odd, config, StopAfterEachStep)
        outcomes.append(outcome)
        evaluations += [row for row in reported if row not in evaluations]  # those of its checkpoint are told once more
        assert len(outcomes) <= 4
    assert len(outcomes) == (limit["max_steps"] or 3) + 1
    assert evaluations == expected
    assert image_loops.same(tmp_path / "in pieces", tmp_path / "at once")


def test_a_batch_in_passes_gives_the_same_step(digits: Dataset, tmp_path: Path) -> None:
    optim = {"name": "sgd", "lr": 0.1, "warmup": 0}
    for name, rows in (("whole", None), ("passes", 7)):
        train(tmp_path / name, digits,
              config_of(model={"batch_norm": False}, optim=optim, train={"max_rows_per_pass": rows}))
    mine, theirs = tensors(tmp_path / "passes"), tensors(tmp_path / "whole")
    for name, array in theirs.items():
        assert np.linalg.norm(mine[name] - array) <= 2e-6 * np.linalg.norm(array) + 1e-7, name


# ── state, dropout, class weights ──
def test_moving_statistics_become_the_mean_over_the_micro_batches(digits: Dataset, tmp_path: Path) -> None:
    config = config_of(model={"build": f"{OWN}:plain"})
    trainer, batches = trainer_of(tmp_path, digits, config, num_shards=3)
    steps(trainer, batches[:1], 0.0)
    images = batches[0]["image"].numpy().astype(np.float64)
    assert images.shape == (3, 20, 28, 28, 1)
    each = images.reshape(3, -1)
    found = {v.path.split("/")[-1]: v.numpy().item() for v in trainer.model.non_trainable_variables}
    assert found["moving_mean"] == pytest.approx(0.1 * each.mean(), rel=1e-5)
    assert found["moving_variance"] == pytest.approx(0.9 + 0.1 * each.var(axis=1).mean(), rel=1e-5)


def test_dropout_is_a_function_of_seed_epoch_step_and_shard(digits: Dataset, tmp_path: Path) -> None:
    config = config_of(model={"build": f"{OWN}:dropped"})
    trainer, batches = trainer_of(tmp_path, digits, config, num_shards=2)
    first = [loss.item() for loss in steps(trainer, [batches[0], batches[1], batches[0]], 0.0)[0]]
    assert first[0] == first[2] != first[1]
    assert len(np.unique(np.concatenate([batch["seed"].numpy() for batch in batches]))) == 8
    other = dict(batches[0], seed=batches[0]["seed"] + 1)
    assert steps(trainer, [other], 0.0)[0].item() != first[0]


def test_balanced_classes_weigh_the_same_and_rows_one_in_the_mean(digits: Dataset, tmp_path: Path) -> None:
    counts = (10, 40, 50)
    weights = loop.balanced(counts)
    np.testing.assert_allclose(weights * counts, 100 / 3, rtol=1e-6)
    config = config_of(model={"batch_norm": False}, train={"class_weights": "balanced"}, optim={"label_smoothing": 0})
    trainer, batches = trainer_of(tmp_path, digits, config)
    labels = batches[0]["label"].numpy()[0]
    p = trainer.probabilities(batches[0]["image"].numpy()[0])[np.arange(60), labels]
    weights = loop.balanced(digits.splits["train"].class_counts)
    assert steps(trainer, batches[:1], 0.0)[0][0] == pytest.approx((-np.log(p) * weights[labels]).mean(), rel=1e-5)


def test_training_against_an_adversary_raises_the_loss_that_is_lowered(digits: Dataset, tmp_path: Path) -> None:
    losses = {}
    for share in (None, 0.02, 0.2):
        config = config_of(model={"batch_norm": False},
                           train={"adversarial": share, "adversarial_steps": 3, "max_rows_per_pass": 30})
        trainer, batches = trainer_of(tmp_path / str(share), digits, config)
        first, again = (steps(trainer, batches[:1], 0.0)[0].item() for _ in range(2))
        assert first == again, "what is drawn is a function of the micro-batch"
        losses[share] = first
    assert losses[None] < losses[0.02] < losses[0.2]


# ── what is not finite ──
def test_a_step_that_is_not_finite_leaves_weights_and_state_alone(digits: Dataset, tmp_path: Path) -> None:
    trainer, batches = trainer_of(tmp_path, digits, config_of())
    before = trainer.tensors()
    poisoned = [dict(batch, image=tf.cast(batch["image"], tf.float32) * (float("nan") if place == 1 else 1.0))
                for place, batch in enumerate(batches[:3])]
    assert steps(trainer, poisoned[1:2], 0.01)[1].tolist() == [NOT_FINITE]
    assert {name: array.tobytes() for name, array in trainer.tensors().items()} == {n: a.tobytes()
                                                                                    for n, a in before.items()}
    assert steps(trainer, poisoned, 0.01)[1].tolist() == [TAKEN, NOT_FINITE, TAKEN]
    assert trainer.tensors()["optimizer.taken"] == 2


def test_too_many_skips_in_a_row_are_an_error_that_names_the_steps(digits: Dataset, tmp_path: Path,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    def steps_of(trainer: Any, config: CnnConfig, *rest: Any) -> Any:
        made = Trainer(trainer, config, *rest)
        plain = made._loss
        made._loss = lambda logits, labels: plain(logits, labels) * float("nan")
        return made

    Trainer = loop.Trainer  # noqa: N806
    monkeypatch.setattr(loop, "Trainer", steps_of)
    with pytest.raises(NonFiniteError) as caught:
        train(tmp_path, digits, config_of(train={"max_steps": 10, "max_skipped_steps": 3}))
    assert caught.value.steps == (0, 1, 2)


def test_training_stops_when_the_validation_metric_no_longer_improves(odd: Dataset, tmp_path: Path) -> None:
    config = config_of(train={"epochs": 50, "max_steps": None, "early_stopping_epochs": 2}, model={"batch_norm": False},
                       optim={"lr": 1e-12, "warmup": 0})
    outcome, evaluations = train(tmp_path, odd, config)
    assert outcome == "finished"
    assert [row["epoch"] for row in evaluations] == [1, 2, 3], "the first is the best, then two without improvement"


# ── hardware ──
def with_hardware(folder: Path, dataset: Dataset, **hardware: Any) -> tuple[float, dict[str, np.ndarray]]:
    config = config_of(hardware=hardware, optim={"lr": 0.01, "warmup": 0}, train={"epochs": 2, "max_steps": None})
    return train(folder, dataset, config)[1][-1]["validation_loss"], tensors(folder)


@pytest.fixture(scope="module")
def fp32(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[float, dict[str, np.ndarray]]:
    return with_hardware(tmp_path_factory.mktemp("fp32"), digits)


@pytest.mark.parametrize("hardware", [{"precision": "bf16"}, {"precision": "fp16"}, {"xla": True}],
                         ids=["bf16", "fp16", "xla"])
def test_other_arithmetic_trains_to_nearly_the_same(hardware: dict[str, Any], fp32: tuple[float, dict[str, np.ndarray]],
                                                    digits: Dataset, tmp_path: Path) -> None:
    loss, mine = with_hardware(tmp_path, digits, **hardware)
    assert {array.dtype for array in mine.values()} == {np.dtype(np.float32)}
    assert any(not np.array_equal(mine[name], array) for name, array in fp32[1].items()), "it was in use"
    assert loss == pytest.approx(fp32[0], rel=0.15)


def test_half_precision_scales_its_loss_down_until_gradients_fit(digits: Dataset, tmp_path: Path) -> None:
    trainer, batches = trainer_of(tmp_path, digits, config_of(hardware={"precision": "fp16"}))
    scale = trainer.variables["optimizer.loss_scale"]
    scale.assign(2.0**60)
    outcomes = steps(trainer, batches[:1] * 60, 0.001)[1].tolist()
    assert outcomes[0] == SCALED_DOWN and outcomes[-1] == TAKEN
    assert NOT_FINITE not in outcomes
    assert 1 <= float(scale) == 2.0 ** (60 - outcomes.count(SCALED_DOWN))


# ── augmentation ──
def test_images_are_warped_as_pytorch_warps_them(odd: Dataset, tmp_path: Path) -> None:
    """The same draws, carried out by both frameworks, on images that are not square."""
    torch = pytest.importorskip("torch")
    from jobs.pytorch.images.augment import augment

    config = config_of(augment={"shift": 1.0, "rotate": 40, "scale": 0.2}, train={"global_batch_size": 32})
    _, batches = trainer_of(tmp_path / "warped", odd, config)
    _, plain = trainer_of(tmp_path / "plain", odd, config_of(train={"global_batch_size": 32}))
    for warped, batch in zip(batches, plain, strict=True):
        ids = batch["row_id"].numpy()[0]
        assert np.array_equal(warped["row_id"].numpy()[0], ids)
        expected = augment(torch.from_numpy(batch["image"].numpy()[0]), ids,
                           AugmentConfig(shift=1.0, rotate=40, scale=0.2), 0, 0)
        np.testing.assert_allclose(warped["image"].numpy()[0], expected.numpy(), atol=0.02)


# ── a user's own network ──
def test_a_network_of_ones_own_drops_in(odd: Dataset, tmp_path: Path) -> None:
    config = config_of(model={"build": f"{OWN}:plain"}, optim={"lr": 0.02, "warmup": 0},
                       train={"epochs": 30, "max_steps": None})
    assert train(tmp_path, odd, config)[1][-1]["validation_accuracy"] > 0.8


@pytest.mark.parametrize(("name", "says"), [
    (f"{OWN}:softmax", "ends in a softmax"), (f"{OWN}:too_few", r"\(None, 4\)"), (f"{OWN}:too_deep", "cannot be built"),
    (f"{OWN}:missing", "no attribute 'missing'"), ("nowhere.at_all:build", "No module named 'nowhere'"),
])
def test_a_network_that_cannot_be_used_is_refused(name: str, says: str, odd: Dataset) -> None:
    with pytest.raises(ConfigError, match=says):
        network(config_of(model={"build": name}), odd)


def test_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="MODULE:FUNCTION"):
        ModelConfig(build="my_model.py")


# ── the way back ──
@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the default network, made small."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    with runs.run(folder, "--run.tracking-uri", "none", "--model.width", "8", "--model.depth", "2", "--model.head",
                  "flatten", "--model.dense", "32", "--optim.warmup", "10", "--train.epochs", "6",
                  "--train.global-batch-size", "60",
                  "--eval.robustness-rows", "60", "--eval.bootstrap-samples", "100", "--eval.extras-budget", "1h",
                  "--run.trace-rows", quick=False,
                  job="cnn") as job:
        result = job.finished()
    assert result["metrics"]["test"]["accuracy"] > 0.8
    assert "oneDNN" not in job.text and "cuda" not in job.text.lower(), "TensorFlow's own chatter"
    return folder


LOAD = """
import json, sys
import numpy as np
from jobs.common.artifact.artifact import open_artifact
from jobs.cnn.model import load

opened = open_artifact(sys.argv[1])
classifier, probe = load(sys.argv[1]), opened.probe()
found = classifier.predict(probe.inputs["image"])
import onnxruntime
session = onnxruntime.InferenceSession(opened.read("model.onnx"))
name = session.get_inputs()[0].name
onnx = session.run(None, {name: probe.inputs["image"].astype(np.float32)})[0]
print(json.dumps({"difference": float(np.abs(found - probe.outputs["probabilities"]).max()), "shape": found.shape,
                  "onnx": float(np.abs(onnx - found).max()), "labels": classifier.labels,
                  "ray": sorted(m for m in sys.modules if m.split(".")[0] == "ray")}))
"""


def test_an_artifact_loads_without_ray_and_answers_as_its_probe_says_also_as_onnx(run: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LOAD, str(run / "artifact")], cwd=runs.ROOT, capture_output=True,
                          text=True,
                          check=True, timeout=60)
    found = json.loads(done.stdout)
    assert found["difference"] < 1e-6
    assert found["onnx"] < 1e-5
    assert (found["shape"], found["ray"]) == ([4, 10], [])
    assert found["labels"] == [str(digit) for digit in range(10)]


def test_the_report_shows_regions_attributions_and_robustness(run: Path) -> None:
    page = (run / "report.html").read_text()
    for words in ("Grad-CAM", "integrated gradients", "FGSM 0.03", "PGD 0.1", "noise", "blur", "rotation", "shift"):
        assert words in page, words
    assert 5 < page.count("the region that speaks for") <= 10
    assert len(runs.consumed_rows(run)) == 6 * runs.STEPS_PER_EPOCH


def test_the_same_weights_give_the_same_bytes(digits: Dataset) -> None:
    config = config_of(model={"dropout": 0.2})
    made = [keras_file(with_probabilities(network(config, digits))) for _ in range(2)]
    assert made[0] == made[1]
    assert made[0] != keras_file(with_probabilities(network(replace(config, run=replace(config.run, seed=1)), digits)))
    exported = {onnx_file(with_probabilities(network(config, digits))) for _ in range(4)}
    assert len(exported) == 1


def test_a_file_with_a_lambda_layer_is_refused(odd: Dataset, tmp_path: Path) -> None:
    from tests.unit import own_networks

    own_networks.with_lambda(info_of((5, 6, 3), 4)).save(tmp_path / "evil.keras")
    with pytest.raises(ArtifactError, match="Lambda layer"):
        load_keras((tmp_path / "evil.keras").read_bytes(), "the artifact")
    with pytest.raises(ArtifactError, match=r"model\.keras of the artifact is refused"):
        load_keras(b"PK\x03\x04 not a model", "the artifact")


def _layer(module: str, name: str, **config: Any) -> dict[str, Any]:
    return {"module": module, "class_name": name, "config": {"name": "evil", **config}, "registered_name": None}


EVIL_LAYERS = {
    "a saved model elsewhere": (_layer("keras.layers", "TFSMLayer", filepath="/elsewhere"), "TFSMLayer"),
    "a program": (_layer("os", "system", command="id"), "Could not locate class 'system'"),
    "a function of Keras": (_layer("keras.src.utils.file_utils", "get_file", origin="http://example.com/x"),
                            "get_file' because"),
    "a file elsewhere": (_layer("keras.layers", "StringLookup", vocabulary="/etc/passwd"), "vocabulary"),
}


@pytest.mark.parametrize("what", EVIL_LAYERS)
def test_a_file_whose_layers_lead_elsewhere_is_refused(what: str, odd: Dataset, tmp_path: Path) -> None:
    layer, says = EVIL_LAYERS[what]
    made = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="evil")])
    made.save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(files["config.json"])
    config["config"]["layers"][-1] = layer
    files["config.json"] = json.dumps(config).encode()
    with pytest.raises(ArtifactError, match=says):
        load_keras(_packed(files), "the artifact")


@pytest.mark.parametrize("how", ["external", "link"])
def test_weights_that_lie_in_another_file_are_not_read(how: str, tmp_path: Path) -> None:
    import h5py

    made = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="dense")])
    made.save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    (tmp_path / "outside").write_bytes(bytes(4096))
    with h5py.File(tmp_path / "outside.h5", "w") as other:
        other["0"] = np.zeros((4, 2), np.float32)
    (tmp_path / "w.h5").write_bytes(files["model.weights.h5"])
    with h5py.File(tmp_path / "w.h5", "a") as weights:
        group = next(g for g in weights["layers"].values() if "vars" in g and len(g["vars"]))["vars"]
        del group["0"]
        if how == "link":
            group["0"] = h5py.ExternalLink(str(tmp_path / "outside.h5"), "0")
        else:
            group.create_dataset("0", (4, 2), "f4", external=[(str(tmp_path / "outside"), 0, 32)])
    files["model.weights.h5"] = (tmp_path / "w.h5").read_bytes()
    with pytest.raises(ArtifactError, match="refused"):
        load_keras(_packed(files), "the artifact")


def _packed(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


# ── explanations ──
def test_attributions_add_up_and_regions_lie_where_the_class_is(odd: Dataset, tmp_path: Path) -> None:
    config = config_of(model={"width": 8, "dense": []}, optim={"lr": 0.02, "warmup": 0},
                       train={"epochs": 25, "max_steps": None, "global_batch_size": 32})
    train(tmp_path, odd, config)
    model = network(config, odd)
    from jobs.cnn.export import fill

    fill(model, tensors(tmp_path))
    classifier = Classifier(with_probabilities(model), odd.class_names)
    reader = Reader.open(odd, "test", config.data)
    rows = reader.rows(0, 20)
    reader.close()
    assert (classifier.predict(rows["image"]).argmax(1) == rows["label"]).mean() > 0.8
    attributions, gaps, differences = classifier.explain(rows["image"], rows["label"])
    assert attributions.shape == rows["image"].shape
    assert gaps.max() < 0.02 * max(1.0, np.abs(attributions.sum((1, 2, 3))).max())
    np.testing.assert_allclose(np.abs(attributions.sum((1, 2, 3)) - differences), gaps, atol=1e-4)
    # A class is a column that is brighter: there the attributions are.
    columns = attributions.sum((1, 3))
    assert (columns.argmax(1) == rows["label"]).mean() > 0.8
    regions = classifier.regions(rows["image"], rows["label"])
    assert regions is not None and regions.shape == rows["image"].shape[:3] and regions.min() >= 0
    none = network(config_of(model={"build": f"{OWN}:plain"}), odd)
    assert Classifier(with_probabilities(none), odd.class_names).regions(rows["image"], rows["label"]) is None


def test_integrated_gradients_of_a_linear_model_are_its_weights_times_the_change() -> None:
    model = keras.Sequential([keras.Input((2, 2, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
    images = np.random.default_rng(0).normal(size=(3, 2, 2, 1)).astype(np.float32)
    attributions, gaps, _ = integrated_gradients(model, images, np.zeros_like(images), np.array([0, 1, 0]))
    kernel = model.layers[-1].kernel.numpy()
    for row, target in enumerate([0, 1, 0]):
        slope = kernel[:, target] - kernel[:, 1 - target]
        np.testing.assert_allclose(attributions[row].ravel(), slope * images[row].ravel(), rtol=1e-4, atol=1e-6)
    assert gaps.max() < 1e-5


# ── a start with another model's weights ──
def test_layers_that_are_frozen_stay_to_the_last_bit_and_a_run_in_pieces_is_the_same(odd: Dataset, tmp_path: Path
                                                                                    ) -> None:
    """Also what batch normalisation keeps in them. They have no moments; another layer begins anew."""
    size = {"depth": 1, "convolutions": 1, "width": 4, "dense": [8], "dropout": 0.2}
    before = network(config_of(model=size, run={"seed": 7}), odd)
    first = {each.path: each.numpy() for each in before.variables if "seed" not in each.path}
    files = {"model.keras": keras_file(with_probabilities(before))}
    origin = first_model(tmp_path, "cnn", files, odd.class_names)
    start = {"init_from": origin.uri, "init_except": ["logits"], "freeze": ["convolution_1_1", "normalisation_1_1"]}
    config = config_of(model=size | start, train={"epochs": 1, "max_steps": 3, "global_batch_size": 48})
    assert train(tmp_path / "at once", odd, config, num_shards=3)[0] == "finished"
    assert train(tmp_path / "in pieces", odd, config, StopAfterEachStep, num_shards=3)[0] == "stopped"
    assert train(tmp_path / "in pieces", odd, config, num_shards=3)[0] == "finished"
    assert image_loops.same(tmp_path / "in pieces", tmp_path / "at once")
    kept = tensors(tmp_path / "at once")
    assert {name for name in first if kept[f"model.{name}"].tobytes() == first[name].tobytes()} == {
        name for name in first if name.startswith(("convolution_1_1/", "normalisation_1_1/"))}
    assert not any("convolution" in name or "normalisation" in name for name in kept if name.startswith("optimizer."))
    for wrong, said in (({"freeze": ["conv"]}, r"--model\.freeze conv: the model has no such layer: it has conv"),
                        ({"freeze": ["*"]}, "nothing is left to train"),
                        ({"init_from": origin.uri, "dense": [9]}, r"dense_1/kernel is \(\d+, 8\) there and \(\d+, 9")):
        with pytest.raises(ConfigError, match=said):
            train(tmp_path / "wrong", odd, config_of(model=size | wrong))
