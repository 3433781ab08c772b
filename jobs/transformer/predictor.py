"""Answers by artifacts of the Transformer job: classes of texts, the likelihood of packed tokens,
and text that goes on."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cluster.core.documents import parse_json
from cluster.core.errors import InputError
from jobs.common.arrays import Array
from jobs.common.artifact.artifact import Artifact, refused
from jobs.common.predictor.onnx_model import OnnxModel, is_onnx
from jobs.common.predictor.predictor import MOST_CHARACTERS, Embedder
from jobs.common.predictor.recipe import Recipe
from jobs.transformer.text.robustness import PERTURBATIONS
from jobs.transformer.text.text_rule import text_rule

_TOKENS_PER_PASS = 4096


class TextPredictor:
    """Texts to probabilities."""

    def __init__(self, model: Any, artifact: Artifact) -> None:
        """model: gives probabilities (B, K) for rows of tokens by `predict`. Raises: ArtifactError."""
        from jobs.transformer.text.features import TextFeatures
        from jobs.transformer.text.tokenizer import backend_of

        tokenizer = artifact.read("model/tokenizer.json").decode()
        before = artifact.manifest.description.preprocessing
        try:
            self._clean = text_rule(before)
        except ValueError as error:
            raise refused(artifact.uri, [str(error)]) from error
        self._model, self._most = model, int(before["max_length"])
        self._tokenizer, self._features = backend_of(tokenizer, self._most), TextFeatures(tokenizer)
        self._classifier: Any = None
        """What explains, and makes vectors; a graph does not."""
        self._artifact = artifact
        self._seed = int(artifact.manifest.description.config.get("run", {}).get("seed", 0))

    @classmethod
    def load(cls, artifact: Artifact, base: str | None = None) -> "TextPredictor | LikelihoodPredictor":
        """base: an artifact whose weights the model shares with others of this process: its own, or its base's."""
        if is_onnx(artifact):
            return cls(OnnxModel(artifact, token_inputs), artifact)
        from jobs.transformer.model import Classifier, load

        model = load(artifact, base, merged=base is None)
        if not isinstance(model, Classifier):
            return LikelihoodPredictor(model)
        made = cls(model.of_tokens(), artifact)
        made._classifier = model
        return made

    @staticmethod
    def about_texts(artifact: Artifact) -> Mapping[str, object]:
        """What a model that writes takes, and whether it answers conversations: of its small files alone."""
        from jobs.transformer.chat.answers import Chat
        from jobs.transformer.text.tokenizer import backend_of, from_files

        tokenizer = from_files({path.removeprefix("model/"): artifact.read(path) for path in artifact.manifest.paths
                                if path.startswith("model/") and not path.endswith(".safetensors")})
        chat = Chat.of(tokenizer, backend_of(tokenizer.backend_tokenizer.to_str(), None))
        return {"max_tokens": parse_json(artifact.read("model/config.json")).get("max_position_embeddings"),
                "chats": chat is not None, "tool_calls": chat.tool_calls if chat else None}

    def decode(self, inputs: Mapping[str, Array]) -> Array:
        made = texts(inputs["text"])
        if (characters := sum(map(len, made))) > MOST_CHARACTERS:
            raise InputError(f"the texts have {characters:,} characters: at most {MOST_CHARACTERS:,} in one request")
        made[:] = list(map(self._clean, made))
        return made

    @property
    def changes(self) -> Sequence[str]:
        return tuple(PERTURBATIONS)

    def change(self, name: str, inputs: Mapping[str, Array], row_ids: Array) -> Mapping[str, Array]:
        """As a run's report perturbs its test rows."""
        made = texts(inputs["text"])
        made[:] = [PERTURBATIONS[name](text, (self._seed, int(row))) for text, row in zip(made, row_ids, strict=True)]
        return {"text": made}

    def predict(self, rows: Array) -> Array:
        """rows: texts (B,) as `decode` cleans them, or tokens as the job prepares them: (B, T) int32, -1 where there is
        none."""
        from jobs.transformer.text.tokenizer import framed

        if rows.dtype == object:
            rows = framed(self._tokenizer.encode_batch(rows.tolist()), self._most)["tokens"]
        return self._model.predict(rows)

    def encode(self, predicted: Array) -> Mapping[str, Array]:
        return {"probabilities": predicted}

    def embedder(self) -> Embedder:
        """Raises: ArtifactError where the artifact offers no vectors of texts."""
        from jobs.transformer.embedding.embedder import Embedder

        embedding = self._artifact.manifest.description.embedding
        if embedding is None or self._classifier is None:
            raise refused(self._artifact.uri, ["it offers no embeddings"])
        return Embedder(self._classifier, embedding, self._clean)

    def features(self, rows: Array) -> dict[str, Array]:
        return self._features(rows.tolist())

    def explain(self, row: Array) -> Mapping[str, Array]:
        (found,) = self._classifier.explain(row.tolist())
        pieces = np.empty((1, len(found.pieces)), object)
        pieces[0] = found.pieces
        numbers = {"attributions": found.attributions, "difference": found.difference, "gap": found.gap}
        return {"predicted": np.array([found.predicted]), "pieces": pieces,
                **{name: np.array([value], np.float32) for name, value in numbers.items()}}


def token_inputs(artifact: Artifact, tokens: Array) -> tuple[Array, Array]:
    """Of an ONNX graph: ids and mask, cut to the longest row."""
    cut = tokens[:, : max(1, int((tokens >= 0).sum(1).max()))]
    there = cut >= 0
    return np.where(there, cut, artifact.manifest.description.preprocessing["pad_id"]), there


class LikelihoodPredictor:
    """Packed tokens to their negative log-likelihood: what an artifact's own probe asks of a language model,
    which writes too."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def decode(self, inputs: Mapping[str, Array]) -> Array:
        if inputs["tokens"].dtype == object:
            raise InputError("input 'tokens' is INT32, not BYTES")
        tokens, words = inputs["tokens"], int(self._model.model.config.vocab_size)
        marks = inputs.get("marks")
        least, most = int(tokens.min(initial=0)), int(tokens.max(initial=0))
        if least < -1 or most >= words:
            raise InputError(f"input 'tokens' holds {least} to {most}: the model has the tokens 0 to {words - 1}, "
                                  "and -1 stands for none")
        return tokens if marks is None else np.stack([tokens, marks.astype(tokens.dtype)], axis=1)

    def predict(self, rows: Array) -> Array:
        """A few rows at a time: the scores of all tokens of all words are many times what the rows are.
        rows: tokens (B, T), or with their marks (B, 2, T)."""
        few = max(1, _TOKENS_PER_PASS // rows.shape[-1])
        parts = [rows[i : i + few] for i in range(0, len(rows), few)]
        return np.concatenate([self._model.negative_log_likelihood(*(part.swapaxes(0, 1) if part.ndim > 2 else [part]))
                               for part in parts])

    def encode(self, predicted: Array) -> Mapping[str, Array]:
        return {"negative_log_likelihood": predicted}

    def generator(self, prefix_cache_bytes: int) -> Any:
        """What continues texts: a `Generator` of serving/text/generation.py. prefix_cache_bytes: that it may keep of
        prompts that it has read.

        Raises: ArtifactError for a model that cannot do so in batches.
        """
        from jobs.transformer.decoding import Decoder

        made = Decoder(self._model, prefix_cache_bytes)
        made.check()
        return made


def texts(values: Array) -> Array:
    """(B,) of str. Raises: InputError for bytes that are no UTF-8."""
    made = np.empty(len(values), object)
    try:
        made[:] = [value if isinstance(value, str) else bytes(value).decode() for value in values]
    except UnicodeDecodeError:
        raise InputError("an element of the input is no UTF-8") from None
    return made


def _to_onnx(artifact: Artifact) -> bytes:
    from jobs.transformer.onnx_export import to_onnx

    return to_onnx(artifact)


PREDICTOR = TextPredictor
RECIPE = Recipe(column="tokens", to_onnx=_to_onnx, inputs=token_inputs)
