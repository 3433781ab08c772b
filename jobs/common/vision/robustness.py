"""Images as the world, or an adversary, gives them:
what a classifier's accuracy is measured on beside the untouched ones.

    projected_gradient(images, gradient, Attack(budget=25.5, steps=10, low=0, high=255), sign=np.sign, clip=np.clip)
    CHANGES["noise"](images, row_ids, seed=0, spread=255.0)

An attack is written once for every framework: it does nothing but add, and what `sign` and `clip` do. Natural changes
are functions of the image, the seed and the row id alone. Shapes: B rows, H × W × C pixels.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from jobs.common.arrays import Array
from jobs.common.data.counter_rng import IntArray, Permutation, Purpose, row_uniforms
from jobs.common.data.dataset import Dataset
from jobs.common.data.reader import Reader
from jobs.common.evaluation.classification import judge_split
from jobs.common.extras import of_changed_rows
from jobs.common.report import robustness
from jobs.common.report.html import Section
from jobs.common.training.context import TrainContext
from jobs.common.training.job import TrainingResult
from jobs.common.training.predictions import Predictions
from jobs.common.training.trainable import Answers
from jobs.common.vision.config import ImageConfig, ImageDataConfig
from jobs.common.vision.dataset import ImageFacts

Images = Array
Floats = npt.NDArray[np.float32]

STRENGTHS = (0.01, 0.03, 0.1)
"""Of the attacks: most that a pixel is changed, as a share of the pixels' range."""
EVALUATION_STEPS = 10
NOISE, BLUR, TURN, SHIFT = 0.1, 1 / 28, 15.0, 0.08
"""Deviation as a share of the range; deviation and distance as a share of the image's side; degrees."""
_RANGE_ROWS = 256


@dataclass(frozen=True)
class Attack:
    """How far and how an image may be changed, in pixel units."""

    budget: float
    """Most that a pixel may be changed (the L∞ norm)."""
    steps: int
    low: float
    """Least value of a pixel."""
    high: float

    @property
    def stride(self) -> float:
        """Length of a step: all together 2.5 budgets (Madry et al. 2018, section 5); of one step, the whole budget."""
        return self.budget if self.steps == 1 else 2.5 * self.budget / self.steps

    @staticmethod
    def of(dataset: Dataset, data: ImageDataConfig, strength: float, steps: int) -> "Attack":
        """strength: a share of the pixels' range in this data set."""
        low, high = pixel_range(dataset, data)
        return Attack(strength * (high - low), steps, low, high)

    @staticmethod
    def in_training(dataset: Dataset, config: ImageConfig) -> "Attack | None":
        """What `--train.adversarial` asks for."""
        train = config.train
        return Attack.of(dataset, config.data, train.adversarial,
                         train.adversarial_steps) if train.adversarial else None


def projected_gradient(images: Any, gradient: Callable[[Any], Any], attack: Attack, *, sign: Callable[[Any], Any],
                       clip: Callable[[Any, Any, Any], Any], start: Any = None) -> Any:
    """Images that raise the loss most within the budget: projected gradient descent (Madry et al. 2018, equation 3);
    with one step, and no start, the fast gradient sign method (Goodfellow et al. 2015).

    images: (B, H, W, C) floats of any framework. gradient: of the loss, at such images. start: (B, H, W, C) in [-1, 1],
    where in the budget the way begins; None: at the image. sign, clip: the framework's own.
    """
    low, high = images - attack.budget, images + attack.budget
    changed = images if start is None else clip(images + attack.budget * start, attack.low, attack.high)
    for _ in range(attack.steps):
        moved = clip(changed + attack.stride * sign(gradient(changed)), low, high)
        changed = clip(moved, attack.low, attack.high)
    return changed


def pixel_range(dataset: Dataset, data: ImageDataConfig) -> tuple[float, float]:
    """Least and greatest value of a pixel: of bytes 0 and 255, of floats those of at most 256 training rows,
    spread evenly."""
    if ImageFacts.of(dataset).dtype == "uint8":
        return 0.0, 255.0
    images = some_rows(dataset, data)
    return float(images.min()), float(images.max())


def some_rows(dataset: Dataset, data: ImageDataConfig) -> Images:
    """The images of at most 256 training rows, spread evenly over the split."""
    rows = dataset.splits["train"].num_rows
    reader = Reader.open(dataset, "train", data)
    try:
        return reader.take(np.unique(np.linspace(0, rows - 1, min(_RANGE_ROWS, rows)).astype(np.int64)))["image"]
    finally:
        reader.close()


# ── changes without an adversary: (images, row_ids, seed, spread of the pixels' range) -> images, float32 ──
def noise(images: Images, row_ids: IntArray, seed: int, spread: float) -> Floats:
    """Normal noise on each pixel."""
    from scipy.special import ndtri

    uniforms = row_uniforms(Purpose.NOISE, seed, 0, row_ids, int(np.prod(images.shape[1:])))
    drawn = ndtri(np.clip(uniforms, 1e-12, 1 - 1e-12)).reshape(images.shape)
    return (images + NOISE * spread * drawn).astype(np.float32)


def blur(images: Images, row_ids: IntArray, seed: int, spread: float) -> Floats:
    """A Gaussian blur."""
    from scipy.ndimage import gaussian_filter

    return np.asarray(gaussian_filter(images.astype(np.float32), sigma=BLUR * max(images.shape[1:3]), axes=(1, 2)),
                      np.float32)


def turn(images: Images, row_ids: IntArray, seed: int, spread: float) -> Floats:
    """Turned, every other row the other way; what comes from outside is 0, as in augmentation."""
    from scipy.ndimage import rotate

    turned = [rotate(images.astype(np.float32), angle, axes=(1, 2), reshape=False, order=1) for angle in (TURN, -TURN)]
    return np.where((row_ids % 2 == 0)[:, None, None, None], *turned).astype(np.float32, copy=False)


def shift(images: Images, row_ids: IntArray, seed: int, spread: float) -> Floats:
    """Moved, by a whole number of pixels, up, down, left or right; what comes from outside is 0."""
    moved = np.zeros(images.shape, np.float32)
    for direction in range(4):
        rows, axis = row_ids % 4 == direction, 1 + direction // 2
        by = max(1, round(SHIFT * images.shape[axis]))
        source, target = [slice(None)] * 4, [slice(None)] * 4
        source[axis], target[axis] = ((slice(by, None), slice(None, -by)) if direction % 2
                                      else (slice(None, -by), slice(by, None)))
        part = np.zeros_like(moved[rows])
        part[tuple(target)] = images[rows][tuple(source)]
        moved[rows] = part
    return moved


Change = Callable[[Images, IntArray, int, float], Floats]
CHANGES: dict[str, Change] = {"noise": noise, "blur": blur, "rotation": turn, "shift": shift}


def changed_images(name: str, images: Images, row_ids: IntArray, seed: int, limits: tuple[float, float]) -> Floats:
    """By one of `CHANGES`. limits: the least and the greatest value of a pixel."""
    low, high = limits
    return np.clip(CHANGES[name](images, row_ids, seed, high - low), low, high)


ATTACKS = tuple(f"{name} {strength:g}" for strength in STRENGTHS for name in ("FGSM", "PGD"))
ABOUT = {
    ATTACKS[0]: "changed in one step to deceive the model, each pixel by at most this share of the range",
    ATTACKS[1]: f"the same in {EVALUATION_STEPS} steps",
    "noise": f"normal noise, {NOISE:.0%} of the range", "blur": f"a Gaussian blur of {BLUR:.1%} of the image's side",
    "rotation": f"turned by {TURN:g}°", "shift": f"moved by {SHIFT:.0%} of the side",
}
"""What each does, for a report."""


# ── judging ──
def sample(dataset: Dataset, seed: int, most: int) -> IntArray:
    """Positions in the test split of the rows that are judged, drawn at random;
    the same for every run with this seed."""
    rows = dataset.splits["test"].num_rows
    drawn = Permutation.of(rows, Purpose.ROBUSTNESS, seed).forward(np.arange(min(rows, most), dtype=np.int64))
    return np.sort(drawn)


def predict_changed(context: TrainContext, config: ImageConfig, predict: Callable[[Images], Floats],
                    gradient: Callable[[Images, IntArray], Images]) -> None:
    """This worker's share of the sample, changed in each of the ways and predicted;
    `section` shows what the driver finds.

    predict: images (B, H, W, C) float32 -> probabilities (B, K).
    gradient: of the loss at such images, given their labels (B,).
    """
    positions, size = sample(context.dataset, config.run.seed, config.eval.robustness_rows), config.eval.batch_size
    batches = [mine[start : start + size] for mine in (positions[part :: context.num_parts] for part in context.parts)
               for start in range(0, len(mine), size)]
    if not batches:
        return
    rows = [context.reader("test").take(batch) for batch in batches]
    for way in _ways(config.run.seed, pixel_range(context.dataset, config.data), gradient):
        if not context.extras.begins(of_changed_rows(way.name), way.passes):
            continue
        found: list[Answers] = []
        for done, of in enumerate(rows):
            context.update_status(phase=f"judging changed rows: {way.name}, {done:,} of {len(batches):,} batches")
            labels, ids = of["label"], of["row_id"]
            found.append((ids, labels, predict(way.change(of["image"].astype(np.float32), labels, ids))))
            context.heartbeat()
        context.write_predictions(of_changed_rows(way.name), Predictions.joined(found))


class _Way(NamedTuple):
    """How rows are changed, and how many passes through the model it takes to do so and to predict them."""

    name: str
    change: Callable[[Floats, IntArray, IntArray], Floats]
    """Of images, labels and row ids."""
    passes: int


def _ways(seed: int, limits: tuple[float, float], gradient: Callable[[Images, IntArray], Images]) -> Iterator[_Way]:
    """All of them, what takes least first: a gradient as much as three predictions."""
    low, high = limits

    def natural(name: str) -> Callable[[Floats, IntArray, IntArray], Floats]:
        return lambda images, labels, ids: changed_images(name, images, ids, seed, limits)

    def attack(strength: float, steps: int) -> Callable[[Floats, IntArray, IntArray], Floats]:
        def changed(images: Floats, labels: IntArray, ids: IntArray) -> Floats:
            start = None
            if steps > 1:
                uniforms = row_uniforms(Purpose.ATTACK, seed, 0, ids, int(np.prod(images.shape[1:])))
                start = (uniforms.reshape(images.shape) * 2 - 1).astype(np.float32)
            found = projected_gradient(images, lambda x: gradient(x, labels),
                                       Attack(strength * (high - low), steps, low, high), sign=np.sign, clip=np.clip,
                                       start=start)
            return found.astype(np.float32)

        return changed

    def untouched(images: Floats, labels: IntArray, ids: IntArray) -> Floats:
        return images

    yield _Way("untouched", untouched, 1)
    for name in CHANGES:
        yield _Way(name, natural(name), 1)
    for kind, steps in (("FGSM", 1), ("PGD", EVALUATION_STEPS)):
        for strength in STRENGTHS:
            yield _Way(f"{kind} {strength:g}", attack(strength, steps), 1 + 3 * steps)


def section(trained: TrainingResult) -> list[Section]:
    """Of the report: nothing where the config asks for no rows, or there was no time for a change."""
    if not trained.config.eval.robustness_rows:
        return []
    names = [name for name in ("untouched", *CHANGES, *ATTACKS) if trained.extras.has(of_changed_rows(name))]
    if len(names) < 2:
        return []
    results = {name: judge_split(trained, trained.predictions(of_changed_rows(name))) for name in names}
    return [robustness.section(results, about=ABOUT)]
