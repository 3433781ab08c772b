"""One vector for each text, of an encoder's last layer: what an artifact whose manifest has `embedding` offers.

Shapes: B rows, T tokens, D dimensions.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateImportUsage=false

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from cluster.core.errors import InputError
from jobs.common.arrays import Array
from jobs.common.artifact.manifest import Embedding, Pooling
from jobs.transformer.inputs import inputs_of
from jobs.transformer.text.tokenizer import backend_of

if TYPE_CHECKING:
    from jobs.transformer.model import Classifier

_TOKENS_PER_PASS = 4096


class Embedder:
    """Texts, or tokens, to vectors: a predictor's three methods, beside those that tell classes."""

    def __init__(self, classifier: "Classifier", embedding: Embedding, clean: Callable[[str], str]) -> None:
        """clean: what is done to a text before its tokens are looked up."""
        model = classifier.model
        model = model.get_base_model() if hasattr(model, "get_base_model") else model  # of updates that are apart
        self._body, self._device, self._words = model.base_model, model.device, int(model.config.vocab_size)
        self._pad_id, self._most = classifier.tokenizer.pad_token_id or 0, classifier.max_length
        self._backend = backend_of(classifier.tokenizer.backend_tokenizer.to_str(), None)
        self._about, self._clean = embedding, clean

    def decode(self, inputs: Mapping[str, Array]) -> Array:
        """Tokens (B, T), -1 where there is none. inputs: {"input": (B,) of texts, and of lists of tokens, which are
        taken as they are}. Raises: InputError for what is longer than the model reads, and for an unknown token."""
        given = inputs["input"].tolist()
        texts = iter(self._backend.encode_batch([self._clean(each) for each in given if isinstance(each, str)]))
        rows = [next(texts).ids if isinstance(each, str) else each for each in given]
        found = np.full((len(rows), self._most), -1, np.int32)
        for row, ids in zip(found, rows, strict=True):
            if not 0 < len(ids) <= self._most:
                raise InputError(f"a text of `input` has {len(ids)} tokens: the model reads 1 to {self._most}")
            if (wrong := next((token for token in ids if not 0 <= token < self._words), None)) is not None:
                raise InputError(f"{wrong} is no token: the model has 0 to {self._words - 1}")
            row[: len(ids)] = ids
        return found

    @torch.inference_mode()
    def predict(self, rows: Array) -> Array:
        """(B,) of `embedding` (D,) and `tokens`, which were read for it. Rows of like length go through the model
        together. rows: as of `decode`."""
        lengths = (rows >= 0).sum(1)
        found = np.empty(len(rows), [("embedding", np.float32, (self._about.dimensions,)), ("tokens", np.int32)])
        found["tokens"] = lengths
        for places in _passes(lengths):
            found["embedding"][places] = self._embedded(rows[places], lengths[places])
        return found

    def _embedded(self, rows: Array, lengths: Array) -> Array:
        inputs = inputs_of(rows, lengths, self._pad_id, self._device)
        states = self._body(**inputs).last_hidden_state.float()
        vectors = pooled(states, inputs["attention_mask"], self._about.pooling)
        return (torch.nn.functional.normalize(vectors, dim=1) if self._about.normalize else vectors).cpu().numpy()

    def encode(self, predicted: Array) -> Mapping[str, Array]:
        return {name: np.ascontiguousarray(predicted[name]) for name in ("embedding", "tokens")}


def pooled(states: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """(B, D). states: (B, T, D) of the last layer; mask: (B, T), 0 where there is no token."""
    if pooling == "cls":
        return states[:, 0]
    there = mask[:, :, None].to(states.dtype)
    return (states * there).sum(1) / there.sum(1)


def _passes(lengths: Array) -> Iterator[Array]:
    """Places of rows that go through the model together: of like length, and not too many tokens."""
    order = np.argsort(-lengths, kind="stable")
    begin = 0
    while begin < len(order):
        count = max(1, _TOKENS_PER_PASS // int(lengths[order[begin]]))
        yield order[begin : begin + count]
        begin += count

