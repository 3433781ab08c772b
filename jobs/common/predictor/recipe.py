"""What a job gives so that `python -m serving optimise` can make smaller and
faster variants of its trained classifiers."""

from collections.abc import Callable
from dataclasses import dataclass

from jobs.common.artifact.artifact import Artifact
from jobs.common.predictor.onnx_model import Inputs

ONNX, INT8, COMPILED = "onnx", "onnx-int8", "compiled"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a job gives as RECIPE in its predictor.py."""

    column: str
    """The column of the prepared data that the predictor's `predict` takes, as its `decode` gives it."""
    to_onnx: Callable[[Artifact], bytes]
    inputs: Inputs
    """The inputs of that graph."""
    compiles: bool = False
    """Whether the predictor's `load` heeds the variant `compiled`."""

    @property
    def variants(self) -> tuple[str, ...]:
        return (ONNX, INT8, *([COMPILED] if self.compiles else []))
