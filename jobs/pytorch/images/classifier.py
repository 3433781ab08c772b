"""A trained PyTorch module as an application sees it: it predicts, and explains.

Shapes: B rows, H × W × C pixels, K classes.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from jobs.common.arrays import Array

EXPLAIN_STEPS = 50


class Classifier:
    """model: from pixels (B, H, W, C) to logits (B, K).
    even: (1, H, W, C), an image that says nothing, in pixel units."""

    def __init__(self, model: nn.Module, labels: Sequence[str], even: Tensor) -> None:
        self.model, self.labels, self._even = model.eval(), tuple(labels), even

    @torch.inference_mode()
    def predict(self, images: Array) -> npt.NDArray[np.float32]:
        """images: (B, H, W, C) as in the training data. Returns probabilities (B, K)."""
        return torch.softmax(self.model(torch.from_numpy(np.ascontiguousarray(images))).float(), dim=1).numpy()

    def explain(self, images: Array, target: Array | None = None,
                baseline: Array | None = None) -> tuple[npt.NDArray[np.float32], ...]:
        """How much each pixel speaks for a class: integrated gradients of its log odds, ln(p / (1 - p)).

        images: (B, H, W, C) as in the training data. target: (B,) class indices; None: the predicted ones. baseline:
        (H, W, C) or (B, H, W, C), the images that they are compared with; None: the even image that the model's
        normalisation takes to zero, which is the training pixels' mean ("standard") or black ("unit").
        A pixel that is as in the baseline gets 0.

        Returns attributions (B, H, W, C), completeness gaps (B,), and what the attributions sum to but for these (B,):
        see `integrated_gradients`, which needs captum.
        """
        from jobs.pytorch.attribution import integrated_gradients

        pixels = torch.from_numpy(np.asarray(images, np.float32))
        classes = torch.from_numpy(self.predict(images).argmax(1) if target is None else np.asarray(target, np.int64))
        start = self._even if baseline is None else torch.from_numpy(np.asarray(baseline, np.float32))
        found = integrated_gradients(self.model, pixels, start.reshape(-1, *pixels.shape[1:]), classes, EXPLAIN_STEPS)
        return tuple(each.numpy() for each in found)
