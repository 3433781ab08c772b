"""Images as they deceive a model most, in training and for the report."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateImportUsage=false

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812  (the field's own name)
from torch import Tensor, nn

from jobs.common.arrays import Array
from jobs.common.training.context import TrainContext
from jobs.common.vision.config import ImageConfig
from jobs.common.vision.robustness import Attack, predict_changed, projected_gradient


def attacked(forward: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, attack: Attack) -> Tensor:
    """The images as they deceive the model most (PGD)."""
    start = torch.rand_like(images) * 2 - 1
    return projected_gradient(images, lambda x: gradient_of_loss(forward, x, labels), attack, sign=torch.sign,
                              clip=torch.clamp, start=start)


def gradient_of_loss(forward: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> Tensor:
    """Of each row's cross entropy, with respect to its pixels (B, H, W, C);
    the parameters' own gradients stay as they are."""
    pixels = images.detach().requires_grad_()
    with torch.enable_grad():
        loss = F.cross_entropy(forward(pixels).float(), labels, reduction="sum")
        return torch.autograd.grad(loss, pixels)[0]


def predict_changed_rows(context: TrainContext, model: nn.Module, config: ImageConfig, device: torch.device) -> None:
    """Predicts this worker's share of the rows that the report shows changed, by the world and by an adversary."""
    def probabilities(images: Array) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            return torch.softmax(model(torch.from_numpy(images).to(device)), 1).cpu().numpy()

    def gradient(images: Array, labels: npt.NDArray[np.int64]) -> Array:
        pixels = torch.from_numpy(images.astype(np.float32, copy=False)).to(device)
        return gradient_of_loss(model, pixels, torch.from_numpy(labels).to(device)).cpu().numpy()

    predict_changed(context, config, probabilities, gradient)
