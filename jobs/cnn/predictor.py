"""Answers by artifacts of the CNN job."""

from jobs.common.artifact.artifact import Artifact
from jobs.common.predictor.onnx_model import MODEL, OnnxModel, is_onnx
from jobs.common.predictor.recipe import COMPILED, Recipe
from jobs.common.vision.predictor import ImagePredictor, image_inputs


class CnnPredictor(ImagePredictor):
    @classmethod
    def load(cls, artifact: Artifact) -> "CnnPredictor":
        if is_onnx(artifact):
            return cls(OnnxModel(artifact, image_inputs), artifact)
        from jobs.cnn.model import load

        variant, model = artifact.manifest.description.variant, load(artifact)
        return cls(model.compiled() if variant and variant.name == COMPILED else model, artifact)


def _to_onnx(artifact: Artifact) -> bytes:
    """Training has made it already."""
    return artifact.read(MODEL)


PREDICTOR = CnnPredictor
RECIPE = Recipe(column="image", to_onnx=_to_onnx, inputs=image_inputs, compiles=True)
