"""What image jobs have in common around their network: its input, its artifact's description,
and the report's own pages."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cluster.core.storage import Store
from jobs.common.arrays import Array
from jobs.common.artifact.manifest import Description
from jobs.common.artifact.tensor_spec import TensorSpec
from jobs.common.config import to_dict
from jobs.common.data.counter_rng import FloatArray, IntArray
from jobs.common.data.dataset import Dataset
from jobs.common.data.prepared import Say
from jobs.common.evaluation.metrics import worst_mistakes
from jobs.common.extras import EXPLANATIONS
from jobs.common.report.attributions import ImageAttribution, image_section
from jobs.common.report.html import Section
from jobs.common.training.job import EvaluationResult, TrainingResult
from jobs.common.training.predictions import Predictions
from jobs.common.vision import robustness as image_robustness
from jobs.common.vision.config import ImageConfig
from jobs.common.vision.dataset import ImageFacts
from jobs.common.vision.prepare import prepare

EXPLAINED_RIGHT, EXPLAINED_WRONG = 5, 5
LIMITS = ("It knows only the classes that it was trained on, and answers with one of them whatever it is shown.",
          "Images must have the size, range and look of the training images.")


class Explained(Protocol):
    """A classifier as the report's pages use it: the jobs' own, loaded back from an artifact."""

    def predict(self, images: Array) -> npt.NDArray[np.float32]:
        """(B, H, W, C) -> probabilities (B, K)."""
        ...

    def explain(self, images: Array, target: Array | None = None,
                baseline: Array | None = None) -> tuple[npt.NDArray[np.float32], ...]:
        """Integrated gradients (B, H, W, C), completeness gaps (B,),
        and what the gradients sum to but for these (B,)."""
        ...


def prepare_images(config: ImageConfig, storage: Store, *, use_ray: bool, say: Say) -> Dataset:
    return prepare(config.data, storage, use_ray=use_ray, say=say)


def normalisation(images: ImageFacts, kind: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation, per channel and in pixel units, that inputs are normalised by."""
    if kind == "standard":
        return images.mean, images.std
    channels = images.shape[2]
    return (0.0,) * channels, (255.0 if images.dtype == "uint8" else 1.0,) * channels


def describe_images(trained: TrainingResult, verdict: EvaluationResult, *, about: str, how_to_load: str,
                    preprocessing: Mapping[str, object]) -> Description:
    """The artifact's manifest. about: what the model is, a sentence. preprocessing: beside the normalisation."""
    dataset, images = trained.dataset, ImageFacts.of(trained.dataset)
    mean, std = normalisation(images, trained.config.model.normalise)
    return Description(
        job=trained.job, task="image-classification",
        inputs=(TensorSpec(name="image", datatype={"uint8": "UINT8", "float32": "FP32"}[images.dtype],
                           shape=(-1, *images.shape)),),
        outputs=(TensorSpec(name="probabilities", datatype="FP32", shape=(-1, len(dataset.class_names))),),
        labels=dataset.class_names,
        preprocessing={"mean": list(mean), "std": list(std), "shape": list(images.shape),
                       "picture": trained.config.data.picture.to_dict(), **preprocessing},
        metrics=verdict.metrics, config=to_dict(trained.config), data=dataset.describe(), about=about, limits=LIMITS,
        how_to_load=how_to_load,
    )


def image_sections(trained: TrainingResult, model: Explained) -> list[Section]:
    """Of the report: some test rows, and what the model rests its answers for them on;
    and how it does on changed images."""
    explained = [_explained(trained, model)] if trained.extras.begins(EXPLANATIONS) else []
    return [*explained, *image_robustness.section(trained)]


def _explained(trained: TrainingResult, model: Explained) -> Section:
    test = trained.predictions("test")
    positions = explained_rows(test)
    images, labels, names = (trained.rows("test", positions)["image"], test.labels[positions],
                             trained.dataset.class_names)
    probabilities = model.predict(images)
    said = probabilities.argmax(1)
    attributions, gaps, _ = model.explain(images, said, mean_image(trained))
    regions = getattr(model, "regions", None)
    seen = regions(images, said) if regions else [None] * len(positions)
    rows = [ImageAttribution(pixels=images[i], attribution=attributions[i], region=seen[i], label=names[int(labels[i])],
                             predicted=names[int(said[i])], confidence=float(probabilities[i, said[i]]),
                             gap=float(gaps[i]))
            for i in range(len(positions))]
    return image_section(rows)


def explained_rows(test: Predictions) -> IntArray:
    """Positions in a split: up to five rows that are right, of different classes first, and up to five mistakes,
    surest first."""
    right = np.flatnonzero(test.probabilities.argmax(1) == test.labels)
    firsts = right[np.sort(np.unique(test.labels[right], return_index=True)[1])]
    varied = np.concatenate([firsts, np.setdiff1d(right, firsts)])
    return np.concatenate([varied[:EXPLAINED_RIGHT], worst_mistakes(test.probabilities, test.labels, EXPLAINED_WRONG)])


def mean_image(trained: TrainingResult) -> FloatArray:
    """(H, W, C), in pixel units: the mean of at most 256 training rows, spread evenly over the split."""
    return image_robustness.some_rows(trained.dataset, trained.config.data).mean(axis=0, dtype=np.float64)
