"""A module of yours: built by the function that the config names, checked before anything is trained, and loaded back.

    python -c "from jobs.pytorch.model import load; print(load('PATH/TO/artifact').predict(images))"

Shapes: B rows, H × W × C pixels, K classes.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateImportUsage=false

import copy
import functools

import torch
import torch.nn.functional as F  # noqa: N812  (the field's own name)
from torch import Tensor, nn

from cluster.core.errors import ConfigError
from jobs.common.artifact import artifact
from jobs.common.config import from_dict
from jobs.common.vision.build_info import BuildInfo, called, function_of_yours
from jobs.pytorch.config import PytorchConfig
from jobs.pytorch.images.classifier import Classifier
from jobs.pytorch.images.training import Loss


class OnPixels(nn.Module):
    """Pixels (B, H, W, C), of any type, to what a module makes of them as normalised floats (B, C, H, W)."""

    def __init__(self, module: nn.Module, info: BuildInfo) -> None:
        super().__init__()
        self.module = module
        # (x - mean) / std as one multiplication and addition; not parameters, the manifest keeps them.
        self.scale: Tensor
        self.offset: Tensor
        std, mean = torch.tensor(info.std).view(-1, 1, 1), torch.tensor(info.mean).view(-1, 1, 1)
        self.register_buffer("scale", 1.0 / std, persistent=False)
        self.register_buffer("offset", -mean / std, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.module(pixels.permute(0, 3, 1, 2).to(torch.float32) * self.scale + self.offset)


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
    torch.manual_seed(config.run.seed)
    model = _built(config.model.build, info)
    if not any(each.requires_grad for each in model.parameters()):
        raise ConfigError(f"--model.build {config.model.build}: its module has no parameter that is trained: leave "
                          "requires_grad of some as it is")
    return model


def _built(name: str, info: BuildInfo) -> OnPixels:
    """Raises: ConfigError if the function is not there, raises, or returns something else."""
    module = called(f"--model.build {name}", function_of_yours("--model.build", name), info)
    if not isinstance(module, nn.Module):
        raise ConfigError(f"--model.build {name} gave {module!r}: it must return a torch.nn.Module")
    return OnPixels(module, info)


def loss_of(config: PytorchConfig, label_smoothing: float = 0.0) -> Loss:
    """The function that the config names, else the cross entropy.
    Raises: ConfigError for a function that is not there."""
    name = config.model.loss
    if name is not None:
        return function_of_yours("--model.loss", name)
    return functools.partial(F.cross_entropy, label_smoothing=label_smoothing)


def check(config: PytorchConfig, model: OnPixels, info: BuildInfo, rows_per_pass: int) -> None:
    """Tries one pass forward and back, on a copy and on black images.
    Raises: ConfigError that says what does not fit."""
    name, tried = config.model.build, copy.deepcopy(model)
    seen = called(f"--model.build {name}", tried.eval(), torch.zeros((1, *info.shape), dtype=torch.uint8))
    if not isinstance(seen, Tensor) or seen.shape != (1, info.num_classes):
        said = tuple(seen.shape) if isinstance(seen, Tensor) else type(seen).__name__
        raise ConfigError(f"--model.build {name}: for images (1, {info.shape[2]}, {info.shape[0]}, {info.shape[1]}) "
                          f"its module gives {said}: it must give logits (1, {info.num_classes}), one a class")
    images = torch.zeros((rows_per_pass, *info.shape), dtype=torch.uint8)
    logits = called(f"--model.build {name}", tried.train(), images,
                    hint=f" (it is trained on {rows_per_pass} rows at a time: --train.global-batch-size over the most "
                         "workers)")
    labels = torch.zeros(rows_per_pass, dtype=torch.int64)
    loss = called(f"--model.loss {config.model.loss}", loss_of(config), logits, labels)
    if not isinstance(loss, Tensor) or loss.dim():
        said = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise ConfigError(f"--model.loss {config.model.loss} gives {said}: it must give one number, the mean over the "
                          "rows")
    if not loss.requires_grad:
        raise ConfigError(f"--model.loss {config.model.loss}: it does not depend on the module's parameters: compute "
                          "it from the logits, without .detach(), .item() or torch.no_grad()")


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
    name = about.config["model"]["build"]
    model = _built(name, info)
    try:
        model.load_state_dict({key: torch.from_numpy(array) for key, array in opened.weights().items()})
    except RuntimeError as error:
        raise artifact.refused(opened.uri,
                               [f"{name} builds another module now: {' '.join(str(error).split())}"]) from error
    return Classifier(model, about.labels, torch.tensor(info.mean).expand(1, *info.shape))
