"""Images changed by the world and by an adversary: within their budget, a function of the row,
and harder for the model."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from cluster.core.storage import Store
from jobs.common.checkpoint.store import Checkpoints
from jobs.common.config import from_dict
from jobs.common.data.dataset import Dataset
from jobs.common.extras import Extras
from jobs.common.training import predictions
from jobs.common.training.job import TrainingResult
from jobs.common.training.session import Session
from jobs.common.vision import robustness as image_robustness
from jobs.common.vision.robustness import ATTACKS, CHANGES, Attack, pixel_range, projected_gradient, sample
from jobs.mlp import train as loop
from jobs.mlp.config import MlpConfig
from jobs.pytorch.images.adversary import gradient_of_loss
from tests import image_loops

CONFIG: dict[str, dict[str, Any]] = {
    "augment": {"shift": 0, "rotate": 0, "scale": 0}, "model": {"hidden": [64], "dropout": 0},
    "train": {"epochs": 15, "global_batch_size": 60}, "eval": {"robustness_rows": 120, "extras_budget": "1h"},
    "optim": {"lr": 0.01, "warmup": 0}}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return image_loops.digits(tmp_path_factory.mktemp("digits"))


def images(rows: int = 6, shape: tuple[int, ...] = (9, 11, 2)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (rows, *shape)).astype(np.float32)


# ── attacks ──
@pytest.mark.parametrize(("steps", "start"), [(1, None), (7, None), (7, 0.5)])
def test_an_attack_stays_within_its_budget_and_the_range(steps: int, start: float | None) -> None:
    attack = Attack(budget=20.0, steps=steps, low=0.0, high=255.0)
    before = images()
    slopes = np.random.default_rng(1).normal(size=before.shape)
    begin = None if start is None else np.full(before.shape, start)
    after = projected_gradient(before, lambda _: slopes, attack, sign=np.sign, clip=np.clip, start=begin)
    assert np.abs(after - before).max() <= 20.0 + 1e-4
    assert after.min() >= 0 and after.max() <= 255
    inside = (before > 20) & (before < 235)
    np.testing.assert_allclose((after - before)[inside], 20 * np.sign(slopes)[inside], atol=1e-4)


def test_one_step_is_the_fast_gradient_sign_method() -> None:
    before, slopes = images(), np.random.default_rng(1).normal(size=(6, 9, 11, 2))
    attack = Attack(budget=5.0, steps=1, low=0.0, high=255.0)
    after = projected_gradient(before, lambda _: slopes, attack, sign=np.sign, clip=np.clip)
    np.testing.assert_allclose(after, np.clip(before + 5 * np.sign(slopes), 0, 255))


def test_every_framework_takes_the_same_way() -> None:
    before = images()
    attack = Attack(budget=12.0, steps=5, low=0.0, high=255.0)
    middle = np.float32(100.0)
    expected = projected_gradient(before, lambda x: x - middle, attack, sign=np.sign, clip=np.clip)
    found = projected_gradient(torch.from_numpy(before), lambda x: x - middle, attack, sign=torch.sign,
                               clip=torch.clamp)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-3)
    tf = pytest.importorskip("jobs.cnn.framework", reason="needs TensorFlow").tf
    found = projected_gradient(tf.constant(before), lambda x: x - middle, attack, sign=tf.sign, clip=tf.clip_by_value)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-3)


def test_more_steps_raise_a_loss_that_bends_more() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(198, 30), torch.nn.Tanh(), torch.nn.Linear(30, 3))
    before, labels = torch.from_numpy(images() / 255), torch.tensor([0, 1, 2, 0, 1, 2])

    def loss(x: torch.Tensor) -> float:
        return F.cross_entropy(model(x), labels, reduction="sum").item()

    found = [loss(projected_gradient(before, lambda x: gradient_of_loss(model, x, labels),
                                     Attack(budget=0.2, steps=steps, low=0.0, high=1.0), sign=torch.sign,
                                     clip=torch.clamp))
             for steps in (1, 20)]
    assert loss(before) < found[0] < found[1]


def test_the_pixel_range_is_that_of_the_type_or_of_the_rows(digits: Dataset, tmp_path: Path) -> None:
    config = from_dict(MlpConfig, CONFIG)
    assert pixel_range(digits, config.data) == (0.0, 255.0)
    assert Attack.of(digits, config.data, 0.1, 3) == Attack(25.5, 3, 0.0, 255.0)
    assert Attack.in_training(digits, config) is None
    with_attack = from_dict(MlpConfig, {**CONFIG, "train": {"adversarial": 0.2, "adversarial_steps": 4}})
    assert Attack.in_training(digits, with_attack) == Attack(51.0, 4, 0.0, 255.0)


# ── natural changes ──
@pytest.mark.parametrize("name", list(CHANGES))
def test_a_change_is_a_function_of_the_row_and_leaves_size_and_type(name: str) -> None:
    before, ids = images(8), np.arange(20, 28)
    change = CHANGES[name]
    together = change(before, ids, 3, 255.0)
    assert together.shape == before.shape and together.dtype == np.float32
    order = np.array([6, 1, 4])
    np.testing.assert_array_equal(change(before[order], ids[order], 3, 255.0), together[order])
    assert all(not np.array_equal(a, b) for a, b in zip(together, before, strict=True))


def test_noise_has_its_strength_and_blur_keeps_the_mean() -> None:
    flat = np.full((20, 28, 28, 1), 128.0, np.float32)
    noisy = CHANGES["noise"](flat, np.arange(20), 0, 255.0)
    assert noisy.std() == pytest.approx(25.5, rel=0.03)
    assert not np.array_equal(noisy, CHANGES["noise"](flat, np.arange(20), 1, 255.0))
    np.testing.assert_allclose(CHANGES["blur"](flat, np.arange(20), 0, 255.0), 128.0, atol=1e-3)


def test_shifts_go_all_four_ways_by_whole_pixels() -> None:
    dot = np.zeros((4, 25, 25, 1), np.float32)
    dot[:, 12, 12] = 1
    moved = CHANGES["shift"](dot, np.arange(4), 0, 1.0)
    assert {tuple(int(i) for i in np.argwhere(m)[0][:2]) for m in moved} == {(10, 12), (14, 12), (12, 10), (12, 14)}


def test_the_sample_is_of_different_rows_and_the_same_for_every_run(digits: Dataset) -> None:
    rows = digits.splits["test"].num_rows
    drawn = sample(digits, 0, 50)
    assert len(set(drawn.tolist())) == 50 and drawn.max() < rows and drawn.max() > 50
    assert sample(digits, 0, 50).tolist() == drawn.tolist() != sample(digits, 1, 50).tolist()
    assert sample(digits, 0, 10_000).tolist() == list(range(rows))


# ── in a run ──
def accuracies(folder: Path, dataset: Dataset, **groups: dict[str, Any]) -> dict[str, float]:
    """By change, of a run of the MLP."""
    config = from_dict(MlpConfig,
                       {name: {**CONFIG.get(name, {}), **groups.get(name, {})} for name in {*CONFIG, *groups}})
    image_loops.train(loop.train, folder, dataset, config)
    store = Store.open(str(folder))
    generation = Checkpoints(store.child("checkpoints")).current_generation()
    assert generation is not None
    found = {name: predictions.read(store, generation, f"robustness {name}")
             for name in ("untouched", *ATTACKS, *CHANGES)}
    assert {len(each.labels) for each in found.values()} == {120}
    return {name: float((each.probabilities.argmax(1) == each.labels).mean()) for name, each in found.items()}


def test_a_run_is_judged_by_every_change_and_training_against_an_adversary_helps(digits: Dataset,
                                                                                 tmp_path: Path) -> None:
    plain = accuracies(tmp_path / "plain", digits)
    hardened = accuracies(tmp_path / "hardened", digits, train={"adversarial": 0.1, "adversarial_steps": 3})
    assert plain["untouched"] > 0.9
    assert plain["untouched"] > plain["PGD 0.03"] > plain["PGD 0.1"]
    assert plain["PGD 0.1"] <= plain["FGSM 0.1"] + 0.02
    assert hardened["PGD 0.1"] > plain["PGD 0.1"] + 0.1
    assert hardened["untouched"] > 0.8


def test_changes_that_there_is_no_time_for_are_neither_made_nor_shown(digits: Dataset, tmp_path: Path) -> None:
    class Slow(Session):
        """A second goes by with each look at the clock."""

        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            ticks = itertools.count()
            self.extras = Extras(20.0, agree=self.peers.broadcast, clock=lambda: float(next(ticks)))

    config = from_dict(MlpConfig, {**CONFIG, "train": {"max_steps": 1, "global_batch_size": 60}})
    image_loops.train(loop.train, tmp_path, digits, config, Slow)
    store = Store.open(str(tmp_path))
    checkpoints = Checkpoints(store.child("checkpoints"))
    generation, best = checkpoints.current_generation(), checkpoints.best()
    assert generation is not None and best is not None
    account = predictions.read_extras(store, generation)
    assert account.left_out == tuple(f"robustness PGD {strength:g}" for strength in image_robustness.STRENGTHS)
    trained = TrainingResult(job="mlp", config=config, dataset=digits, store=store, generation=generation, best=best,
                             extras=Extras(20.0, account))
    (section,) = image_robustness.section(trained)
    assert "FGSM 0.1:" in section.html and "PGD" not in section.html


def test_no_rows_are_judged_where_none_are_asked_for(digits: Dataset, tmp_path: Path) -> None:
    config = from_dict(MlpConfig,
                       {**CONFIG, "eval": {"robustness_rows": 0}, "train": {"max_steps": 1, "global_batch_size": 60}})
    image_loops.train(loop.train, tmp_path, digits, config)
    assert not list(tmp_path.rglob("*robustness*"))
    trained: Any = type("Trained", (), {"config": config})
    assert image_robustness.section(trained) == []
