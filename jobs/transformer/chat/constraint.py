"""Answers that fit a JSON schema, or call tools whose arguments do: of each token it is known whether it may come next
(llguidance).

A schema that is not understood as a whole is refused, and so is one that nothing fits.
"""

import functools
import json
import logging
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer

from cluster.core.documents import parse_json
from cluster.core.errors import InputError
from jobs.common.arrays import Array
from jobs.common.predictor.texts import CallRule, ToolCallForm

_SPACING: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""Of JSON: it might go on with spaces for ever."""
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
            grammar = LLMatcher.grammar_from_json_schema(schema, overrides=_SPACING)
        except ValueError as error:  # too deep
            raise InputError(f"the schema cannot be kept to: {error}") from error
        return self._of(grammar)

    def calls(self, rule: CallRule, form: ToolCallForm) -> Constraint:
        """form: in which the model writes them. Raises: InputError."""
        for name, schema in rule.arguments.items():
            try:
                self.constraint(json.dumps(schema))
            except InputError as error:
                raise InputError(f"function {name}: {error}") from error
        specials = {token["content"]: token["id"] for token in parse_json(self._about)["added_tokens"]
                    if token["special"]}
        return self._of(_grammar(rule, form, specials))

    def _of(self, grammar: str) -> Constraint:
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


# ── calls of tools ──
def _grammar(rule: CallRule, form: ToolCallForm, specials: Mapping[str, int]) -> str:
    """In llguidance's dialect of Lark. specials: tokens that no text is made of, with their ids."""
    begin, end = (f"<[{specials[mark]}]>" if mark in specials else json.dumps(mark) if mark else ""
                  for mark in (form.begin, form.end))
    each_marked = bool(form.end) and not form.listed  # else what begins once goes on with all calls
    more = "" if each_marked or not rule.several else '(space "," space call)*' if form.listed else "(space call)*"
    calls = f'"[" space call {more} space "]"' if form.listed else f"call {more}"
    lines = ["%llguidance {}", f"calls: space {calls} space {end}", *_call(rule, form), "space: /[ \\n]{1,4}/?"]
    if rule.required:
        again = f"(space {begin} calls)*" if each_marked and rule.several else ""
        return "\n".join([*lines, f"start: {begin} calls {again}"])
    if not form.begin:  # what begins as a call does is one
        text = r"/(\s*[^\s{\[](.|\n)*)?/" if form.listed else r"/(\s*[^\s{](.|\n)*)?/"
        return "\n".join([*lines, "start: TEXT | calls", f"TEXT: {text}"])
    called = f"TEXT {begin} calls"
    if form.begin not in specials:  # letters end a text as soon as they have come
        called, lines = "begun calls", [*lines, f"begun[lazy]: TEXT {begin}"]
    start = f"({called})* TEXT" if each_marked and rule.several else f"TEXT | {called}"
    return "\n".join([*lines, f"start: {start}", r"TEXT: /(.|\n)*/"])


def _call(rule: CallRule, form: ToolCallForm) -> list[str]:
    """One call: a function's name, and what it is given. Each schema is a whole by itself, with its own `$defs`."""
    names = [json.dumps(f'{{"name": {json.dumps(name)}, "{form.arguments}": ') for name in rule.arguments]
    options = [f'{name} arguments_{place} "}}"' for place, name in enumerate(names)]
    return [f"call: {' | '.join(options)}", *(
        f"arguments_{place}: %json {json.dumps({**schema, 'x-guidance': _SPACING})}"
        for place, schema in enumerate(rule.arguments.values()))]
