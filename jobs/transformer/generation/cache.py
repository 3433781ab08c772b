"""The keys and values of texts that are continued together, with room for the tokens that come next:
a step writes its token, and copies none of those before it.

Shapes: B rows, T tokens, and of each token the heads and their size, which may be others for values than for keys.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateImportUsage=false

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (the field's own name)
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

_ROOM = 64
"""Tokens that a buffer has room for when it is made: this much memory of a row may be unused."""
States = Sequence[tuple[Tensor, Tensor]]
"""Keys and values of each layer: (B, heads, T, size)."""


class KeyValueCache(DynamicCache):
    """What transformers' models read and append to. Every layer keeps all tokens: rows can be put beside each other."""

    def __init__(self, states: States = ()) -> None:
        super().__init__()
        self.layers: list[Any] = [_Layer(*each) for each in states]
        self.layer_class_to_replicate = _Layer

    @property
    def states(self) -> States:
        return [(layer.keys, layer.values) for layer in self.layers]

    @property
    def width(self) -> int:
        """T."""
        return int(self.get_seq_length())

    def repeat(self, count: int) -> None:
        """Each row, so often."""
        if count > 1:
            self._change(lambda states: states.repeat_interleave(count, 0))

    def keep(self, rows: Tensor, width: int) -> None:
        """Of these rows, the last tokens."""
        self._change(lambda states: states[rows, :, -width:])

    def add(self, other: "KeyValueCache") -> None:
        """The rows of another cache below these."""
        width = max(self.width, other.width)
        for layer, its in zip(self.layers, other.layers, strict=True):
            layer.set(*(torch.cat([_widened(one, width), _widened(two, width)])
                        for one, two in ((layer.keys, its.keys), (layer.values, its.values))))

    def _change(self, change: Callable[[Tensor], Tensor]) -> None:
        for layer in self.layers:
            layer.set(change(layer.keys), change(layer.values))


class _Layer(DynamicLayer):
    """`keys` and `values` are the filled part of two buffers."""

    def __init__(self, *states: Tensor) -> None:
        super().__init__()
        if states:
            self.set(*states)

    def set(self, keys: Tensor, values: Tensor) -> None:
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self._buffers = self.keys, self.values = keys, values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.set(key_states, value_states)
            return key_states, value_states
        keys, values = self._buffers
        begin = self.get_seq_length()
        stop = begin + key_states.shape[2]
        if stop > keys.shape[2]:
            more = (0, 0, 0, stop - begin + _ROOM)
            self._buffers = keys, values = F.pad(keys[:, :, :begin], more), F.pad(values[:, :, :begin], more)
        keys[:, :, begin:stop], values[:, :, begin:stop] = key_states, value_states
        self.keys, self.values = keys[:, :, :stop], values[:, :, :stop]
        return self.keys, self.values


def _widened(states: Tensor, width: int) -> Tensor:
    """With T = width, zeros to the left."""
    return F.pad(states, (0, 0, width - states.shape[2], 0))
