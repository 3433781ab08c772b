"""What continues texts, and what a request asks of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from jobs.common.predictor.predictor import MOST_CHARACTERS
from serving.core.errors import ParameterError


class Row(Protocol):
    """A text that is continued: `token` is its last."""

    token: int


class Generator(Protocol):
    """Continues texts together, a token each a step. All but `tokens`, `pieces` and properties are of one thread."""

    end_id: int
    vocab_size: int
    max_tokens: int | None
    """Of prompt and continuation together."""

    @property
    def prefix_bytes(self) -> int:
        """That are kept of earlier prompts, so that those which begin alike need not compute that again."""
        ...

    @property
    def prefix_tokens(self) -> int:
        """Of all prompts so far, those that were not computed again."""
        ...

    def tokens(self, text: str) -> list[int]:
        """Of a prompt, with what the model wants before it."""
        ...

    def pieces(self) -> Callable[[int], str]:
        """A function of a row's tokens, one after the other, to the text that each adds."""
        ...

    def row(self, temperature: float, top_p: float, random: np.random.Generator) -> Row:
        """A text to be. It draws from `random`."""
        ...

    def join(self, prompt: Sequence[int], rows: Sequence[Any]) -> None:
        """Each of the rows has its first token then."""
        ...

    def step(self) -> None:
        """One more token for each row that has joined and not left."""
        ...

    def leave(self, gone: Sequence[Any]) -> None:
        """Takes rows out."""
        ...


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """What a request for text asks of a replica. Choice k is the k-th continuation, prompt by prompt."""

    prompts: Sequence[str | Sequence[int]]
    n: int = 1
    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: Sequence[str] = ()

    @property
    def choices(self) -> int:
        return self.n * len(self.prompts)

    def check(self, max_rows: int) -> None:
        """Before anything is done with it. max_rows: texts that a replica continues together.

        Raises: ParameterError for more texts, or more characters, than are taken.
        """
        if self.choices > max_rows:
            raise ParameterError(f"{self.choices} texts in one request: at most {max_rows} (--max-batch-rows)", "n")
        characters = sum(len(prompt) for prompt in self.prompts if isinstance(prompt, str))
        if characters > MOST_CHARACTERS:
            raise ParameterError(f"the prompts have {characters:,} characters: at most {MOST_CHARACTERS:,} in one "
                                 "request. Longer ones may come as tokens", "prompt")
