"""The perceptron: built from a config, or loaded back from an artifact, without Ray.

    python -c "from jobs.mlp.model import load; print(load('PATH/TO/artifact').predict(images))"

Shapes: B rows, H × W × C pixels, K classes.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateImportUsage=false

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cluster.core.documents import parse_json
from jobs.common.artifact import artifact
from jobs.common.data.dataset import Dataset
from jobs.common.vision.dataset import ImageFacts
from jobs.common.vision.job import normalisation
from jobs.mlp.config import MlpConfig
from jobs.pytorch.images.classifier import Classifier


class Mlp(nn.Module):
    """Pixels (B, H, W, C), of any dtype, to logits (B, K). Normalises its input itself."""

    def __init__(self, shape: Sequence[int], num_classes: int, hidden: Sequence[int], dropout: float,
                 mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        widths = [math.prod(shape), *hidden]
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()] + ([nn.Dropout(dropout)] if dropout else [])
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], num_classes))
        # (x - mean) / std as one multiplication and addition; not parameters, the manifest keeps them.
        self.scale: Tensor
        self.offset: Tensor
        self.register_buffer("scale", _of_pixels(1.0 / torch.tensor(std), shape), persistent=False)
        self.register_buffer("offset", _of_pixels(-torch.tensor(mean) / torch.tensor(std), shape), persistent=False)
        self.shifted = any(mean)

    def forward(self, pixels: Tensor) -> Tensor:
        normalised = pixels.flatten(1).to(torch.float32, copy=True).mul_(self.scale)
        return self.layers(normalised.add_(self.offset) if self.shifted else normalised)


def _of_pixels(of_channels: Tensor, shape: Sequence[int]) -> Tensor:
    """(C,) to one value if all are alike, which is cheaper, else to (H · W · C,)."""
    return of_channels[0] if len(of_channels.unique()) == 1 else of_channels.expand(tuple(shape)).flatten()


def new_model(config: MlpConfig, dataset: Dataset) -> Mlp:
    """For these images and classes, with random weights by the run's seed."""
    torch.manual_seed(config.run.seed)
    images = ImageFacts.of(dataset)
    mean, std = normalisation(images, config.model.normalise)
    return Mlp(images.shape, len(dataset.class_names), config.model.hidden, config.model.dropout, mean, std)


def classifier(model: Mlp, shape: tuple[int, int, int], labels: Sequence[str]) -> Classifier:
    """A trained perceptron as an application sees it. shape: of an image."""
    return Classifier(model, labels, (-model.offset / model.scale).expand(math.prod(shape)).reshape(1, *shape))


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """What a manifest says of the network."""

    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    hidden: tuple[int, ...]
    dropout: float


def load(where: artifact.Where | artifact.Artifact) -> Classifier:
    """The model of an artifact: a verified one, or one in a folder, a URI or a store, which is verified first.

    Raises: ArtifactError.
    """
    opened = artifact.as_artifact(where)
    about = opened.manifest.description
    try:
        stored = parse_json(json.dumps({**about.preprocessing, **dict(about.config.get("model", {}))}), _Stored)
        weights = {name: torch.from_numpy(array) for name, array in opened.weights().items()}
        if sum(each.numel() for each in weights.values()) != _num_weights(stored, len(about.labels)):
            raise ValueError(f"{artifact.WEIGHTS} does not hold the network that the manifest describes")
        model = Mlp(stored.shape, len(about.labels), stored.hidden, stored.dropout, stored.mean, stored.std)
        model.load_state_dict(weights)
    except (ValueError, TypeError, RuntimeError) as error:
        raise artifact.refused(opened.uri, [" ".join(str(error).split())]) from error
    return classifier(model, stored.shape, about.labels)


def _num_weights(stored: _Stored, num_classes: int) -> int:
    """Before memory is taken for what a manifest says."""
    widths = [math.prod(stored.shape), *stored.hidden, num_classes]
    return sum((fan_in + 1) * fan_out for fan_in, fan_out in itertools.pairwise(widths))
