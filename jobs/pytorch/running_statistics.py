"""What a module keeps beside its weights and changes as it trains, such as the means of batch normalisation.

Each shard's micro-batch begins with what the step began with, and the step ends with the mean over all shards: so it
does not matter which worker owns which shard. As weights, they are in a checkpoint and in the artifact.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Collection, Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class RunningStatistics:
    """The buffers of a module that its `state_dict` holds. Those that are no floats, such as counts, are as the last
    shard left them: every shard takes as many passes.
    """

    def __init__(self, module: nn.Module, num_shards: int, resting: Collection[nn.Module] = ()) -> None:
        """resting: parts of the module whose buffers stay as they are."""
        kept = module.state_dict(keep_vars=True).keys()
        still = {id(each) for part in resting for each in part.buffers()}
        self._module, self._names = module, [name for name, buffer in module.named_buffers()
                                             if name in kept and id(buffer) not in still]
        self._num_shards = num_shards
        self._start: list[Tensor] = []
        self.sums: list[Tensor] = []
        """Of this worker's shards, in a step; then, once they were added up, of all."""

    def buffers(self) -> list[Tensor]:
        """As they are now: a module may put another tensor in one's place."""
        return [self._module.get_buffer(name) for name in self._names]

    @contextmanager
    def kept(self) -> Generator[None]:
        """Leaves them as they were, whatever is done with the module meanwhile, such as judging a part of the rows."""
        before = [(name, buffer, buffer.clone()) for name, buffer in zip(self._names, self.buffers(), strict=True)]
        try:
            yield
        finally:
            for name, buffer, start in before:
                path, _, last = name.rpartition(".")
                setattr(self._module.get_submodule(path), last, buffer)  # that itself: another one may be in its place
                buffer.copy_(start)

    def begin_step(self) -> None:
        self._start = [buffer.clone() for buffer in self.buffers()]
        self.sums = [torch.zeros_like(buffer) for buffer in self.of_shard()]

    def begin_shard(self) -> None:
        for buffer, start in zip(self.buffers(), self._start, strict=True):
            buffer.detach_().copy_(start)

    def end_shard(self) -> None:
        for total, buffer in zip(self.sums, self.of_shard(), strict=True):
            total.add_(buffer)

    def of_shard(self) -> list[Tensor]:
        """As the shard has left them; those that are no floats are not among them."""
        return [buffer.detach() for buffer in self.buffers() if buffer.is_floating_point()]

    def end_step(self, *, taken: bool) -> None:
        """Takes the mean over all shards; or, if the step was not taken, what was there before."""
        if taken:
            for buffer, total in zip(self.of_shard(), self.sums, strict=True):
                buffer.copy_(total.div_(self._num_shards))
            self._start = []
        else:
            self.undo_step()

    def undo_step(self) -> None:
        """Puts back what was there before a step that has begun and not ended, if there is one."""
        if self._start:
            self.begin_shard()
        self._start = []
