"""Serves artifacts of the MLP job."""

from jobs.common.artifact import Artifact
from serving.images import ImagePredictor


class MlpPredictor(ImagePredictor):
    @classmethod
    def load(cls, artifact: Artifact) -> "MlpPredictor":
        from jobs.mlp.model import load

        about = artifact.manifest.description
        return cls(load(artifact.store), about.preprocessing["shape"], about.inputs[0].datatype)


PREDICTOR = MlpPredictor
