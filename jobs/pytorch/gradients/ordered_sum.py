"""A sum over all shards in the order of their numbers, whichever worker has computed which: so its bits do not depend
on how many workers there are.

Worker r of W owns the shards r, r + W, r + 2W, …: the first shards of all workers are neighbours, and so are the
second. In each such round every worker gets one slice of each shard, and adds them to its slice of the sum in the
shards' order; at the end it gives that slice to all. Over V shards a worker sends (V/W + 1) (W - 1)/W times the size:
as much as a ring's all-reduce where W = V. Two shards on two workers are one addition, which an all-reduce makes.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateImportUsage=false

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from jobs.pytorch.process_group import Group


class OrderedSum:
    """Of one flat tensor. All workers call the same methods in the same order, inside `Group.waiting`."""

    def __init__(self, group: Group, like: Tensor, size: int) -> None:
        """like: has the type and the device."""
        workers, num_shards = group.world_size, group.num_shards
        self._rank, self._workers, self._num_shards = group.rank, workers, num_shards
        self._one_addition = num_shards == workers == 2
        self._slice = -(-size // workers)
        self._padded = like.new_zeros(workers * self._slice)
        self.flat = self._padded[:size]
        """A shard's own values, which must stay as they are between `send` and `add`; after `finish` the sum."""
        self._received = like.new_empty(0 if workers == 1 or self._one_addition else workers * self._slice)
        self._sum = like.new_empty(0 if num_shards == 1 or self._one_addition else self._slice)
        self._round, self._work = 0, None

    def send(self) -> None:
        """Begins to send a shard of this worker, or where it has none left, nothing; others' are received."""
        if self._one_addition:
            self._work = dist.all_reduce(self._padded, async_op=True)
        elif self._workers > 1:
            count, own = self._shards_of_round(), self._slice
            given = own if self._rank < count else 0
            self._work = dist.all_to_all_single(
                self._received[: count * own], self._padded[: self._workers * given],
                [own if rank < count else 0 for rank in range(self._workers)], [given] * self._workers, async_op=True)

    def add(self) -> None:
        """Waits for the shards of this round, and adds them."""
        self._wait()
        if self._num_shards > 1 and not self._one_addition:
            shards = (self._received if self._workers > 1 else self._padded).split(self._slice)
            for place in range(self._shards_of_round()):
                if self._round == place == 0:
                    self._sum.copy_(shards[0])
                else:
                    self._sum.add_(shards[place])
        self._round += 1

    @property
    def complete(self) -> bool:
        """Whether all shards have been added."""
        return self._round * self._workers >= self._num_shards

    def gather(self) -> None:
        """Begins to bring the slices of the sum together, when it is complete."""
        if self._workers > 1 and not self._one_addition:
            self._work = dist.all_gather_single(self._padded, self._sum, async_op=True)

    def finish(self) -> None:
        """Waits for that; `flat` is the sum, and the next step may begin."""
        self._wait()
        if self._workers == 1 and self._num_shards > 1:
            self._padded.copy_(self._sum)
        self._round = 0

    def _shards_of_round(self) -> int:
        return min(self._workers, self._num_shards - self._round * self._workers)

    def _wait(self) -> None:
        if self._work is not None:
            self._work.wait()
            self._work = None


class StepSums:
    """All that a step sums over the shards, in one flat tensor: the gradients, statistics, losses, and wishes."""

    def __init__(self, group: Group, parameters: Sequence[nn.Parameter]) -> None:
        self._group, self._num_shards, self._parameters = group, group.num_shards, parameters
        self._sum: Any = None
        self._sending = False

    def add(self, shard: int, loss: float, statistics: Sequence[Tensor], wishes: Sequence[float]) -> None:
        """Takes a shard's gradients away from the parameters, and begins to send them. wishes: of this worker, with its
        first shard; zeros with the others."""
        if self._sum is None:
            size = sum(each.numel() for each in (*self._parameters, *statistics)) + self._num_shards + len(wishes)
            self._sum = OrderedSum(self._group, self._parameters[0].detach(), size)
        self._end_round()
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self._parameters]
        tail = torch.zeros(self._num_shards + len(wishes))
        tail[shard] = loss
        tail[self._num_shards :] = torch.tensor(wishes)
        pieces = [each.reshape(-1) for each in (*gradients, *statistics)]
        torch.cat([*pieces, tail.to(self._sum.flat.device)], out=self._sum.flat)
        for parameter in self._parameters:
            parameter.grad = None
        self._begin_round()

    def finish(self, statistics: Sequence[Tensor]) -> tuple[float, Sequence[float]]:
        """Makes the gradients, and the statistics, the sums over all shards. Returns the global loss, and the sums of
        the workers' wishes."""
        self._end_round()
        while not self._sum.complete:
            self._begin_round()
            self._end_round()
        with self._group.waiting():
            self._sum.gather()
            self._sum.finish()
            sizes = [each.numel() for each in (*self._parameters, *statistics)]
            *pieces, tail = self._sum.flat.split([*sizes, len(self._sum.flat) - sum(sizes)])
            found = tail.tolist()
        for parameter, piece in zip(self._parameters, pieces, strict=False):
            parameter.grad = piece.view_as(parameter)
        for values, piece in zip(statistics, pieces[len(self._parameters) :], strict=True):
            values.copy_(piece.view_as(values))
        return sum(found[: self._num_shards]), found[self._num_shards :]

    def _begin_round(self) -> None:
        with self._group.waiting():
            self._sum.send()
        self._sending = True

    def _end_round(self) -> None:
        if self._sending:
            with self._group.waiting():
                self._sum.add()
            self._sending = False
