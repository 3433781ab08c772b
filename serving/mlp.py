"""Serves artifacts of the MLP job."""

from jobs.common.artifact import Artifact
from serving.images import ImagePredictor


class MlpPredictor(ImagePredictor):
    @classmethod
    def load(cls, artifact: Artifact) -> "MlpPredictor":
        from jobs.mlp.model import load

        return cls(load(artifact.store), artifact)


PREDICTOR = MlpPredictor
