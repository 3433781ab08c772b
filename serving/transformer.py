"""Serves artifacts of the Transformer job: texts to classes, and packed tokens to their likelihood."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.common.artifact import Artifact
from serving.errors import BadRequestError

Array = NDArray[Any]


class TextPredictor:
    """Texts to probabilities."""

    def __init__(self, model: Any) -> None:
        from jobs.transformer.text_features import TextFeatures

        self._model, self._features = model, TextFeatures(model.tokenizer)

    @classmethod
    def load(cls, artifact: Artifact) -> "TextPredictor | LikelihoodPredictor":
        from jobs.transformer.model import load

        model: Any = load(artifact.uri)
        return cls(model) if artifact.manifest.description.task == "text-classification" else LikelihoodPredictor(model)

    def decode(self, inputs: Mapping[str, Array]) -> Array:
        return texts(inputs["text"])

    def predict(self, rows: Array) -> Array:
        return self._model.predict(rows.tolist())

    def encode(self, predicted: Array) -> Mapping[str, Array]:
        return {"probabilities": predicted}

    def features(self, rows: Array) -> dict[str, Array]:
        return self._features(rows.tolist())

    def explain(self, row: Array) -> Mapping[str, Array]:
        (found,) = self._model.explain(row.tolist())
        pieces = np.empty((1, len(found.pieces)), object)
        pieces[0] = found.pieces
        numbers = {"attributions": found.attributions, "difference": found.difference, "gap": found.gap}
        return {"predicted": np.array([found.predicted]), "pieces": pieces,
                **{name: np.array([value], np.float32) for name, value in numbers.items()}}


class LikelihoodPredictor:
    """Packed tokens to their negative log-likelihood: what the artifact's own probe asks of a language model."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def decode(self, inputs: Mapping[str, Array]) -> Array:
        if inputs["tokens"].dtype == object:
            raise BadRequestError("input 'tokens' is INT32, not BYTES")
        return inputs["tokens"]

    def predict(self, rows: Array) -> Array:
        return self._model.negative_log_likelihood(rows)

    def encode(self, predicted: Array) -> Mapping[str, Array]:
        return {"negative_log_likelihood": predicted}


def texts(values: Array) -> Array:
    """(B,) of str. Raises: BadRequestError for bytes that are no UTF-8."""
    made = np.empty(len(values), object)
    try:
        made[:] = [value if isinstance(value, str) else bytes(value).decode() for value in values]
    except UnicodeDecodeError:
        raise BadRequestError("an element of the input is no UTF-8") from None
    return made


PREDICTOR = TextPredictor
