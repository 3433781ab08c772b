"""What goes into the CNN and what comes out. Imports no TensorFlow."""

import importlib.util

from cluster.core.errors import ConfigError
from cluster.core.storage import Store
from jobs.cnn.config import CnnConfig
from jobs.common.artifact.artifact import Artifact
from jobs.common.artifact.manifest import Description
from jobs.common.data.dataset import Dataset
from jobs.common.data.prepared import Say
from jobs.common.report.html import Section
from jobs.common.training.job import EvaluationResult, TrainingResult, require_package
from jobs.common.vision.dataset import ImageFacts
from jobs.common.vision.job import describe_images, image_sections, prepare_images

HOW_TO_LOAD = """from jobs.cnn.model import load
probabilities = load("ARTIFACT").predict(images)  # images: (rows, height, width, channels), as they were trained on
# or keras.saving.load_model("ARTIFACT/model.keras"), or onnxruntime.InferenceSession("ARTIFACT/model.onnx")"""
OWN = CnnConfig().model.build


def check(config: CnnConfig) -> None:
    """Raises: ConfigError for a package that is not installed, or a network whose module there is none of."""
    for package in ("tensorflow", "keras", "tf2onnx"):
        require_package(package, "tensorflow")
    module = config.model.build.partition(":")[0]
    try:
        known = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        known = False
    if not known:
        raise ConfigError(f"--model.build {config.model.build}: there is no module {module} here: it must be "
                          "MODULE:FUNCTION, importable from the folder that the job is started in, on every node")


def prepare(config: CnnConfig, storage: Store, *, use_ray: bool, say: Say) -> Dataset:
    """Raises: ConfigError for images smaller than the convolutions need."""
    dataset = prepare_images(config, storage, use_ray=use_ray, say=say)
    height, width, _ = ImageFacts.of(dataset).shape
    smallest = config.model.smallest_side
    if config.model.build == OWN and min(height, width) < smallest:
        raise ConfigError(f"--model.depth {config.model.depth}: its convolutions and poolings need images of "
                          f"{smallest}×{smallest} pixels or more, and these are {height}×{width}: pass a smaller "
                          "--model.depth, or --model.padding same")
    return dataset


def describe(trained: TrainingResult, verdict: EvaluationResult) -> Description:
    """The artifact's manifest."""
    model, classes = trained.config.model, len(trained.dataset.class_names)
    kind = (f"A convolutional network of {model.depth} blocks" if model.build == OWN
            else f"A network built by {model.build}")
    about = f"{kind} that tells {classes} classes of images apart."
    return describe_images(trained, verdict, about=about, how_to_load=HOW_TO_LOAD, preprocessing={})


def files(trained: TrainingResult) -> dict[str, bytes]:
    """The model of the best checkpoint."""
    from jobs.cnn.export import model_files  # imports TensorFlow

    return model_files(trained)


def sections(trained: TrainingResult, verdict: EvaluationResult, made: Artifact) -> list[Section]:
    """Of the report, by the model as it is loaded back from its artifact."""
    from jobs.cnn.model import load

    return image_sections(trained, load(made.store))
