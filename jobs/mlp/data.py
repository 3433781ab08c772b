"""What goes into the MLP and what comes out. Imports no torch."""

from collections.abc import Sequence

from jobs.common.artifact import artifact
from jobs.common.artifact.manifest import Description
from jobs.common.report.html import Section
from jobs.common.training.job import EvaluationResult, TrainingResult, require_package
from jobs.common.vision.job import describe_images, image_sections
from jobs.mlp.config import MlpConfig

HOW_TO_LOAD = """from jobs.mlp.model import load
probabilities = load("ARTIFACT").predict(images)  # images: (rows, height, width, channels), as they were trained on"""


def check(config: MlpConfig) -> None:
    """Raises: ConfigError for a package that is not installed."""
    for package in ("torch", "captum"):
        require_package(package, "torch")


def describe(trained: TrainingResult, verdict: EvaluationResult) -> Description:
    """The artifact's manifest."""
    about = (f"A multi-layer perceptron with hidden layers of {_widths(trained.config.model.hidden)} units that tells "
             f"{len(trained.dataset.class_names)} classes of images apart.")
    return describe_images(trained, verdict, about=about, how_to_load=HOW_TO_LOAD, preprocessing={})


def files(trained: TrainingResult) -> dict[str, bytes]:
    """The weights of the best checkpoint: the model's own tensors of it."""
    tensors = trained.checkpoints.load(trained.best)
    own = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
    return {artifact.WEIGHTS: artifact.weights_file(own)}


def sections(trained: TrainingResult, verdict: EvaluationResult, made: artifact.Artifact) -> list[Section]:
    """Of the report, by the model as it is loaded back from its artifact."""
    from jobs.mlp.model import load

    return image_sections(trained, load(made.store))


def _widths(hidden: Sequence[int]) -> str:
    return " and ".join(map(str, hidden)) or "no"
