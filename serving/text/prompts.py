"""What a request asks a model to continue, as its tokens; and what its texts have to fit."""

from collections.abc import Sequence
from typing import Any

from cluster.core.errors import InputError
from jobs.common.predictor.texts import CallRule
from serving.core.errors import ParameterError
from serving.text.generation import ChatPrompt, Generator


def tokens_of(generator: Generator, given: str | Sequence[int] | ChatPrompt, max_tokens: int | None) -> list[int]:
    """Of a prompt. Raises: ParameterError for what does not fit the model."""
    if isinstance(given, ChatPrompt):
        tokens = _conversation(generator, given)
    else:
        tokens = generator.tokens(given) if isinstance(given, str) else list(given)
    most = generator.max_tokens
    if most is not None and len(tokens) >= most and max_tokens is None:
        raise ParameterError(f"the prompt has {len(tokens)} tokens, and the model takes {most} together with its "
                             "answer", "messages" if isinstance(given, ChatPrompt) else "prompt")
    if most is not None and max_tokens is not None and len(tokens) + max_tokens > most:
        raise ParameterError(f"the prompt has {len(tokens)} tokens, and max_tokens is {max_tokens}: together "
                             f"{len(tokens) + max_tokens}, and the model takes {most}", "max_tokens")
    if (wrong := next((t for t in tokens if not 0 <= t < generator.vocab_size), None)) is not None:
        raise ParameterError(f"{wrong} is no token: the model has 0 to {generator.vocab_size - 1}", "prompt")
    return tokens


def _conversation(generator: Generator, given: ChatPrompt) -> list[int]:
    if generator.chat is None:
        raise ParameterError("the model has no chat template", "model")
    try:
        return generator.chat.prompt(given.messages, given.tools)
    except InputError as error:
        raise ParameterError(str(error), "messages") from error


def constraint_of(generator: Generator, held_to: str | CallRule) -> Any:
    """What each text of a request has to fit. Raises: ParameterError."""
    try:
        return generator.constraint(held_to)
    except InputError as error:
        param = "tools" if isinstance(held_to, CallRule) else "response_format"
        raise ParameterError(f"`{param}`: {error}", param) from error
