"""Answers by artifacts of the MLP job."""

from jobs.common.artifact.artifact import Artifact
from jobs.common.predictor.onnx_model import OnnxModel, is_onnx
from jobs.common.predictor.recipe import Recipe
from jobs.common.vision.predictor import ImagePredictor, image_inputs


class MlpPredictor(ImagePredictor):
    @classmethod
    def load(cls, artifact: Artifact) -> "MlpPredictor":
        if is_onnx(artifact):
            return cls(OnnxModel(artifact, image_inputs), artifact)
        from jobs.mlp.model import load

        return cls(load(artifact), artifact)


def _to_onnx(artifact: Artifact) -> bytes:
    from jobs.mlp.onnx_export import to_onnx

    return to_onnx(artifact)


PREDICTOR = MlpPredictor
RECIPE = Recipe(column="image", to_onnx=_to_onnx, inputs=image_inputs)
