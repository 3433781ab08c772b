"""What a model that writes adds to each text: three of a predictor's methods, for rows of texts.

    rows ─► decode: prompts as tokens ─► predict: all are continued together, a token each a step ─► encode

A row of a model that answers conversations is what a user says; else it is a text that goes on. A row draws from a
generator of its own, which its prompt and the seed decide, so the same prompt goes on alike wherever it stands.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np

from cluster.core.errors import InputError
from jobs.common.arrays import Array
from jobs.common.config import require
from jobs.common.predictor.predictor import Predictor

BATCH_ROWS = 32
"""Texts that are continued together, where no other number is asked for."""


@dataclass(frozen=True, kw_only=True)
class Writing:
    """How texts are continued."""

    max_tokens: int = 64
    """Of each continuation."""
    temperature: float = 0.0
    """0: always the likeliest token."""
    top_p: float = 1.0
    """Only the likeliest tokens that have this much of the probability together are drawn from."""
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.max_tokens >= 1, "max-tokens", self.max_tokens, "must be at least 1")
        require(self.temperature >= 0, "temperature", self.temperature, "must be 0 or more")
        require(0 < self.top_p <= 1, "top-p", self.top_p, "must be more than 0 and at most 1")
        require(self.seed >= 0, "seed", self.seed, "must be 0 or more")


class Written(Protocol):
    """A text that is continued: `token` is its last."""

    token: int


class Writer:
    """Answers rows of texts. generator: what continues them (serving/text/generation.py has it as a Protocol)."""

    def __init__(self, generator: Any, writing: Writing) -> None:
        self._generator, self._writing = generator, writing
        chat = generator.chat
        self._ends = {generator.end_id, *(chat.ends if chat else ())}

    @staticmethod
    def of(predictor: Predictor, writing: Writing) -> "Writer":
        """Raises: ArtifactError for a model that cannot continue several texts at a time."""
        return Writer(cast(Any, predictor).generator(0), writing)

    def decode(self, inputs: Mapping[str, Array]) -> Array:
        """Each prompt's tokens. Raises: InputError for one that leaves no room for an answer."""
        made = np.empty(len(inputs["text"]), object)
        made[:] = [self._tokens(text) for text in inputs["text"]]
        return made

    def predict(self, rows: Array) -> Array:
        """Of each prompt (text, tokens, whether it came to its end)."""
        texts, counts, ended = [""] * len(rows), [0] * len(rows), [False] * len(rows)
        growing: dict[int, tuple[Written, Callable[[int], str]]] = {}
        try:
            for place, prompt in enumerate(rows):
                growing[place] = self._begun(prompt)
            while growing:
                for place, (row, piece) in list(growing.items()):
                    ended[place] = row.token in self._ends
                    if not ended[place]:
                        texts[place] += piece(row.token)
                        counts[place] += 1
                    if ended[place] or counts[place] == self._room(rows[place]):
                        self._generator.leave([growing.pop(place)[0]])
                if growing:
                    self._generator.step()
        finally:
            self._generator.leave([row for row, _ in growing.values()])
        made = np.empty(len(rows), object)
        made[:] = list(zip(texts, counts, ended, strict=True))
        return made

    def encode(self, predicted: Array) -> Mapping[str, Array]:
        texts = np.empty(len(predicted), object)
        texts[:] = [text for text, _, _ in predicted]
        return {"continuation": texts, "tokens": np.array([count for _, count, _ in predicted], np.int32),
                "ended": np.array([ended for _, _, ended in predicted], bool)}

    def _begun(self, prompt: Sequence[int]) -> tuple[Written, Callable[[int], str]]:
        """A row that has its first token, and what makes text of its tokens."""
        how = self._writing
        row: Written = self._generator.row(how.temperature, how.top_p, self._random(prompt), None, None)
        self._generator.join(prompt, [row])
        return row, (self._generator.chat or self._generator).pieces()

    def _tokens(self, text: str) -> tuple[int, ...]:
        chat = self._generator.chat
        found: Sequence[int] = (chat.prompt([{"role": "user", "content": text}], []) if chat
                                else self._generator.tokens(text))
        if (most := self._generator.max_tokens) is not None and len(found) >= most:
            raise InputError(f"has {len(found):,} tokens, and the model takes {most:,} together with its answer")
        return tuple(found)

    def _room(self, prompt: Sequence[int]) -> int:
        most = self._generator.max_tokens
        return min(self._writing.max_tokens, most - len(prompt)) if most is not None else self._writing.max_tokens

    def _random(self, prompt: Sequence[int]) -> np.random.Generator:
        digest = hashlib.sha256(np.array(prompt, np.int64).tobytes()).digest()[:8]
        return np.random.default_rng([self._writing.seed, int.from_bytes(digest)])
