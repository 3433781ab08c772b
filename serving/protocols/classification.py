"""Triton's classification extension: in place of an output's values, its likeliest classes, as `VALUE:PLACE:LABEL`.

A caller asks for it by the output's parameter `classification`, which is `class_count` of Triton's clients.
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_classification.md
"""

from collections.abc import Mapping, Sequence

import numpy as np

from cluster.core.documents import JsonObject
from jobs.common.arrays import Array
from jobs.common.artifact.tensor_spec import TensorSpec
from serving.core.errors import BadRequestError
from serving.protocols.open_inference_json import InferRequest


def likeliest(request: InferRequest, outputs: Mapping[str, Array], about: JsonObject) \
        -> tuple[Mapping[str, Array], JsonObject]:
    """Outputs, and the model's description, with the classes of those outputs that they are asked of.

    Raises: BadRequestError for an output that has none.
    """
    counts = {name: output.classes for name, output in (request.outputs or {}).items() if output.classes}
    if not counts:
        return outputs, about
    made = {name: _classes(name, outputs[name], count, about["labels"]) for name, count in counts.items()}
    specs = [TensorSpec(name=spec.name, datatype="BYTES", shape=(-1, -1)) if spec.name in counts else spec
             for spec in about["outputs"]]
    return {**outputs, **made}, {**about, "outputs": specs}


def _classes(name: str, values: Array, count: int, labels: Sequence[str]) -> Array:
    """values: (B, K). Returns (B, count), or as many as there are, the likeliest first."""
    if values.ndim != 2 or values.dtype.kind not in "fiu":
        raise BadRequestError(f"output {name!r} has no classes to count: leave `classification` out")
    first = np.argsort(-values, axis=1, kind="stable")[:, :count]
    made = np.empty(first.shape, object)
    for row, places in enumerate(first):
        made[row] = [f"{values[row, place]:f}:{place}" + (f":{labels[place]}" if labels else "") for place in places]
    return made
