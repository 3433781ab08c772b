"""Answers that fit a JSON schema: of each token it is known whether it may come next (llguidance).

A schema that is not understood as a whole is refused, and so is one that nothing fits.
"""

import functools
import logging
from collections.abc import Collection

import numpy as np
from llguidance import LLMatcher, LLTokenizer

from cluster.core.errors import InputError
from jobs.common.arrays import Array

_log = logging.getLogger(__name__)


class Constraint:
    """One answer on its way."""

    def __init__(self, matcher: LLMatcher, ends: Collection[int]) -> None:
        self._matcher, self._ends = matcher, ends

    def copy(self) -> "Constraint":
        """For another answer that has to fit the same, before it has begun."""
        return Constraint(self._matcher.deep_copy(), self._ends)

    def allowed(self, count: int) -> Array:
        """(count,) of bool: which tokens may come next, of those that a model has."""
        found = np.zeros(count, bool)
        if not self._matcher.is_error():
            bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), np.uint8), bitorder="little")[:count]
            found[: len(bits)] = bits
        if not found.any():  # no token of the model's goes on with it
            found[list(self._ends)] = True
        return found

    def take(self, token: int) -> None:
        """The token that came."""
        if not self._matcher.is_error() and not self._matcher.consume_token(token):
            _log.error("an answer ends before it fits its schema: %s", self._matcher.get_error())


class Constraints:
    """Those of one model's answers."""

    def __init__(self, tokenizer: str, vocab_size: int, ends: Collection[int]) -> None:
        """tokenizer: a tokenizer.json. ends: tokens that end an answer."""
        self._about, self._vocab_size, self._ends = tokenizer, vocab_size, sorted(ends)

    def constraint(self, schema: str) -> Constraint:
        """schema: JSON. Raises: InputError."""
        try:
            grammar = LLMatcher.grammar_from_json_schema(schema, overrides={  # it might go on with spaces for ever
                "whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "})
        except ValueError as error:  # too deep
            raise InputError(f"the schema cannot be kept to: {error}") from error
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise InputError(f"the schema cannot be kept to: {matcher.get_error()[:500]}")
        return Constraint(matcher, self._ends)

    @functools.cached_property
    def _tokenizer(self) -> LLTokenizer:
        """Takes about a second where there are many words."""
        try:
            return LLTokenizer(self._about, n_vocab=self._vocab_size, eos_token=self._ends)
        except ValueError as error:
            raise InputError("this model's answers cannot be held to a schema: of its tokenizer it is not known which "
                             "bytes a token stands for") from error
