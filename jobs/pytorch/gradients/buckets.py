"""Gradients summed over the workers while the backward pass still runs.

Each gradient is a view into one of a few flat buffers, filled from the last parameter to the first, as the backward
pass produces them. A buffer is sent as soon as it and those before it are complete. Which parameter lies where depends
on nothing but the model, and buffers are sent in one order: so a worker that was started again sums as the one before
it did. A buffer may be sent in fewer bits than it is computed in. Or each shard's is sent as it is computed, and summed
in the shards' order (`ordered_sum.py`).
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateImportUsage=false

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from jobs.pytorch.gradients.ordered_sum import OrderedSum
from jobs.pytorch.process_group import Group, peers_needed


@dataclass
class _Bucket:
    flat: Tensor
    parameters: int
    ordered: OrderedSum | None = None
    missing: int = 0


class GradientBuckets:
    """The gradients of one model on one worker of a group."""

    def __init__(self, group: Group, parameters: Sequence[nn.Parameter], bucket_bytes: float,
                 sent_as: torch.dtype | None = None, *, in_order: bool = False) -> None:
        """sent_as: the type in which gradients are sent and summed; None: their own. in_order: sums shards
        in their order, and not what each worker has summed, as it comes."""
        self._group, self._syncing, self._sent, self._sent_as = group, False, 0, sent_as
        self.in_order = in_order
        self._work: list[tuple[Any, Tensor, Tensor]] = []
        self._buckets: list[_Bucket] = []
        for members in _cut(list(reversed(parameters)), bucket_bytes):
            self._lay_out(members)

    def zero(self) -> None:
        """Before a step's first backward pass; of shards in order, before each one's."""
        for bucket in self._buckets:
            bucket.flat.zero_()

    def enable_sync(self) -> None:
        """Before a step's last backward pass, of shards in order each one's: from here on a buffer that is complete is
        sent."""
        self._syncing, self._sent, self._work = self._group.world_size > 1, 0, []
        for bucket in self._buckets:
            bucket.missing = bucket.parameters

    def wait(self) -> None:
        """After it: sends what no gradient came for, and waits. Raises: PeerLostError."""
        if self.in_order:
            self._wait_in_order()
        elif self._syncing:
            self._syncing = False
            with self._group.waiting():
                self._send(everything=True)
                for work, flat, sent in self._work:
                    work.wait()
                    if sent is not flat:
                        flat.copy_(sent)

    def end_shard(self, *, last: bool) -> None:
        """After the last backward pass of one of shards in order. last: of this worker's; others may have one more.
        Raises: PeerLostError."""
        self._add_round()
        while last and not self._ordered()[-1].complete:
            self.enable_sync()
            self._add_round()

    def _add_round(self) -> None:
        with self._group.waiting():
            self._send(everything=True)
            for each in self._ordered():
                each.add()
        self._syncing = False

    def _wait_in_order(self) -> None:
        with self._group.waiting():
            for each in self._ordered():
                each.gather()
            for each in self._ordered():
                each.finish()

    def _ordered(self) -> list[OrderedSum]:
        return [bucket.ordered for bucket in self._buckets if bucket.ordered]

    def norm(self) -> float:
        """L2 norm of the whole gradient; not finite if any of it is not."""
        return math.sqrt(sum(float(torch.linalg.vector_norm(bucket.flat, dtype=torch.float32)) ** 2
                             for bucket in self._buckets))

    def scale(self, factor: float) -> None:
        for bucket in self._buckets:
            bucket.flat.mul_(factor)

    def _lay_out(self, members: list[nn.Parameter]) -> None:
        sizes, like = [p.numel() for p in members], members[0].detach()
        ordered = OrderedSum(self._group, like, sum(sizes)) if self.in_order else None
        bucket = _Bucket(ordered.flat if ordered else like.new_zeros(sum(sizes)), len(members), ordered)
        for parameter, piece in zip(members, bucket.flat.split(sizes), strict=True):
            parameter.grad = piece.view_as(parameter)
            parameter.register_post_accumulate_grad_hook(functools.partial(self._ready, bucket))
        self._buckets.append(bucket)

    def _ready(self, bucket: _Bucket, _: Tensor) -> None:
        if self._syncing:
            bucket.missing -= 1
            with peers_needed():
                self._send()

    def _send(self, everything: bool = False) -> None:
        while self._sent < len(self._buckets) and (everything or self._buckets[self._sent].missing == 0):
            bucket = self._buckets[self._sent]
            self._sent += 1
            if bucket.ordered:
                bucket.ordered.send()
                continue
            flat = bucket.flat
            sent = flat if self._sent_as is None else flat.to(self._sent_as)
            self._work.append((dist.all_reduce(sent, async_op=True), flat, sent))


def _cut(parameters: list[nn.Parameter], bucket_bytes: float) -> list[list[nn.Parameter]]:
    buckets: list[list[nn.Parameter]] = []
    size = math.inf
    for parameter in parameters:
        size += parameter.nbytes
        if size > bucket_bytes:
            buckets.append([])
            size = parameter.nbytes
        buckets[-1].append(parameter)
    return buckets
