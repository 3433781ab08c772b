"""Answers by artifacts of a module of yours: by its graph, so that no code of yours is run where they are loaded."""

from cluster.core.errors import ArtifactError
from jobs.common.artifact.artifact import Artifact
from jobs.common.predictor.onnx_model import MODEL, OnnxModel
from jobs.common.predictor.recipe import Recipe
from jobs.common.vision.predictor import GraphPredictor, image_inputs


class PytorchPredictor(GraphPredictor):
    @classmethod
    def load(cls, artifact: Artifact) -> "PytorchPredictor":
        """Raises: ArtifactError, also for a module that could not be written as a graph."""
        if MODEL not in {file.path for file in artifact.manifest.files}:
            raise ArtifactError(f"artifact {artifact.uri} has no {MODEL}: its module could not be written as ONNX when "
                                "it was trained (the run's output says why), and no endpoint runs the code of an "
                                "artifact")
        return cls(OnnxModel(artifact, image_inputs), artifact)


def _to_onnx(artifact: Artifact) -> bytes:
    return artifact.read(MODEL)


PREDICTOR = PytorchPredictor
RECIPE = Recipe(column="image", to_onnx=_to_onnx, inputs=image_inputs)
