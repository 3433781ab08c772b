"""Answers by artifacts of the CNN job."""

from pathlib import Path

from jobs.common.artifact.artifact import Artifact
from jobs.common.predictor.formats import Format, Formats, onnx
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


def formats(artifact: Artifact) -> Formats:
    """ONNX, and Keras's own file."""
    def write(path: Path) -> None:
        from jobs.cnn.model import KERAS_FILE

        path.write_bytes(artifact.read(KERAS_FILE))

    def read(path: Path) -> CnnPredictor:
        from jobs.cnn.model import Classifier, load_keras

        labels = artifact.manifest.description.labels
        return CnnPredictor(Classifier(load_keras(path.read_bytes(), str(path)), labels), artifact)

    def by_graph(graph: bytes) -> CnnPredictor:
        return CnnPredictor(OnnxModel(artifact, image_inputs, graph), artifact)

    return {**onnx(artifact, _to_onnx, by_graph), "keras": Format(suffix=".keras", write=write, load=read)}


PREDICTOR = CnnPredictor
RECIPE = Recipe(column="image", to_onnx=_to_onnx, inputs=image_inputs, compiles=True)
