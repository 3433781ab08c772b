"""What a module keeps beside its weights and changes as it trains, such as the means of batch normalisation.

Each shard's micro-batch begins with what the step began with, and the step ends with the mean over all shards: so it
does not matter which worker owns which shard. As weights, they are in a checkpoint and in the artifact.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import torch
from torch import Tensor, nn


class RunningStatistics:
    """The buffers of a module that its `state_dict` holds. Those that are no floats, such as counts, are as the last
    shard left them: every shard takes as many passes.
    """

    def __init__(self, module: nn.Module, num_shards: int) -> None:
        kept = module.state_dict(keep_vars=True).keys()
        self._all = [buffer for name, buffer in module.named_buffers() if name in kept]
        self._floats = [buffer for buffer in self._all if buffer.is_floating_point()]
        self._num_shards = num_shards
        self._start: list[Tensor] = []
        self.sums: list[Tensor] = []
        """Of this worker's shards, in a step; then, once they were added up, of all."""

    def begin_step(self) -> None:
        self._start = [buffer.clone() for buffer in self._all]
        self.sums = [torch.zeros_like(buffer) for buffer in self._floats]

    def begin_shard(self) -> None:
        for buffer, start in zip(self._all, self._start, strict=True):
            buffer.copy_(start)

    def end_shard(self) -> None:
        for total, buffer in zip(self.sums, self._floats, strict=True):
            total.add_(buffer)

    def end_step(self, *, taken: bool) -> None:
        """Takes the mean over all shards; or, if the step was not taken, what was there before."""
        if not taken:
            self.begin_shard()
            return
        for buffer, total in zip(self._floats, self.sums, strict=True):
            buffer.copy_(total.div_(self._num_shards))
