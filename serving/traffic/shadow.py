"""Shadow traffic: a version gets a share of what another one has answered,
and its answers are compared and never returned."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from cluster.core.background import in_loop
from jobs.common.arrays import Array
from serving.core.errors import RefusedError
from serving.traffic.batching import Batcher

Tensors = Mapping[str, Array]
Seen = Callable[[str, int], None]
_UNDER_WAY = 64
"""Requests of a shadow at a time: what comes on top is not followed, and counted as such."""
_RTOL, _ATOL = 1e-3, 1e-5


class Shadow:
    """Of one model. An outcome of a row: `same`, `other`, `failed`, `dropped`."""

    def __init__(self, batcher: Batcher, *, id: str, version: str, share: float, timeout_s: float, seen: Seen) -> None:
        """id: of the change that began it. share: of the requests, from 0 to 1.
        seen: is told an outcome, and how many rows had it.
        """
        self.id, self.version = id, version
        self.outcomes: Counter[str] = Counter()
        """Rows, since they were last taken."""
        self._batcher, self._share, self._timeout_s, self._told = batcher, share, timeout_s, seen
        self._random = random.Random()
        self._tasks: set[asyncio.Task[None]] = set()

    def follow(self, inputs: Tensors, rows: int, outputs: Tensors) -> None:
        """outputs: what was answered. Returns at once."""
        if self._random.random() >= self._share:
            return
        if len(self._tasks) >= _UNDER_WAY:
            self._seen("dropped", rows)
            return
        task = in_loop(self._compare(inputs, rows, outputs), "the comparison of a shadow's answers")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _seen(self, outcome: str, rows: int) -> None:
        self.outcomes[outcome] += rows
        self._told(outcome, rows)

    async def _compare(self, inputs: Tensors, rows: int, outputs: Tensors) -> None:
        try:
            found = await self._batcher.infer(inputs, rows, self._timeout_s)
        except RefusedError:
            self._seen("failed", rows)
            return
        same = int(np.logical_and.reduce([same_rows(outputs[name], found.get(name)) for name in outputs]).sum())
        for outcome, count in (("same", same), ("other", rows - same)):
            if count:
                self._seen(outcome, count)


def same_rows(answered: Array, shadow: Array | None) -> NDArray[np.bool_]:
    """(B,) whether a row says the same: the same class, of probabilities (B, K); the same values, of all else."""
    rows = len(answered)
    if shadow is None or shadow.shape != answered.shape:
        return np.zeros(rows, bool)
    if answered.dtype.kind == "f" and answered.ndim == 2 and answered.shape[1] > 1:
        return np.asarray(answered.argmax(1) == shadow.argmax(1))
    if answered.dtype.kind == "f":
        return np.asarray(np.isclose(shadow, answered, _RTOL, _ATOL).reshape(rows, -1).all(1))
    return np.asarray(np.asarray(answered == shadow).reshape(rows, -1).all(1))
