"""What can be said of a text in any language: the figures by which drift is watched,
alike in training and in serving."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Sequence

import numpy as np

from cluster.core.documents import parse_json
from jobs.common.arrays import Array
from jobs.transformer.text.tokenizer import backend_of

MOST_CHARACTERS = 4000
"""Of a text whose tokens are looked at: what a longer one begins with stands for it."""


class TextFeatures:
    """By a tokenizer."""

    def __init__(self, tokenizer: str) -> None:
        """tokenizer: a tokenizer.json."""
        model = parse_json(tokenizer)["model"]
        self._backend = backend_of(tokenizer, None)
        self._unknown = model.get("unk_id", self._backend.token_to_id(model.get("unk_token") or ""))

    def __call__(self, texts: Sequence[str]) -> dict[str, Array]:
        """characters; tokens, without special ones, and the unknown ones' share of them;
        non_ascii_share, of the characters.

        Each (B,).
        """
        begun = [text[:MOST_CHARACTERS] for text in texts]
        # `encode` holds Python's lock, and `encode_batch` lets go of it
        encoded = self._backend.encode_batch(begun, add_special_tokens=False)
        tokens = [np.array(each.ids, np.int32) for each in encoded]
        return {
            "characters": np.array([len(text) for text in texts]),
            "tokens": np.array([len(ids) for ids in tokens]),
            "unknown_share": np.array([np.mean(ids == self._unknown) if len(ids) else 0.0 for ids in tokens]),
            "non_ascii_share": np.array([(len(text) - len(text.encode("ascii", "ignore"))) / max(1, len(text))
                                         for text in begun]),
        }
