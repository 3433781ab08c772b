"""One text of an answer as it comes, in the form that its protocol gives it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from cluster.core.documents import JsonObject
from jobs.common.predictor.texts import Score, Scores
from serving.text.continuous_batching import Piece
from serving.text.tool_calls import ToolCall, ToolCallReader


class Choice(Protocol):
    def add(self, piece: Piece) -> None:
        """What comes next of it."""
        ...

    def events(self) -> Sequence[JsonObject]:
        """What has been added since they were last asked for."""
        ...

    def whole(self) -> JsonObject:
        """All of it, where no events have been asked for."""
        ...


@dataclass(frozen=True, kw_only=True)
class Form:
    """How a protocol names an answer, and what makes its choices, by number."""

    id: str
    whole: str
    event: str
    choice: Callable[[int], Choice]


class TextChoice:
    """The continuation of a prompt."""

    def __init__(self, number: int) -> None:
        self._number, self._text = number, ""
        self._reason: str | None = None

    def add(self, piece: Piece) -> None:
        _, text, _, self._reason, _ = piece
        self._text += text

    def events(self) -> Sequence[JsonObject]:
        made = [self.whole()] if self._text or self._reason else []
        self._text = ""
        return made

    def whole(self) -> JsonObject:
        return {"index": self._number, "text": self._text, "logprobs": None, "finish_reason": self._reason}


class ChatChoice:
    """An assistant's answer."""

    def __init__(self, number: int, reader: ToolCallReader | None) -> None:
        """reader: finds calls of tools; None: there are none."""
        self._number, self._reader, self._text = number, reader, ""
        self._begun, self._told = False, 0
        self._reason: str | None = None
        self._scores: list[Scores] = []

    def add(self, piece: Piece) -> None:
        _, text, _, self._reason, scores = piece
        if self._reader is not None:
            text = self._reader.through(text) + (self._reader.rest() if self._reason else "")
        self._text += text
        if scores is not None:
            self._scores.append(scores)

    def events(self) -> Sequence[JsonObject]:
        made = [] if self._begun else [self._event({"role": "assistant", "content": ""})]
        self._begun = True
        if self._text or (self._scores and self._reason):
            made.append(self._event({"content": self._text}, self._logprobs()))
            self._text, self._scores = "", []
        made += [self._event({"tool_calls": [{"index": place, **_said(call)}]})
                 for place, call in enumerate(self._calls()) if place >= self._told]
        self._told = len(self._calls())
        return [*made, self._event({}, reason=self._why())] if self._reason else made

    def whole(self) -> JsonObject:
        calls = [_said(call) for call in self._calls()]
        message = {"role": "assistant", "content": None if calls and not self._text else self._text, "refusal": None}
        return {"index": self._number, "message": message | ({"tool_calls": calls} if calls else {}),
                "logprobs": self._logprobs(), "finish_reason": self._why()}

    def _event(self, delta: JsonObject, logprobs: JsonObject | None = None, reason: str | None = None) -> JsonObject:
        return {"index": self._number, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    def _calls(self) -> Sequence[ToolCall]:
        return self._reader.calls if self._reader else ()

    def _why(self) -> str | None:
        return "tool_calls" if self._reason == "stop" and self._calls() else self._reason

    def _logprobs(self) -> JsonObject | None:
        if not self._scores:
            return None
        return {"content": [{**_scored(each.written), "top_logprobs": [*map(_scored, each.likeliest)]}
                            for each in self._scores], "refusal": None}


def _said(call: ToolCall) -> JsonObject:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _scored(score: Score) -> JsonObject:
    text, logprob = score
    return {"token": text.decode(errors="replace"), "logprob": logprob, "bytes": list(text)}
