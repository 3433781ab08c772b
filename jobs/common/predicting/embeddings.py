"""Vectors of rows of texts, as an endpoint gives them by /v1/embeddings: three of a predictor's methods."""

from collections.abc import Mapping

from jobs.common.arrays import Array
from jobs.common.artifact.artifact import Artifact
from jobs.common.predictor.loading import embedder_of
from jobs.common.predictor.predictor import Predictor


class RowEmbedder:
    """Answers rows of texts with `embedding` (B, D) alone."""

    def __init__(self, predictor: Predictor, artifact: Artifact) -> None:
        """artifact: of a model that offers them. Raises: ArtifactError."""
        embedder = embedder_of(predictor, artifact)
        assert embedder is not None, "the command refuses what offers none"
        self._embedder = embedder

    def decode(self, inputs: Mapping[str, Array]) -> Array:
        """Raises: InputError for a text that is longer than the model reads."""
        return self._embedder.decode({"input": inputs["text"]})

    def predict(self, rows: Array) -> Array:
        return self._embedder.predict(rows)

    def encode(self, predicted: Array) -> Mapping[str, Array]:
        return {"embedding": self._embedder.encode(predicted)["embedding"]}
