"""An assistant's answer: what it is asked with, by which tokens it ends, and in which form it calls tools.

Both are found by what the template writes for conversations that are made up here.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import json
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from cluster.core.documents import JsonObject
from cluster.core.errors import InputError
from jobs.common.predictor.call_forms import KNOWN, MARKS, calls_in
from jobs.common.predictor.texts import ToolCallForm
from jobs.transformer.chat.conversation import ChatTemplateError, Conversation
from jobs.transformer.chat.encode import ChatEncoder
from jobs.transformer.chat.template import ChatTemplate, Rendering, special_in

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

_NAME, _ARGUMENTS = "lookup", {"word": "seven"}
_TOOL: JsonObject = {"type": "function", "function": {"name": _NAME, "description": "Looks a word up.", "parameters": {
    "type": "object", "properties": {"word": {"type": "string", "description": "The word."}}, "required": ["word"]}}}
_ASKED: JsonObject = {"role": "user", "content": "What is it?"}
_SAID: JsonObject = {"role": "assistant", "content": "It is seven."}
_CALL = re.compile(r"(?P<begin><\w+>|\[[A-Z_]+\])?\s*(?P<list>\[\s*)?(?=\{\s*\"name\")")
_BEHIND = re.compile(r"\s*(?P<list>\])?\s*(?P<end></\w+>)?")


def _calling(count: int) -> JsonObject:
    return {"role": "assistant", "content": "", "tool_calls": [
        {"id": f"probe000{number}", "type": "function", "function": {"name": _NAME, "arguments": _ARGUMENTS}}
        for number in range(count)]}


def _told(number: int) -> JsonObject:
    return {"role": "tool", "name": _NAME, "tool_call_id": f"probe000{number}", "content": "It is 7."}


class Chat:
    """Conversations with a model."""

    def __init__(self, encoder: ChatEncoder, backend: "Tokenizer") -> None:
        """backend: what decodes the model's tokens."""
        self._encoder, self._backend = encoder, backend
        found = (backend.token_to_id(end) for end in ends_of(encoder.template))
        self.ends = frozenset(token for token in found if token is not None)
        """Tokens that end an answer, beside the model's own end."""
        self.tool_calls = tool_call_form(encoder.template)
        marks = (self.tool_calls.begin, self.tool_calls.end, *MARKS) if self.tool_calls else ()
        self._shown = {backend.token_to_id(mark): mark for mark in marks if mark in encoder.template.specials}

    @staticmethod
    def of(tokenizer: "PreTrainedTokenizerFast", backend: "Tokenizer") -> "Chat | None":
        """None: the tokenizer has no chat template."""
        if not tokenizer.chat_template:
            return None
        return Chat(ChatEncoder.of(tokenizer), backend)

    def prompt(self, messages: Sequence[JsonObject], tools: Sequence[JsonObject]) -> list[int]:
        """Raises: InputError, with what the template says."""
        try:
            written = self._encoder.template.trace(Conversation(tuple(messages), tuple(tools)),
                                                   add_generation_prompt=True, options={})
        except ChatTemplateError as error:
            raise InputError(f"the chat template {error}") from error
        try:
            return self._encoder.ids(written)
        except ChatTemplateError as error:
            raise InputError(str(error)) from error

    def pieces(self) -> Callable[[int], str]:
        """As of the model's other texts, with the marks of tool calls where they are special tokens."""
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(skip_special_tokens=True)
        return lambda token: self._shown.get(token) or stream.step(self._backend, token) or ""


# ── where an answer ends ──
def ends_of(template: ChatTemplate) -> frozenset[str]:
    """The special tokens by which an assistant's turn ends: of what it says, and of its calls, at the end of a
    conversation and before the next turn."""
    return frozenset(filter(None, _ends(template)))


def end_of_answer(template: ChatTemplate) -> str | None:
    """The one by which what it says ends at the end of a conversation, if there is one."""
    return _ends(template)[0]


def _ends(template: ChatTemplate) -> list[str | None]:
    """Of what it says at the end of a conversation, of the same before the next turn, of its calls at the end, and of
    these before their answers. Of each turn it is the first special token behind what is the assistant's, but for those
    that stand within one, too, as between its thoughts and what it says, or between two calls."""
    count = 2 if _written(template, Conversation((_ASKED, _calling(2)), (_TOOL,))) else 1
    calls = Conversation((_ASKED, _calling(count), *map(_told, range(count)), _SAID), (_TOOL,))
    turns = (Conversation((_ASKED, _SAID | {"reasoning_content": "Is it seven?"})),
             Conversation((_ASKED, _SAID, _ASKED, _SAID)), calls.until(2), calls)
    found = [_specials(template, turn) for turn in turns]
    within = {special for inside, _ in found for special in inside}
    return [next((each for each in behind if each not in within), None) for _, behind in found]


def _written(template: ChatTemplate, conversation: Conversation) -> Rendering | None:
    """None: the template refuses it."""
    try:
        return template.trace(conversation)
    except ChatTemplateError:
        return None


def _specials(template: ChatTemplate, conversation: Conversation) -> tuple[list[str], list[str]]:
    """Those that stand within what is the assistant's in message 1, and those between it and the next one's."""
    whole, short = _written(template, conversation), _written(template, conversation.until(2))
    own = whole.of(1) if whole else []
    if whole is None or not own:
        return [], []
    own = own[:len(short.of(1)) if short else None]  # the answer to a call may be written with its name
    first, last = own[0][0], own[-1][1]
    parts = whole.text[first:last], whole.text[last:whole.next_other(1, last)]
    inside, behind = ([part[start:stop] for start, stop in special_in(part, template.specials)] for part in parts)
    return inside, behind


# ── how it calls tools ──
def tool_call_form(template: ChatTemplate) -> ToolCallForm | None:
    """None: the template writes calls in no form that is known, so that they are nothing but text."""
    conversation = Conversation((_ASKED, _calling(1)), (_TOOL,))
    whole = _written(template, conversation)
    own = whole.of(1) if whole else []
    if whole is None or not own:
        return None
    written = whole.text[whole.previous_other(1, own[0][0]):]
    for found in _CALL.finditer(written):
        try:
            call, stop = json.JSONDecoder().raw_decode(written, found.end())
        except ValueError:
            continue
        fields = [name for name, value in call.items() if value == _ARGUMENTS]
        begin, behind = found["begin"] or "", _BEHIND.match(written, stop)
        if call.get("name") == _NAME and len(fields) == 1 and behind and bool(found["list"]) == bool(behind["list"]):
            end = f"</{begin[1:]}" if begin.startswith("<") else ""
            return ToolCallForm(begin=begin, end=end if end == behind["end"] else "", arguments=fields[0],
                                listed=bool(found["list"]))
    return next((form for form in KNOWN if _reads(form, written)), None)


def _reads(form: ToolCallForm, written: str) -> bool:
    """Whether what stands between the form's marks reads as the call that was made up."""
    _, begin, behind = written.partition(form.begin)
    call, _, _ = behind.partition(form.end)
    return bool(begin) and calls_in(form, call, {_NAME: _TOOL["function"]["parameters"]}) == [(_NAME, _ARGUMENTS)]
