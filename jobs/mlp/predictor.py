"""Serves artifacts of the MLP job."""

from jobs.common.artifact.artifact import Artifact
from serving.model.image_predictor import ImagePredictor, image_inputs
from serving.model.onnx_model import OnnxModel, is_onnx
from serving.variants.variants import Recipe


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
