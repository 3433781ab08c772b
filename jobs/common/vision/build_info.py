"""What a function of yours that builds a model is told, whatever the framework: `--model.build MODULE:FUNCTION`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cluster.core.errors import ConfigError
from jobs.common.data.dataset import Dataset
from jobs.common.execution.worker import load as load_object
from jobs.common.vision.dataset import ImageFacts
from jobs.common.vision.job import normalisation


@dataclass(frozen=True, kw_only=True)
class BuildInfo:
    """The data that a model is built for."""

    shape: tuple[int, int, int]
    """Of an image: height, width, channels."""
    class_names: tuple[str, ...]
    """In the order of the labels, from 0."""
    mean: tuple[float, ...]
    """Of each channel, in pixel units: what inputs are normalised by, with `std`."""
    std: tuple[float, ...]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @staticmethod
    def of(dataset: Dataset, normalise: str) -> "BuildInfo":
        images = ImageFacts.of(dataset)
        mean, std = normalisation(images, normalise)
        return BuildInfo(shape=images.shape, class_names=tuple(dataset.class_names), mean=mean, std=std)


def function_of_yours(option: str, name: str) -> Callable[..., Any]:
    """The function that `module:name` names. Raises: ConfigError, naming the option."""
    try:
        return load_object(name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{option} {name}: {error}; it must be MODULE:FUNCTION, importable where the job "
                          "runs") from error
