"""What continues texts, and what a request asks of it."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from cluster.core.documents import JsonObject
from jobs.common.predictor.predictor import MOST_CHARACTERS
from jobs.common.predictor.texts import CallRule, Scores, ToolCallForm
from serving.core.errors import ParameterError


class Row(Protocol):
    """A text that is continued: `token` is its last."""

    token: int
    scores: Scores | None
    """Of that token, where they are asked for."""


class Chat(Protocol):
    """What a model has that answers conversations."""

    @property
    def ends(self) -> Collection[int]:
        """Tokens that end an answer, beside the model's own end."""
        ...

    @property
    def tool_calls(self) -> ToolCallForm | None:
        """How it calls tools; None: that is text as any other."""
        ...

    def prompt(self, messages: Sequence[JsonObject], tools: Sequence[JsonObject]) -> list[int]:
        """What the model continues with an answer. Raises: InputError, with what its chat template says."""
        ...

    def pieces(self) -> Callable[[int], str]:
        """As `Generator.pieces`, of an answer."""
        ...


class Generator(Protocol):
    """Continues texts together, a token each a step. All but `tokens`, `pieces` and properties are of one thread."""

    end_id: int
    vocab_size: int
    max_tokens: int | None
    """Of prompt and continuation together."""

    @property
    def chat(self) -> Chat | None:
        """None: it has no chat template."""
        ...

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

    def constraint(self, held_to: str | CallRule) -> Any:
        """What texts have to fit: a schema, in JSON, or a rule of which calls there may be. Called by any thread.
        Raises: InputError for what cannot be kept to."""
        ...

    def row(self, temperature: float, top_p: float, random: np.random.Generator, top: int | None,
            constraint: Any | None) -> Row:
        """A text to be. It draws from `random`. top: likeliest tokens that are told of each; None: no scores."""
        ...

    def join(self, prompt: Sequence[int], rows: Sequence[Any]) -> int:
        """Each of the rows has its first token then. Returns how many tokens of the prompt were not computed again."""
        ...

    def step(self) -> None:
        """One more token for each row that has joined and not left."""
        ...

    def leave(self, gone: Sequence[Any]) -> None:
        """Takes rows out."""
        ...


@dataclass(frozen=True, kw_only=True)
class PromptUsage:
    """What the prompts of a request were, once they have been read."""

    tokens: int
    cached: int
    """Of these, the ones that an earlier prompt began with, and that were not computed again."""


@dataclass(frozen=True, kw_only=True)
class ChatPrompt:
    """A conversation whose answer is asked for."""

    messages: Sequence[JsonObject]
    """As OpenAI's, where each content is a text, and arguments of calls are objects."""
    tools: Sequence[JsonObject] = ()
    characters: int = 0
    """Of all that it says."""


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """What a request for text asks of a replica. Choice k is the k-th continuation, prompt by prompt."""

    prompts: Sequence[str | Sequence[int] | ChatPrompt]
    n: int = 1
    max_tokens: int | None = 16
    """None: as many as the model has positions for."""
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: Sequence[str] = ()
    top_logprobs: int | None = None
    """Likeliest tokens that are told of each; None: no scores."""
    held_to: str | CallRule | None = None
    """The schema, in JSON, of the JSON that each text has to be, or what it may call; None: any text."""

    @property
    def choices(self) -> int:
        return self.n * len(self.prompts)

    def check(self, max_rows: int) -> None:
        """Before anything is done with it. max_rows: texts that a replica continues together.

        Raises: ParameterError for more texts, or more characters, than are taken.
        """
        if self.choices > max_rows:
            raise ParameterError(f"{self.choices} texts in one request: at most {max_rows} (--max-batch-rows)", "n")
        characters = sum(prompt.characters if isinstance(prompt, ChatPrompt) else len(prompt)
                         for prompt in self.prompts if isinstance(prompt, str | ChatPrompt))
        if characters > MOST_CHARACTERS:
            what, param = "prompts", "prompt"
            if isinstance(self.prompts[0], ChatPrompt):
                what, param = "messages and tools", "messages"
            raise ParameterError(f"the {what} have {characters:,} characters: at most {MOST_CHARACTERS:,} in one "
                                 "request. Longer ones may come as tokens to /v1/completions", param)
