"""What goes into a module of yours and what comes out of it. Imports no torch."""

from collections.abc import Sequence
from dataclasses import replace

from jobs.common.artifact import artifact
from jobs.common.artifact.manifest import Description
from jobs.common.declared_metrics import Metric, chosen, classification
from jobs.common.evaluation.own_metrics import with_own
from jobs.common.own_code import function_of_yours
from jobs.common.predictor.onnx_model import MODEL
from jobs.common.report.html import Section
from jobs.common.training.job import EvaluationResult, TrainingResult, require_package
from jobs.common.vision.job import describe_images, image_sections
from jobs.common.vision.judging import judge_images
from jobs.pytorch.config import PytorchConfig

HOW_TO_LOAD = """from jobs.pytorch.model import load  # imports {build}
probabilities = load("ARTIFACT").predict(images)  # images: (rows, height, width, channels), as they were trained on"""


def check(config: PytorchConfig) -> None:
    """Raises: ConfigError for a package that is not installed, or a function that is not there."""
    for package in ("torch", "captum"):
        require_package(package, "torch")
    chosen(metrics(config), config.metric)
    if config.model.loss is not None:
        function_of_yours("--model.loss", config.model.loss)


def metrics(config: PytorchConfig) -> Sequence[Metric]:
    """Every classifier's, and those that a user's class declares. Raises: ConfigError."""
    return [*classification(config.eval.top_k), *config.own.metrics]


def judge_module(trained: TrainingResult) -> EvaluationResult:
    """As `judge_images`, with the figures that a user's class declares."""
    found = judge_images(trained)
    return replace(found, metrics=with_own(trained, trained.config.own, found.metrics))


def describe(trained: TrainingResult, verdict: EvaluationResult) -> Description:
    """The artifact's manifest."""
    build = trained.config.model.build
    about = f"The module of {build}, that tells {len(trained.dataset.class_names)} classes of images apart."
    return describe_images(trained, verdict, about=about, how_to_load=HOW_TO_LOAD.format(build=build), preprocessing={})


def files(trained: TrainingResult) -> dict[str, bytes]:
    """The weights of the best checkpoint;
    and, if it can be written, their graph, which needs none of your code to answer."""
    from jobs.pytorch.images.graph import graph_of

    tensors = trained.checkpoints.load(trained.best)
    own = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
    graph = graph_of(trained, own)
    return {artifact.WEIGHTS: artifact.weights_file(own)} | ({MODEL: graph} if graph else {})


def sections(trained: TrainingResult, verdict: EvaluationResult, made: artifact.Artifact) -> list[Section]:
    """Of the report, by the model as it is loaded back from its artifact."""
    from jobs.pytorch.model import load

    return image_sections(trained, load(made.store))
