"""A module of yours: built by the function that the config names, checked before anything is trained, and loaded back.

    python -c "from jobs.pytorch.model import load; print(load('PATH/TO/artifact').predict(images))"

Shapes: B rows, H × W × C pixels, K classes.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateImportUsage=false

import functools

import torch
import torch.nn.functional as F  # noqa: N812  (the field's own name)
from torch import Tensor, nn

from jobs.common.artifact import artifact
from jobs.common.config import from_dict
from jobs.common.own_code import OwnModel, function_of_yours
from jobs.common.vision.build_info import BuildInfo
from jobs.pytorch.config import PytorchConfig
from jobs.pytorch.images.classifier import Classifier
from jobs.pytorch.own_module import Loss, Trial, build, build_to_train, fill_from


class OnPixels(nn.Module):
    """Pixels (B, H, W, C), of any type, to what a module makes of them as normalised floats (B, C, H, W)."""

    def __init__(self, module: nn.Module, info: BuildInfo) -> None:
        super().__init__()
        self.module = module
        # (x - mean) / std as one multiplication and addition; not parameters, the manifest keeps them.
        self.scale: Tensor
        self.offset: Tensor
        of_channels = (-1, 1, 1) if len(info.std) > 1 else ()  # one number is multiplied faster than a tensor of one
        std, mean = torch.tensor(info.std).view(of_channels), torch.tensor(info.mean).view(of_channels)
        self.register_buffer("scale", 1.0 / std, persistent=False)
        self.register_buffer("offset", -mean / std, persistent=False)
        self.shifted = any(info.mean)

    def forward(self, pixels: Tensor) -> Tensor:
        scaled = pixels.permute(0, 3, 1, 2).to(torch.float32, copy=True).mul_(self.scale)
        return self.module(scaled.add_(self.offset) if self.shifted else scaled)


def small_network(info: BuildInfo) -> nn.Module:
    """The one that is trained where none is named: three convolutions with batch normalisation, dropout,
    and a layer."""
    return nn.Sequential(
        nn.Conv2d(info.shape[2], 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, info.num_classes))


def new_model(config: PytorchConfig, info: BuildInfo) -> OnPixels:
    """The module with its first weights, a function of the run's seed.
    Raises: ConfigError for one that cannot be trained."""
    return OnPixels(build_to_train(config.own, info, config.run.seed), info)


def loss_of(config: PytorchConfig, label_smoothing: float = 0.0) -> Loss:
    """The function that the config names, else the cross entropy.
    Raises: ConfigError for a function that is not there."""
    name = config.model.loss
    if name is not None:
        return function_of_yours("--model.loss", name)
    return functools.partial(F.cross_entropy, label_smoothing=label_smoothing)


def trial(info: BuildInfo) -> Trial:
    """Black images."""
    height, width, channels = info.shape
    return Trial(inputs=lambda rows: (torch.zeros((rows, *info.shape), dtype=torch.uint8),),
                 targets=lambda rows: torch.zeros(rows, dtype=torch.int64),
                 batch=lambda rows: {"image": torch.zeros((rows, *info.shape), dtype=torch.uint8),
                                     "label": torch.zeros(rows, dtype=torch.int64), "row_id": torch.arange(rows)},
                 outputs=info.num_classes,
                 given=f"images (1, {channels}, {height}, {width})",
                 wanted=f"logits (1, {info.num_classes}), one a class")


def load(where: artifact.Where | artifact.Artifact) -> Classifier:
    """The model of an artifact, by the function that built it, which is imported: load only what you trust.

    Raises: ArtifactError, also if the weights are not of the module that the function builds now;
    ConfigError without it.
    """
    opened = artifact.as_artifact(where)
    about = opened.manifest.description
    info = BuildInfo(shape=tuple(about.preprocessing["shape"]), class_names=tuple(about.labels),
                     mean=tuple(about.preprocessing["mean"]), std=tuple(about.preprocessing["std"]),
                     model=from_dict(PytorchConfig, {"model": dict(about.config["model"])}).model)
    own = OwnModel.named(info.model.build, info.model.settings)
    model = OnPixels(build(own, info), info)
    fill_from(opened, model, own)
    return Classifier(model, about.labels, torch.tensor(info.mean).expand(1, *info.shape))
