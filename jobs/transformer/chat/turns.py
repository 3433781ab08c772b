"""Which characters of a conversation an assistant writes: what a model is trained to write.

A turn is what the assistant says, what the template writes before it that the model has to write itself (what follows
the template's prompt for an answer), and the end of the turn, by which the model stops. Where the template marks it
(`{% generation %}`), the marks say; else it is found by what the template writes for the conversation up to the turn.
Either way each character's origin is known (traced.py), and a turn is refused unless all that the assistant says, and
nothing that anybody else does, lies in it.
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from cluster.core.documents import JsonObject
from jobs.transformer.chat.conversation import ChatTemplateError, Conversation, LossOn
from jobs.transformer.chat.template import REASONING, ChatTemplate, Rendering, special_in
from jobs.transformer.chat.traced import alike

_FILLER = "x"
Ranges = tuple[tuple[int, int], ...]
_UNCERTAIN = "does not write before it what it writes as a prompt for it, so that it is not certain where it begins"


@dataclass(frozen=True)
class Turn:
    """What an assistant writes in one message."""

    message: int
    ranges: Ranges
    """(start, stop) of its characters: several where the template marks several."""
    ends: bool
    """Whether the end of the turn is among them."""


def turns_of(template: ChatTemplate, conversation: Conversation, loss_on: LossOn) -> tuple[Rendering, list[Turn]]:
    """The conversation as it is written, and the turns that are learnt. Raises: ChatTemplateError, naming the message,
    where it is not certain which characters are the assistant's."""
    try:
        finder = _Finder(template, conversation)
    except ChatTemplateError as error:
        raise ChatTemplateError(f"the chat template {error}") from error
    if loss_on == "all":
        return finder.whole, [Turn(-1, ((0, len(finder.whole.text)),), True)]
    spoken = [number for number, message in enumerate(conversation.messages)
              if message["role"] == "assistant" and message.get("weight", 1)]
    if not spoken:
        raise ChatTemplateError("no message is an assistant's, or none that counts")
    turns: list[Turn] = []
    for number in spoken[-1:] if loss_on == "last" else spoken:
        try:
            turns.append(finder.turn(number))
        except ChatTemplateError as error:
            raise ChatTemplateError(f"of message {number} (assistant) the chat template {error}") from error
    return finder.whole, turns


class _Finder:
    """The turns of one conversation."""

    def __init__(self, template: ChatTemplate, conversation: Conversation) -> None:
        """Raises: ChatTemplateError."""
        self.template, self.conversation = template, conversation
        self.whole = template.trace(conversation)
        self.blocks = self.whole.blocks()
        for number, message in enumerate(conversation.messages):
            said = str(message.get("content") or "").strip()
            if said and message["role"] != "assistant" and not self.whole.of(number) and any(
                    said in self.whole.text[start:start + size] for start, size in self.whole.literals()):
                raise ChatTemplateError(f"treats message {number} ({message['role']}) in a way that cannot be followed")

    def turn(self, number: int) -> Turn:
        """Raises: ChatTemplateError."""
        message = self.conversation.messages[number]
        own = self.whole.of(number)
        if message.get("tool_calls") and number + 1 < len(self.conversation.messages):
            # the answers to its calls may be written with the names that it gives
            own = own[:len(self.template.trace(self.conversation.until(number + 1)).of(number))]
        if not own:
            return self._empty(number)
        first, last = own[0][0], own[-1][1]
        if self.blocks:
            ranges, ends = self._marked(number, first, last)
        else:
            begin, end = self._begin(number, first), last + self._end(number, last)
            ranges, ends = ((begin, end),), end > last
        if any(self.whole.others(number, start, stop) for start, stop in ranges):
            raise ChatTemplateError("writes what another message says in the middle of it")
        _check_whole(self.whole, message, own, ranges[0][0], ranges[-1][1])
        return Turn(number, ranges, ends)

    # ── by the template's own marks ──
    def _marked(self, number: int, first: int, last: int) -> tuple[Ranges, bool]:
        after = self.whole.next_other(number, last)
        ours = [(start, stop) for start, stop in self.blocks
                if (start < last and stop > first) or last <= start < stop <= after]
        covered = sum(min(stop, last) - max(start, first) for start, stop in ours if start < last)
        if covered < last - first and any(not any(start <= place and stop <= end for start, end in ours)
                                          for place, stop, _ in self.whole.of(number) if stop <= last):
            raise ChatTemplateError("marks as generated only a part of it, or nothing")
        return tuple(ours), bool(self.whole.text[last:ours[-1][1]].strip())

    # ── by what it writes for the conversation up to the turn ──
    def _begin(self, number: int, first: int) -> int:
        """Where the assistant begins to write: behind the template's prompt for an answer."""
        text, message = self.whole.text, self.conversation.messages[number]
        says_first = not message.get("tool_calls") and self._starts_with_content(number)
        before = self.conversation.until(number)
        try:
            prompted = self.template.told(before, add_generation_prompt=True)
            reached = bool(prompted) and text.startswith(prompted) and len(prompted) <= first
            if reached and not text[len(prompted):first].strip():
                return len(prompted)
            plain = self.template.told(before)
        except ChatTemplateError:  # it may want the messages that follow
            plain, prompted, reached = "", "", False
        prompt = prompted[len(plain):] if prompted.startswith(plain) else ""
        if reached:
            if prompt:
                return len(prompted)
            return first if says_first else self._behind_header(number, len(prompted))
        since = self.whole.previous_other(number, first)
        if prompt and (place := text.rfind(prompt, since, first)) >= 0:
            return place + len(prompt)
        if says_first:
            return first
        same = _common(text, prompted)
        if prompt and len(plain) < same <= first and special_in(text[len(plain):same], self.template.specials):
            return same  # behind as much of the prompt as it writes
        raise ChatTemplateError(_UNCERTAIN)

    def _starts_with_content(self, number: int) -> bool:
        """Whether what is written of a message begins with what its content begins with."""
        run = self.whole.of(number)[0][2]
        field, text = self.whole.texts[run.source[1]] if run.source and run.source[1] >= 0 else ("", "")
        return field == "content" and run.start is not None and not text[:run.start].strip()

    def _behind_header(self, number: int, begin: int) -> int:
        """Of a turn that does not begin with its content, where the template has no prompt: what it writes before an
        answer that does is no part of the turn."""
        plain = Conversation((*self.conversation.messages[:number], {"role": "assistant", "content": _FILLER}),
                             self.conversation.tools)
        told = self.template.told(plain)
        return max(begin, _common(told[:told.rindex(_FILLER)], self.whole.text))

    def _end(self, number: int, last: int) -> int:
        """How many characters behind what the assistant says end its turn."""
        after = self.whole.text[last:self.whole.next_other(number, last)]
        alone = after
        if number < len(self.conversation.messages) - 1:
            short = self.template.trace(self.conversation.until(number + 1))
            alone = short.text[short.of(number)[-1][1]:] if short.of(number) else ""
        header = self.whole.text[self.whole.previous_other(number, last):last] if self.template.prompts_unasked else ""
        ends: list[tuple[int, int]] = []
        for start, stop in special_in(alone, self.template.specials):
            if alone[start:stop] == self.template.opener or alone[start:stop] in header:
                alone = alone[:start]  # what follows opens another turn
                break
            ends.append((start, stop))
        if not ends:
            marker = alone.rstrip()
            return len(marker) if after.startswith(marker) else 0
        same = alike(alone, after)
        if within := [stop for _, stop in ends if stop <= same]:
            return within[-1]
        return self._other_end(number, after, ends[0][0]) if ends[0][0] <= same else 0

    def _other_end(self, number: int, after: str, begin: int) -> int:
        """Where a turn ends by another token in the middle of a conversation than at its end: the one by which the
        message before it ends, too."""
        before = self.template.trace(self.conversation.until(number))
        own = before.of(number - 1)
        asked = before.text[own[-1][1]:] if own else ""
        return next((stop for start, stop in special_in(after, self.template.specials)[:1]
                     if start == begin and asked[:stop - start] == after[start:stop]), 0)

    # ── nothing said ──
    def _empty(self, number: int) -> Turn:
        """A turn of which nothing is written, found by what the template writes for one that says something."""
        message = self.conversation.messages[number]
        if message.get("tool_calls"):
            raise ChatTemplateError("writes none of its tool calls: take a template that knows them")
        if str(message.get("content") or "").strip():
            raise ChatTemplateError("writes nothing of what it says")
        filled = _Finder(self.template, self.conversation.with_content(number, _FILLER))
        found, (place, *more) = filled.turn(number), filled.whole.of(number)
        start, stop, _ = place
        if more or filled.whole.text[:start] + filled.whole.text[stop:] != self.whole.text:
            raise ChatTemplateError("writes an empty answer in another way than one that says something")
        width = stop - start
        ranges = [(begin - width * (begin >= stop), end - width * (end >= stop)) for begin, end in found.ranges]
        return Turn(number, tuple(ranges), found.ends)


def _check_whole(whole: Rendering, message: JsonObject, own: Sequence[tuple[int, int, Any]], begin: int,
                 end: int) -> None:
    """Raises: ChatTemplateError unless all that a message says is written, once."""
    content = message.get("content")
    if isinstance(content, str) and content.strip():
        parts = [(start, stop) for start, stop, run in own if whole.field(run.source) == "content"]
        together = "".join(whole.text[start:stop] for start, stop in parts)
        apart = any(first[1] != second[0] for first, second in itertools.pairwise(parts))
        places = [run.start for _, _, run in own if whole.field(run.source) == "content"]
        in_order = all(first is not None and second is not None and first < second
                       for first, second in itertools.pairwise(places))
        if (together.strip() != content.strip() or apart) and not (
                in_order and parts and _squeezed(whole.text[begin:parts[-1][1]]).endswith(_squeezed(content))):
            raise ChatTemplateError("leaves out or changes a part of what it says, or writes it twice")
    fields = {whole.field(run.source) for _, _, run in own}
    if any(str(message.get(name) or "").strip() for name in REASONING) and not fields & {*REASONING, ""}:
        raise ChatTemplateError("leaves out its reasoning: take a template that writes it, or take "
                                "reasoning_content out of the row")
    _check_calls(whole, message, own, whole.text[begin:end])


def _check_calls(whole: Rendering, message: JsonObject, own: Sequence[tuple[int, int, Any]], written: str) -> None:
    """Raises: ChatTemplateError unless all texts of a message's tool calls are written as such, and all numbers."""
    called = "\n".join(whole.text[start:stop] for start, stop, run in own
                       if whole.field(run.source) in ("tool_calls", ""))
    values = Counter(_values_in([call["function"] for call in message.get("tool_calls") or ()]))
    for value, times in values.items():
        where = called if isinstance(value, str) else written
        if max(where.count(form) for form in _forms(value)) < times:
            raise ChatTemplateError(f"leaves out {str(value)[:40]!r} of its tool calls: take a template that knows "
                                    "them")


def _forms(value: object) -> set[str]:
    """How a value may be written."""
    forms = {json.dumps(value, ensure_ascii=ascii) for ascii in (False, True)} | {str(value)}
    return {form[1:-1] for form in forms if isinstance(value, str) and form.startswith('"')} | {str(value)} | (
        set() if isinstance(value, str) else forms)


def _common(text: str, other: str) -> int:
    """How many characters two texts begin with alike, without a marker's first half."""
    same = alike(text, other)
    opened = max(text.rfind("<", 0, same), text.rfind("[", 0, same))
    closed = max(text.rfind(">", 0, same), text.rfind("]", 0, same))
    return opened if opened > closed else same


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _values_in(value: object) -> Iterator[object]:
    """Texts, numbers and booleans."""
    if isinstance(value, dict):
        yield from itertools.chain.from_iterable(map(_values_in, cast("dict[str, object]", value).values()))
    elif isinstance(value, list):
        yield from itertools.chain.from_iterable(map(_values_in, cast("list[object]", value)))
    elif value is not None and value != "":
        yield value
