"""A model in ONNX Runtime, on the CPU, with as many threads as OMP_NUM_THREADS says."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import os
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import numpy as np

from cluster.core.errors import ArtifactError
from jobs.common.arrays import Array
from jobs.common.artifact.artifact import Artifact

MODEL = "model.onnx"
Inputs = Callable[[Artifact, Array], Sequence[Array] | Mapping[str, Array]]
"""From rows as a predictor's `decode` gives them to the graph's inputs, in their order; or by name, if the graph may
lack some: the exporter leaves out what a module never uses."""
_DTYPES = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(int64)": np.int64, "tensor(int32)": np.int32}


def is_onnx(artifact: Artifact) -> bool:
    """Whether it is a variant that is computed here."""
    variant = artifact.manifest.description.variant
    return variant is not None and variant.name.startswith("onnx")


def require_graph(artifact: Artifact) -> None:
    """Raises: ArtifactError for the artifact of a module that could not be written as a graph."""
    if MODEL not in artifact.manifest.paths:
        raise ArtifactError(f"artifact {artifact.uri} has no {MODEL}: its module could not be written as ONNX when it "
                            "was trained (the run's output says why), and no endpoint runs the code of an artifact")


class OnnxModel:
    """Probabilities by the graph of an artifact, or by another one with the same inputs."""

    def __init__(self, artifact: Artifact, inputs: Inputs, graph: bytes | None = None) -> None:
        """Raises: ArtifactError for a graph that ONNX Runtime does not take."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = _threads(), 1
        options.add_session_config_entry("session.load_model_format", "ONNX")  # else it guesses by the first bytes
        data = artifact.read(MODEL) if graph is None else graph
        try:
            self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ArtifactError(f"{MODEL} of {artifact.uri} is refused by ONNX Runtime {onnxruntime.__version__}: "
                                f"{str(error).strip().splitlines()[0]}") from error
        self._artifact, self._inputs = artifact, inputs
        self._wanted = [(each.name, _DTYPES[each.type]) for each in self._session.get_inputs()]

    def feeds(self, rows: Array) -> dict[str, Array]:
        """The graph's inputs by name, of the types that it takes."""
        given = self._inputs(self._artifact, rows)
        if isinstance(given, Mapping):
            return {name: np.ascontiguousarray(given[name], dtype) for name, dtype in self._wanted}
        return {name: np.ascontiguousarray(values, dtype)
                for (name, dtype), values in zip(self._wanted, given, strict=True)}

    def predict(self, rows: Array) -> Array:
        """(B, …) -> probabilities (B, K)."""
        return cast(Array, self._session.run(None, self.feeds(rows))[0])


def _threads() -> int:
    """Those that a replica sets for all frameworks; 0, which is one a core, where nobody has."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    return int(said) if said.isdecimal() else 0
