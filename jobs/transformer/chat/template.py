"""A chat template: the text that a model reads for a conversation, and of each character whose it is.

    template = ChatTemplate.of(tokenizer)
    template.render(Conversation(({"role": "user", "content": "Hello"},)), add_generation_prompt=True)
"""

import functools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cluster.core.documents import JsonObject
from jobs.transformer.chat.conversation import ChatTemplateError, Conversation
from jobs.transformer.chat.traced import Run, Source, Tracer, alike

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

_FOLDER = Path(__file__).parent / "templates"
BUILT_IN: dict[str, tuple[str, ...]] = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama-3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "mistral": ("[INST]", "[/INST]"),
    "gemma": ("<start_of_turn>", "<end_of_turn>"),
    "qwen": ("<|im_start|>", "<|im_end|>"),
}
"""Templates that --model.chat-template knows by name, with the tokens that each is written with."""
REASONING = ("reasoning_content", "thinking", "reasoning")
"""Fields of a message that its thoughts may stand in."""
_TRAINING_DAY = datetime(2026, 1, 1)
"""What a template that writes the date is told when rows are prepared: they would differ from day to day."""
_FIXED = {"strftime_now": _TRAINING_DAY.strftime}
_PROBE = "17-probe-71"


@dataclass(frozen=True)
class Rendering:
    """A conversation as a template writes it."""

    text: str
    runs: tuple[tuple[int, Run], ...]
    """Where each begins in the text, and the run."""
    texts: tuple[tuple[str, str], ...]
    """Of the messages, by number: the field that each stands in, and the text."""

    def of(self, message: int) -> list[tuple[int, int, Run]]:
        """(start, stop, run) of what is a message's."""
        return [(start, start + run.length, run) for start, run in self.runs
                if run.source is not None and run.source[0] == message]

    def field(self, source: Source | None) -> str:
        """The message's field that a run is of; empty: of several."""
        return self.texts[source[1]][0] if source is not None and source[1] >= 0 else ""

    def others(self, message: int, start: int, stop: int) -> bool:
        """Whether something between two places is another message's, or a tool's."""
        return any(run.source is not None and run.source[0] != message and place < stop and place + run.length > start
                   for place, run in self.runs)

    def next_other(self, message: int, place: int) -> int:
        """Where, from a place on, the first text of another message begins."""
        return next((start for start, run in self.runs if start >= place and run.source is not None
                     and run.source[0] != message), len(self.text))

    def previous_other(self, message: int, place: int) -> int:
        """Where, before a place, the last text of another message ends."""
        return max((start + run.length for start, run in self.runs if run.source is not None
                    and run.source[0] != message and start + run.length <= place), default=0)

    def literals(self) -> list[tuple[int, int]]:
        """(start, length) of what the template itself writes, each as long as it goes."""
        found: list[tuple[int, int]] = []
        for start, run in self.runs:
            if run.source is None and found and sum(found[-1]) == start:
                found[-1] = (found[-1][0], found[-1][1] + run.length)
            elif run.source is None:
                found.append((start, run.length))
        return found

    def blocks(self) -> list[tuple[int, int]]:
        """The generation blocks, in order. Raises: ChatTemplateError for one that the template has torn apart."""
        found: dict[int, tuple[int, int]] = {}
        for start, run in self.runs:
            if run.block is not None and run.length:
                first, last = found.get(run.block, (start, start))
                if last != start:
                    raise ChatTemplateError("writes the parts of a generation block in several places")
                found[run.block] = (first, start + run.length)
        return sorted(found.values())


@dataclass(frozen=True)
class ChatTemplate:
    """A template, and the special tokens of the tokenizer that it is for."""

    source: str
    named: Mapping[str, str] = field(default_factory=dict[str, str])
    """What the template may call by name: bos_token, eos_token and others."""
    specials: tuple[str, ...] = ()
    """All special tokens, as they are written."""

    @staticmethod
    def of(tokenizer: "PreTrainedTokenizerFast", source: str | None = None) -> "ChatTemplate":
        """source: the template itself; None: the tokenizer's own. Raises: ChatTemplateError where there is none."""
        own = cast("str | dict[str, str] | None", cast(Any, tokenizer).chat_template)
        found = source or (own.get("default") if isinstance(own, dict) else own)
        if not found:
            raise ChatTemplateError("there is none")
        named = {name: str(value) for name, value in cast("dict[str, object]", tokenizer.special_tokens_map).items()
                 if isinstance(value, str)}
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        return ChatTemplate(found, named, tuple(sorted(special | set(named.values()))))

    def render(self, conversation: Conversation, *, add_generation_prompt: bool = False, **options: Any) -> str:
        """What the model reads. options: what else the template knows. Raises: ChatTemplateError."""
        return "".join([self._write(conversation, {"add_generation_prompt": add_generation_prompt, **options}, None)])

    def told(self, conversation: Conversation, *, add_generation_prompt: bool = False) -> str:
        """The text of `trace` as it is prepared for training, in less time. Raises: ChatTemplateError."""
        return self.render(conversation, add_generation_prompt=add_generation_prompt, **_FIXED)

    def trace(self, conversation: Conversation, *, add_generation_prompt: bool = False,
              options: Mapping[str, Any] | None = None) -> Rendering:
        """The same, with whose each character is; without `options` as it is prepared for training, where it is the
        same day every day. Raises: ChatTemplateError."""
        tracer, fixed = Tracer(), _FIXED if options is None else options
        text = self._write(conversation, {"add_generation_prompt": add_generation_prompt, **fixed}, tracer)
        runs: list[tuple[int, Run]] = []
        place = 0
        for run in getattr(text, "runs", (Run(len(text)),)):
            runs.append((place, run))
            place += run.length
        return Rendering("".join([text]), tuple(runs), tuple(tracer.texts))

    def _write(self, conversation: Conversation, options: Mapping[str, Any], tracer: Tracer | None) -> str:
        """tracer: None where nobody asks whose the characters are."""
        wrap, reads = tracer.wrap if tracer else _as_it_is, _reads(self.source)
        given = [_wrapped(wrap, number, message, reads) for number, message in enumerate(conversation.messages)]
        tools = wrap(-1, "tools", list(conversation.tools)) if conversation.tools else None
        return _rendered(self.source, {"documents": None, **self.named, "messages": given, "tools": tools, **options})

    def check(self) -> None:
        """Raises: ChatTemplateError unless it writes a question and its answer."""
        said = tuple({"role": role, "content": _PROBE} for role in ("user", "assistant"))
        if self.render(Conversation(said)).count(_PROBE) != len(said):
            raise ChatTemplateError("writes not all of a question and its answer")

    @functools.cached_property
    def opener(self) -> str | None:
        """The special token that stands next before what a user says: no turn of an assistant's ends by it."""
        try:
            whole = self.trace(Conversation(({"role": "user", "content": _PROBE},
                                             {"role": "assistant", "content": _PROBE})))
        except ChatTemplateError:
            return None
        before = whole.text[:whole.of(0)[0][0]] if whole.of(0) else ""
        return next((before[start:stop] for start, stop in reversed(special_in(before, self.specials))), None)

    @functools.cached_property
    def prompts_unasked(self) -> bool:
        """Whether it writes a prompt for an answer, or a part of it, where a conversation ends with one."""
        said = [{"role": role, "content": _PROBE} for role in ("user", "assistant", "user", "assistant")]
        try:
            whole, short = (self.trace(Conversation(tuple(said[:count]))) for count in (4, 2))
        except ChatTemplateError:
            return False
        turn, alone = whole.of(1), short.of(1)
        if not turn or not alone:
            return False
        after, behind = whole.text[turn[-1][1]:], short.text[alone[-1][1]:]
        header = whole.text[whole.previous_other(1, turn[0][0]):turn[0][0]]
        same = alike(after, behind)
        return any(behind[start:stop] in header for start, stop in special_in(behind, self.specials) if stop > same)


@functools.lru_cache(16)
def _compiled(source: str) -> Any:
    from jobs.transformer.chat.sandbox import compiled  # imports jinja2

    return compiled(source)


def _rendered(source: str, variables: Mapping[str, Any]) -> str:
    from jobs.transformer.chat.sandbox import rendered

    return rendered(_compiled(source), variables)


@dataclass(frozen=True)
class _Reads:
    """What a template takes messages to be, found by trying."""

    parts: bool
    """Contents are lists of parts, as templates of models for pictures have them."""
    arguments_as_text: bool
    """Arguments of tool calls are JSON, not objects."""


@functools.lru_cache(16)
def _reads(source: str) -> _Reads:
    def count(*messages: JsonObject) -> int:
        try:
            return _rendered(source, {
                "messages": [*messages], "tools": None, "bos_token": "", "eos_token": "",
                "add_generation_prompt": False}).count(_PROBE)
        except ChatTemplateError:
            return 0

    def said(content: object) -> int:
        return count({"role": "user", "content": content}, {"role": "assistant", "content": content})

    def called(arguments: object) -> int:
        call = {"id": "probe0001", "type": "function", "function": {"name": "probe", "arguments": arguments}}
        asked = [{"type": "text", "text": "?"}] if parts else "?"
        return count({"role": "user", "content": asked}, {"role": "assistant", "content": "", "tool_calls": [call]},
                     {"role": "tool", "content": asked, "tool_call_id": "probe0001", "name": "probe"})

    both = 2
    parts = said(_PROBE) != both and said([{"type": "text", "text": _PROBE}]) == both
    return _Reads(parts, not called({"a": _PROBE}) and called(json.dumps({"a": _PROBE})) > 0)


def _as_it_is(message: int, field: str, value: Any) -> Any:
    """In the place of `Tracer.wrap`."""
    return value


def _wrapped(wrap: Callable[[int, str, Any], Any], number: int, message: JsonObject, reads: _Reads) -> JsonObject:
    """A message as a template reads it: with its reasoning under all names that templates know it by."""
    given = {key: value if key == "role" else wrap(number, key, value) for key, value in message.items()
             if key != "weight"}
    if reads.parts and isinstance(message.get("content"), str):
        given["content"] = [{"type": "text", "text": given["content"]}]
    if reads.arguments_as_text and message.get("tool_calls"):
        given["tool_calls"] = wrap(number, "tool_calls", [_with_text(call) for call in message["tool_calls"]])
    known = next((message[name] for name in REASONING if message.get(name) is not None), None)
    if known is not None:
        said = wrap(number, "reasoning_content", known)
        given |= {"thinking": given.get("thinking", said), "reasoning_content": said}
    return given


def _with_text(call: JsonObject) -> JsonObject:
    function = call["function"]
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}


def built_in(name: str) -> str:
    """The source of a template of ours."""
    return (_FOLDER / f"{name}.jinja").read_text()


def special_in(text: str, specials: tuple[str, ...]) -> list[tuple[int, int]]:
    """Where special tokens are written in a text, (start, stop) each, the longest that fits first."""
    return [found.span() for found in _pattern(specials).finditer(text)] if specials else []


@functools.lru_cache(16)
def _pattern(specials: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(each) for each in sorted(specials, key=lambda each: (-len(each), each))))
