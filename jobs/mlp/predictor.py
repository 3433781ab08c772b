"""Answers by artifacts of the MLP job."""

from pathlib import Path

from jobs.common.artifact.artifact import Artifact
from jobs.common.predictor.formats import Format, Formats, onnx
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


def formats(artifact: Artifact) -> Formats:
    """ONNX, and a program of PyTorch's own, without a class of this job."""
    def write(path: Path) -> None:
        from jobs.mlp.torch_export import write_program

        write_program(artifact, path)

    def read(path: Path) -> MlpPredictor:
        from jobs.mlp.torch_export import Program

        return MlpPredictor(Program(path), artifact)

    def by_graph(graph: bytes) -> MlpPredictor:
        return MlpPredictor(OnnxModel(artifact, image_inputs, graph), artifact)

    return {**onnx(artifact, _to_onnx, by_graph), "torch": Format(suffix=".pt2", write=write, load=read)}


PREDICTOR = MlpPredictor
RECIPE = Recipe(column="image", to_onnx=_to_onnx, inputs=image_inputs)
