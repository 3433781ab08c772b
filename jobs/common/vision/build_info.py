"""What a function of a user's own that builds a model for images is told, whatever the framework.

    --model.build MODULE:FUNCTION       called as FUNCTION(info)
"""

from dataclasses import dataclass
from typing import Any

from jobs.common.data.dataset import Dataset
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
