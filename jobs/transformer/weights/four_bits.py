"""The layers that updates of low rank leave as they are, in 4 bits (QLoRA, Dettmers et al. 2023).

A weight becomes one of 16 values of a scale that it shares with 63 others (NF4, section 3); the scale stays a float32.
They are rounded so as the model is built, and packed where it is trained: to round again what was rounded changes
nothing, so whoever opens the artifact computes with the weights of training, on any device. bitsandbytes packs and
unpacks; its own layer packs once more on some CPUs as soon as it is evaluated, with scales in bfloat16.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateImportUsage=false

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

_BLOCK, _KIND = 64, "nf4"


def rounded(weights: Tensor) -> Tensor:
    """Returns float32 values that 4 bits hold exactly, of the same shape."""
    return _unpacked(*_packed(weights), weights.shape)


def round_layers(layers: Iterable[nn.Linear]) -> None:
    for layer in layers:
        layer.weight.data = rounded(layer.weight)


def pack(model: nn.Module) -> None:
    """Packs the rounded layers under a model's updates (peft's)."""
    from peft.tuners.lora import Linear

    for module in model.modules():
        if isinstance(module, Linear):
            module.base_layer = PackedLinear(module.base_layer)


class PackedLinear(nn.Module):
    """A linear layer that is not trained, and whose weights are unpacked where they are used."""

    packed: Tensor
    scales: Tensor

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        for name, values in zip(("packed", "scales"), _packed(layer.weight), strict=True):
            self.register_buffer(name, values, persistent=False)
        self.bias = layer.bias

    @property
    def weight(self) -> Tensor:
        """(out_features, in_features)"""
        return _unpacked(self.packed, self.scales, (self.out_features, self.in_features))

    @property
    def packed_weights(self) -> int:
        return self.in_features * self.out_features

    def forward(self, x: Tensor) -> Tensor:
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        made = _Product.apply(x, self)
        return made if self.bias is None else made + self.bias.to(made.dtype)


class _Product(torch.autograd.Function):
    """Unpacks the weights in the backward pass again, instead of keeping them for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: PackedLinear) -> Tensor:
        ctx.layer = layer
        return nn.functional.linear(x, layer.weight.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] @ ctx.layer.weight.to(gradients[0].dtype), None


def _packed(weights: Tensor) -> tuple[Tensor, Tensor]:
    from bitsandbytes.functional import quantize_4bit

    packed, state = quantize_4bit(weights.detach().float().contiguous(), blocksize=_BLOCK, quant_type=_KIND)
    return packed, state.absmax


def _unpacked(packed: Tensor, scales: Tensor, shape: tuple[int, ...]) -> Tensor:
    from bitsandbytes.functional import QuantState, dequantize_4bit

    about = QuantState(scales, torch.Size(shape), blocksize=_BLOCK, quant_type=_KIND, dtype=torch.float32)
    return dequantize_4bit(packed, about)
