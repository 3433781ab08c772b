"""Modules and losses that a user might bring to the PyTorch job, good, bad, and for what a test wants to see."""

import torch
import torch.nn.functional as F  # noqa: N812  (the field's own name)
from torch import Tensor, nn

from jobs.common.vision.build_info import BuildInfo


def normalised(info: BuildInfo) -> nn.Module:
    """Has batch normalisation, and its logits are in large part what dropout draws.
    No kinks, at which rounding would decide."""
    height, width, channels = info.shape
    return nn.Sequential(nn.BatchNorm2d(channels), nn.Conv2d(channels, 6, 3, padding=1), nn.Tanh(), nn.BatchNorm2d(6),
                         nn.Flatten(),
                         nn.Dropout(0.3), nn.Linear(6 * height * width, info.num_classes))


def frozen(info: BuildInfo) -> nn.Module:
    """Its first layer is not trained."""
    first = nn.Linear(info.shape[0] * info.shape[1] * info.shape[2], 16)
    for each in first.parameters():
        each.requires_grad_(False)
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), nn.Linear(16, info.num_classes))


class Tied(nn.Module):
    """Two layers with the same weights."""

    def __init__(self, info: BuildInfo) -> None:
        super().__init__()
        size = info.shape[0] * info.shape[1] * info.shape[2]
        self.first, self.second, self.last = (nn.Linear(size, size), nn.Linear(size, size),
                                              nn.Linear(size, info.num_classes))
        self.second.weight = self.first.weight

    def forward(self, images: Tensor) -> Tensor:
        return self.last(torch.tanh(self.second(torch.tanh(self.first(images.flatten(1))))))


def small(info: BuildInfo) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(info.shape[0] * info.shape[1] * info.shape[2], info.num_classes))


def flattened_norm(info: BuildInfo) -> nn.Module:
    """Batch normalisation of single numbers: one row has no deviation."""
    size = info.shape[0] * info.shape[1] * info.shape[2]
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(size), nn.Linear(size, info.num_classes))


class _Sorted(nn.Module):
    """What the exporter cannot write."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.special.erfcx(images.flatten(1))


def not_for_onnx(info: BuildInfo) -> nn.Module:
    return nn.Sequential(_Sorted(), nn.Linear(info.shape[0] * info.shape[1] * info.shape[2], info.num_classes))


def raises(info: BuildInfo) -> nn.Module:
    return nn.Linear(info.shape[3], 1)  # type: ignore[misc]


def no_module(info: BuildInfo) -> object:
    return info.shape


def no_parameters(info: BuildInfo) -> nn.Module:
    return nn.Flatten()


def one_too_few(info: BuildInfo) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(info.shape[0] * info.shape[1] * info.shape[2], info.num_classes - 1))


class _TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, images: Tensor, age: Tensor) -> Tensor:
        return self.layer(images + age)


def two_inputs(info: BuildInfo) -> nn.Module:
    return _TwoInputs()


# ── losses ──
def focal(logits: Tensor, labels: Tensor) -> Tensor:
    """Lin et al. 2017, equation 4, with a gamma of 2."""
    cross_entropy = F.cross_entropy(logits, labels, reduction="none")
    return ((1 - torch.exp(-cross_entropy)) ** 2 * cross_entropy).mean()


def of_each_row(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


def detached(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.detach(), labels)
