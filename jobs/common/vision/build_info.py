"""A function of a user's own that builds a model, whatever the framework: what it is told, and how its errors are said.

    --model.build MODULE:FUNCTION       called as FUNCTION(info)
"""

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
    model: Any
    """The config's group `model`."""

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @staticmethod
    def of(dataset: Dataset, model: Any) -> "BuildInfo":
        """model: the config's group of this name, which says what inputs are normalised by."""
        images = ImageFacts.of(dataset)
        mean, std = normalisation(images, model.normalise)
        return BuildInfo(shape=images.shape, class_names=tuple(dataset.class_names), mean=mean, std=std, model=model)


def function_of_yours(option: str, name: str) -> Callable[..., Any]:
    """The function that `module:name` names. Raises: ConfigError, naming the option."""
    try:
        return load_object(name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{option} {name}: {error}; it must be MODULE:FUNCTION, importable where the job "
                          "runs") from error


def called(option: str, function: Callable[..., Any], *given: object, hint: str = "") -> Any:
    """What a user's code gives. option: and the function's name. Raises: ConfigError with what it raises, and where."""
    try:
        return function(*given)
    except Exception as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = f", in {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else ""
        raise ConfigError(f"{option}: {type(error).__name__}: {' '.join(str(error).split())}{where}{hint}") from error
