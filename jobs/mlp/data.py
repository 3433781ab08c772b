"""What goes into the MLP and what comes out, and the job as the common life cycle sees it. Imports no torch."""

from collections.abc import Sequence

import numpy as np

from cluster.storage import Store
from jobs.common import artifact
from jobs.common.artifact_manifest import Description
from jobs.common.attributions import ImageAttribution, image_section
from jobs.common.classification import judge_images
from jobs.common.config import to_dict
from jobs.common.dataset import Dataset
from jobs.common.evaluation import worst_mistakes
from jobs.common.images import ImageFacts
from jobs.common.job import Job, Trained, Verdict, require_package
from jobs.common.open_inference import TensorSpec
from jobs.common.permutation import FloatArray, IntArray
from jobs.common.predictions import Predictions
from jobs.common.prepare import prepare
from jobs.common.prepared import Say
from jobs.common.report_page import Section
from jobs.mlp.config import MlpConfig

HOW_TO_LOAD = """from jobs.mlp.model import load
probabilities = load("ARTIFACT").predict(images)  # images: (rows, height, width, channels), as they were trained on"""
EXPLAINED_RIGHT, EXPLAINED_WRONG, MEAN_OF_ROWS = 5, 5, 256


def check(config: MlpConfig) -> None:
    """Raises: ConfigError for a package that is not installed."""
    for package in ("torch", "captum"):
        require_package(package, "torch")


def prepare_images(config: MlpConfig, storage: Store, *, use_ray: bool, say: Say) -> Dataset:
    return prepare(config.data, storage, use_ray=use_ray, say=say)


def normalisation(images: ImageFacts, kind: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation, per channel and in pixel units, that inputs are normalised by."""
    if kind == "standard":
        return images.mean, images.std
    channels = images.shape[2]
    return (0.0,) * channels, (255.0 if images.dtype == "uint8" else 1.0,) * channels


def describe(trained: Trained, verdict: Verdict) -> Description:
    """The artifact's manifest."""
    config, dataset, images = trained.config, trained.dataset, ImageFacts.of(trained.dataset)
    mean, std = normalisation(images, config.model.normalise)
    return Description(
        job="mlp", task="image-classification",
        inputs=(TensorSpec(name="image", datatype={"uint8": "UINT8", "float32": "FP32"}[images.dtype],
                           shape=(-1, *images.shape)),),
        outputs=(TensorSpec(name="probabilities", datatype="FP32", shape=(-1, len(dataset.class_names))),),
        labels=dataset.class_names,
        preprocessing={"mean": list(mean), "std": list(std), "shape": list(images.shape)},
        metrics=verdict.metrics, config=to_dict(config), data=dataset.describe(),
        about=f"A multi-layer perceptron with hidden layers of {_widths(config.model.hidden)} units that tells "
              f"{len(dataset.class_names)} classes of images apart.",
        limits=("It knows only the classes that it was trained on, and answers with one of them whatever it is shown.",
                "Images must have the size, range and look of the training images."),
        how_to_load=HOW_TO_LOAD,
    )


def files(trained: Trained) -> dict[str, bytes]:
    """The weights of the best checkpoint: the model's own tensors of it."""
    tensors = trained.checkpoints.load(trained.best)
    own = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
    return {artifact.WEIGHTS: artifact.weights_file(own)}


def sections(trained: Trained, verdict: Verdict, made: artifact.Artifact) -> list[Section]:
    """Of the report: some test rows, and what the model, loaded back from its artifact, rests its answers for them on."""
    from jobs.mlp.model import load

    model, test = load(made.store), trained.predictions("test")
    positions = explained_rows(test)
    images, labels, names = trained.rows("test", positions)["image"], test.labels[positions], trained.dataset.class_names
    probabilities = model.predict(images)
    said = probabilities.argmax(1)
    attributions, gaps = model.explain(images, said, mean_image(trained))
    rows = [ImageAttribution(pixels=images[i], attribution=attributions[i], label=names[int(labels[i])],
                             predicted=names[int(said[i])], confidence=float(probabilities[i, said[i]]), gap=float(gaps[i]))
            for i in range(len(positions))]
    return [image_section(rows)]


def explained_rows(test: Predictions) -> IntArray:
    """Positions in a split: up to five rows that are right, of different classes first, and up to five mistakes, surest first."""
    right = np.flatnonzero(test.probabilities.argmax(1) == test.labels)
    firsts = right[np.sort(np.unique(test.labels[right], return_index=True)[1])]
    varied = np.concatenate([firsts, np.setdiff1d(right, firsts)])
    return np.concatenate([varied[:EXPLAINED_RIGHT], worst_mistakes(test.probabilities, test.labels, EXPLAINED_WRONG)])


def mean_image(trained: Trained) -> FloatArray:
    """(H, W, C), in pixel units: the mean of at most 256 training rows, spread evenly over the split."""
    num_rows = trained.dataset.splits["train"].num_rows
    positions = np.unique(np.linspace(0, num_rows - 1, min(MEAN_OF_ROWS, num_rows)).astype(np.int64))
    return trained.rows("train", positions)["image"].mean(axis=0, dtype=np.float64)


def _widths(hidden: Sequence[int]) -> str:
    return " and ".join(map(str, hidden)) or "no"


JOB = Job(
    name="mlp", config_type=MlpConfig, config_path="jobs.mlp.config:MlpConfig", train="jobs.mlp.train:train",
    check=check, prepare=prepare_images, judge=judge_images, describe=describe, files=files, sections=sections,
)
