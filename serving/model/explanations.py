"""What a model's answer rests on, asked for like an inference: `POST /v2/models/M[/versions/V]/explain`,
with the same body.

The protocol has no explanations (KServe's `:explain` belongs to its older one, and its answer is what each explainer
likes), so this is the protocol's own form of one: a path beside `infer`,
and tensors with a row for each row of the request.

    predicted      INT64  (B,)    the class that is explained, which is the most probable one
    label          BYTES  (B,)    its name
    attributions   FP32   (B, …)  by how much each value of the input moves that class's log odds, ln(p / (1 - p)), from
                                  a baseline, in the input's own shape; of texts (B, P), one for each piece
    pieces         BYTES  (B, P)  of texts: together, the text as far as it was read; rows with fewer end in empty ones
    difference     FP32   (B,)    the log odds of the class, less those of the baseline: what the attributions sum to,
    gap            FP32   (B,)    and how far they are from it
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

import numpy as np

from jobs.common.arrays import Array
from jobs.common.artifact.tensor_spec import TensorSpec
from serving.core.errors import DeadlineError, OverloadedError, RefusedError

Tensors = Mapping[str, Array]
MOST_ROWS = 8
"""Of one request: a row takes as long as a hundred predictions."""
MOST_WAITING = 16
"""Requests for explanations of one model in an ingress, those under way among them."""


def specs(inputs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """The tensors of an explanation of a model with one input."""
    (asked,) = inputs
    text = asked.datatype == "BYTES"
    of_rows = {"predicted": "INT64", "label": "BYTES", "difference": "FP32", "gap": "FP32"}
    return (*(TensorSpec(name=name, datatype=datatype, shape=(-1,)) for name, datatype in of_rows.items()),
            TensorSpec(name="attributions", datatype="FP32", shape=(-1, -1) if text else asked.shape),
            *([TensorSpec(name="pieces", datatype="BYTES", shape=(-1, -1))] if text else []))


def put_together(rows: Sequence[Tensors], labels: Sequence[str]) -> Tensors:
    """An explanation of those of one row each, of which the shorter ones are filled up. labels: of all classes."""
    made = {name: np.concatenate(_filled([row[name] for row in rows])) for name in rows[0]}
    return {**made, "label": np.array([labels[place] for place in made["predicted"]], object)}


def _filled(arrays: Sequence[Array]) -> list[Array]:
    size = np.max([array.shape for array in arrays], axis=0)
    return [np.pad(array, [(0, most - have) for most, have in zip(size, array.shape, strict=True)],
                   constant_values="" if array.dtype == object else 0) for array in arrays]


class Explanations:
    """Of one model: as many at a time as it has replicas, beside its predictions and not in their queue.
    Used by one event loop."""

    def __init__(self, ask: Callable[..., Awaitable[Tensors | RefusedError]], at_a_time: int) -> None:
        self._ask, self._turns, self._waiting = ask, asyncio.Semaphore(at_a_time), 0

    async def explain(self, inputs: Tensors, timeout_s: float) -> Tensors:
        """Whose deadline comes, or who goes, is not computed for any further.

        Raises: OverloadedError, DeadlineError, and what the replica answers with.
        """
        if self._waiting >= MOST_WAITING:
            raise OverloadedError(f"{self._waiting} explanations wait already: try again later")
        self._waiting += 1
        try:
            async with asyncio.timeout(timeout_s), self._turns:
                found = await self._ask("explain", inputs)
        except TimeoutError:
            raise DeadlineError(f"not explained within {timeout_s:.3g} s") from None
        finally:
            self._waiting -= 1
        if isinstance(found, RefusedError):
            raise found
        return found
