"""Serves artifacts of the CNN job."""

from jobs.common.artifact import Artifact
from serving.images import ImagePredictor


class CnnPredictor(ImagePredictor):
    @classmethod
    def load(cls, artifact: Artifact) -> "CnnPredictor":
        from jobs.cnn.model import load

        return cls(load(artifact.store), artifact)


PREDICTOR = CnnPredictor
