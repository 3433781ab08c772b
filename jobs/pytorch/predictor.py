"""Answers by artifacts of a module of yours: by its graph, so that no code of yours is run where they are loaded."""

from jobs.common.artifact.artifact import Artifact
from jobs.common.predictor.formats import Formats, onnx
from jobs.common.predictor.onnx_model import MODEL, OnnxModel, require_graph
from jobs.common.predictor.recipe import Recipe
from jobs.common.vision.predictor import GraphPredictor, image_inputs


class PytorchPredictor(GraphPredictor):
    @classmethod
    def load(cls, artifact: Artifact) -> "PytorchPredictor":
        """Raises: ArtifactError, also for a module that could not be written as a graph."""
        require_graph(artifact)
        return cls(OnnxModel(artifact, image_inputs), artifact)


def _to_onnx(artifact: Artifact) -> bytes:
    return artifact.read(MODEL)


def formats(artifact: Artifact) -> Formats:
    """Its graph: whoever has the module's code has `model.safetensors` for it."""
    require_graph(artifact)
    return onnx(artifact, _to_onnx, lambda graph: PytorchPredictor(OnnxModel(artifact, image_inputs, graph), artifact))


PREDICTOR = PytorchPredictor
RECIPE = Recipe(column="image", to_onnx=_to_onnx, inputs=image_inputs)
