"""Tensors as the Open Inference Protocol (v2) describes and carries them: names, datatypes, shapes, JSON bodies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cluster.core.documents import parse_json
from jobs.common.arrays import Array

DTYPES: dict[str, str] = {
    "BOOL": "bool", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64", "INT8": "int8",
    "INT16": "int16", "INT32": "int32", "INT64": "int64", "FP16": "float16", "FP32": "float32", "FP64": "float64",
    "BYTES": "object",
}
"""Protocol datatype to NumPy dtype. An element of BYTES is a str."""


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One input or output of a model. In `shape`, -1 is any size; the first dimension is the batch."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.datatype not in DTYPES:
            raise ValueError(f"datatype {self.datatype!r} of tensor {self.name!r} is none of {', '.join(DTYPES)}")
        if not self.shape or any(size < 1 and size != -1 for size in self.shape):
            raise ValueError(f"shape {self.shape} of tensor {self.name!r} must have sizes of 1 or more, or -1 for any")

    def check(self, values: Array) -> None:
        """Raises: ValueError if an array is not what this tensor takes."""
        fits = len(values.shape) == len(self.shape)
        fits = fits and all(want in (-1, have) for want, have in zip(self.shape, values.shape, strict=True))
        if not fits or (self.datatype != "BYTES" and values.dtype != np.dtype(DTYPES[self.datatype])):
            raise ValueError(f"tensor {self.name!r} is {self.datatype} {self.shape}: got {values.dtype} {values.shape}")


def to_json(specs: Sequence[TensorSpec], values: Mapping[str, Array]) -> list[dict[str, object]]:
    """The `inputs` of a request, or the `outputs` of a response, in the protocol's JSON: data flat, in row-major order.

    Raises: ValueError if a tensor is missing, unknown, or not as its spec says.
    """
    if sorted(values) != sorted(spec.name for spec in specs):
        raise ValueError(f"needs tensors {sorted(spec.name for spec in specs)}: got {sorted(values)}")
    for spec in specs:
        spec.check(values[spec.name])
    return [{"name": spec.name, "datatype": spec.datatype, "shape": list(values[spec.name].shape),
             "data": values[spec.name].ravel().tolist()} for spec in specs]


@dataclass(frozen=True)
class _Tensor:
    name: str
    datatype: str
    shape: tuple[int, ...]
    data: list[object]


@dataclass(frozen=True)
class _Request:
    inputs: tuple[_Tensor, ...]


@dataclass(frozen=True)
class _Response:
    outputs: tuple[_Tensor, ...]


@dataclass(frozen=True)
class _Probe:
    request: _Request
    response: _Response


def parse_probe(text: bytes) -> tuple[dict[str, Array], dict[str, Array]]:
    """Inputs and outputs by name, of a request with its response. Raises: ValueError."""
    probe = parse_json(text, _Probe)
    return _arrays(probe.request.inputs), _arrays(probe.response.outputs)


def _arrays(tensors: Sequence[_Tensor]) -> dict[str, Array]:
    """Of what `to_json` wrote. Raises: ValueError, also for a number that its datatype does not hold."""
    try:
        return {each.name: np.array(each.data, DTYPES[each.datatype]).reshape(each.shape) for each in tensors}
    except (KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"a tensor is not of its datatype ({error})") from error
