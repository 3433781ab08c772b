"""From conversations to tokens, and which of the tokens are learnt.

    encoder = ChatEncoder.of(tokenizer)
    encoder.prompt(Conversation(({"role": "user", "content": "Hello"},)))       # what an endpoint continues
    encoder.row(Conversation((question, answer)), "assistant")                  # what a model is trained on

Special tokens are control tokens where the template writes them, and nothing but their letters where a message does. A
token is learnt where all of its characters are the assistant's: one that a tokenizer has merged across the beginning or
the end of a turn is not.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import functools
import json
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from cluster.core.documents import JsonObject, parse_json
from jobs.transformer.chat.conversation import ChatTemplateError, Conversation, LossOn
from jobs.transformer.chat.template import ChatTemplate, Rendering, special_in
from jobs.transformer.chat.turns import turns_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

Ints = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Encoded:
    """Tokens of a text. Each array has one value a token."""

    ids: Ints
    starts: Ints
    """The first of its characters,"""
    stops: Ints
    """and the one after the last."""


@dataclass(frozen=True)
class ChatRow:
    """A conversation as tokens."""

    ids: Ints
    learnt: Bools
    """Whether each is learnt: whether an assistant writes it."""
    merged: int
    """Tokens that an assistant writes a part of only, which are not learnt."""
    unended: int
    """Turns whose end is not learnt: the template writes none, or the tokenizer has merged it with what follows."""

    def cut(self, most: int) -> "ChatRow":
        """Its first tokens."""
        return replace(self, ids=self.ids[:most], learnt=self.learnt[:most])


@dataclass(frozen=True)
class ChatEncoder:
    """A chat template with its tokenizer."""

    template: ChatTemplate
    tokenizer: str
    """A tokenizer.json."""

    @staticmethod
    def of(tokenizer: "PreTrainedTokenizerFast", source: str | None = None) -> "ChatEncoder":
        """source: a template; None: the tokenizer's own. Raises: ChatTemplateError where there is none."""
        return ChatEncoder(ChatTemplate.of(tokenizer, source), tokenizer.backend_tokenizer.to_str())

    def prompt(self, conversation: Conversation, **options: Any) -> list[int]:
        """What a model continues with an answer. options: what else the template knows. Raises: ChatTemplateError."""
        traced = self.template.trace(conversation, add_generation_prompt=True, options=options)
        return self.ids(traced)

    def row(self, conversation: Conversation, loss_on: LossOn) -> ChatRow:
        """What a model is trained on. Raises: ChatTemplateError where it is not certain what the assistant writes."""
        whole, turns = turns_of(self.template, conversation, loss_on)
        found = self.encoded(whole)
        learnt, touched = np.zeros(len(found.ids), bool), np.zeros(len(found.ids), bool)
        unended = 0
        for turn in turns:
            for start, stop in turn.ranges:
                inside = (found.starts >= start) & (found.stops <= stop) & (found.stops > found.starts)
                self._check(whole.text[start:stop], found, np.flatnonzero(inside), start)
                learnt |= inside
                touched |= (found.starts < stop) & (found.stops > start)
            start, stop = turn.ranges[-1]
            last = start + len(whole.text[start:stop].rstrip()) - 1
            unended += not (turn.ends and learnt[(found.starts <= last) & (found.stops > last)].all())
        learnt[:1] = touched[:1] = False  # nothing comes before it
        if not learnt.any():
            raise ChatTemplateError("none of its tokens is the assistant's alone")
        return ChatRow(found.ids, learnt, int((touched & ~learnt).sum()), unended)

    def encoded(self, traced: Rendering) -> Encoded:
        """Raises: ChatTemplateError where a message holds a special token's letters, and the tokenizer cannot keep
        them apart from it."""
        pieces = [_encode(_backend(self.tokenizer, control), traced.text[start:stop], start)
                  for control, start, stop in self._parts(traced)]
        return Encoded(*(np.concatenate([getattr(piece, name) for piece in pieces])
                         for name in ("ids", "starts", "stops")))

    def ids(self, traced: Rendering) -> list[int]:
        """The tokens alone. Other threads go on meanwhile, however long it is. Raises: as `encoded`."""
        parts = self._parts(traced)
        found = {control: iter(_backend(self.tokenizer, control).encode_batch_fast(
            [traced.text[start:stop] for kind, start, stop in parts if kind == control], add_special_tokens=False))
            for control in (False, True)}
        return [token for control, _, _ in parts for token in next(found[control]).ids]

    def _parts(self, traced: Rendering) -> Sequence[tuple[bool, int, int]]:
        """(whether special tokens in it are control tokens, start, stop) of what is encoded by itself."""
        text, specials = traced.text, self.template.specials
        everywhere = special_in(text, specials)
        own = [(place + start, place + stop) for place, length in traced.literals()
               for start, stop in special_in(text[place:place + length], specials)]
        if own == everywhere:
            return [(True, 0, len(text))]
        if not self._keeps_apart:
            raise ChatTemplateError("a message holds the letters of a special token, which its tokenizer cannot tell "
                                    "from the token: take them out")
        return list(_apart(text, own))

    @functools.cached_property
    def _keeps_apart(self) -> bool:
        """Whether text between special tokens is encoded alike by itself."""
        for special in self.template.specials:
            text = f"x y{special}z w{special}\nz {special} z{special}{special} x"
            apart = [id for control, start, stop in _apart(text, special_in(text, (special,)))
                     for id in _encode(_backend(self.tokenizer, control), text[start:stop], start).ids.tolist()]
            if apart != _encode(_backend(self.tokenizer, True), text, 0).ids.tolist():
                return False
        return True

    def _check(self, said: str, found: Encoded, inside: npt.NDArray[np.intp], start: int) -> None:
        """Raises: ChatTemplateError unless the tokens that are learnt decode to what the assistant writes."""
        if not len(inside):
            return
        first, last = int(found.starts[inside[0]]) - start, int(found.stops[inside[-1]]) - start
        told = _backend(self.tokenizer, True).decode(found.ids[inside].tolist(), skip_special_tokens=False)
        if _plain(told) != _plain(said[first:last]) and not _has_unknown(self.tokenizer, found.ids[inside]):
            raise ChatTemplateError(f"its tokenizer gives back {told[:40]!r} for {said[first:last][:40]!r}")


def _apart(text: str, own: Sequence[tuple[int, int]]) -> Iterator[tuple[bool, int, int]]:
    """Control tokens, and the text between them."""
    place = 0
    for start, stop in [*own, (len(text), len(text))]:
        if place < start:
            yield False, place, start
        if start < stop:
            yield True, start, stop
        place = stop


def _plain(text: str) -> str:
    """What a tokenizer has to keep: not the case, nor how letters are composed, nor how many spaces there are."""
    return "".join(unicodedata.normalize("NFKD", text).casefold().split())


def _encode(backend: "Tokenizer", text: str, place: int) -> Encoded:
    one = backend.encode(text, add_special_tokens=False)
    offsets = np.array(one.offsets, np.int32).reshape(-1, 2)
    ids, greedy = np.array(one.ids, np.int32), _greedy(backend)
    for number in np.flatnonzero(np.isin(ids, list(greedy))).tolist() if greedy else ():
        start, stop = offsets[number].tolist()  # it has taken spaces beside it, which are not its own
        letters = greedy[int(ids[number])]
        start += text[start:stop].index(letters)
        offsets[number] = start, start + len(letters)
    return Encoded(ids, offsets[:, 0] + place, offsets[:, 1] + place)


@functools.lru_cache(16)
def _greedy(backend: "Tokenizer") -> dict[int, str]:
    """Added tokens that take the spaces before or behind them."""
    return {number: token.content for number, token in backend.get_added_tokens_decoder().items()
            if token.lstrip or token.rstrip}


@functools.lru_cache(8)
def _backend(tokenizer: str, control: bool) -> "Tokenizer":
    """control: whether special tokens that are written in a text are the tokens, and not letters."""
    from tokenizers import Tokenizer

    about = parse_json(tokenizer)
    for part in _parts(about.get("post_processor")):
        if "trim_offsets" in part:  # a token's space would not be among its characters
            part["trim_offsets"] = False
    backend = Tokenizer.from_str(json.dumps(about))
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = not control
    return backend


def _parts(processor: JsonObject | None) -> Iterator[JsonObject]:
    if processor:
        yield processor
        for each in cast("list[JsonObject]", processor.get("processors") or []):
            yield from _parts(each)


def _has_unknown(tokenizer: str, ids: Ints) -> bool:
    unknown = _unknown(tokenizer)
    return unknown is not None and bool((ids == unknown).any())


@functools.lru_cache(8)
def _unknown(tokenizer: str) -> int | None:
    model = parse_json(tokenizer)["model"]
    found = model.get("unk_id")
    return found if found is not None else _backend(tokenizer, True).token_to_id(model.get("unk_token") or "")
