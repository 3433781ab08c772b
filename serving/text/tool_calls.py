"""Calls of tools in the text of an answer, in the form that its model writes them in."""

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

from cluster.core.documents import JsonObject
from jobs.common.predictor.call_forms import calls_in
from jobs.common.predictor.texts import ToolCallForm
from serving.text.stops import begun


@dataclass(frozen=True)
class ToolCall:
    name: str
    arguments: str
    """JSON."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:9])
    """Of nine letters and digits, as the templates of Mistral's models want it."""


class ToolCallReader:
    """Lets through what is no call, and keeps back what may be one until that is certain. What only looks like a call,
    or calls what there is not, is text as it was written."""

    def __init__(self, form: ToolCallForm, functions: Mapping[str, JsonObject]) -> None:
        """functions: those that there are, by name, with the JSON schema of their arguments."""
        self._form, self._functions, self._kept = form, functions, ""
        self._only_text = False
        """Of a form in which an answer is either a call or text, that it is text."""
        self.calls: list[ToolCall] = []

    def through(self, text: str) -> str:
        """What is no call, as far as that is known, without the spaces before one."""
        self._kept += text
        if not self._form.begin:
            self._only_text |= bool(self._kept.strip()) and not self._kept.lstrip().startswith("{")
            return self._passed(len(self._kept)) if self._only_text else ""
        passed = ""
        while (place := self._kept.find(self._form.begin)) >= 0:
            passed += self._passed(len(self._kept[:place].rstrip()))
            if not self._took_call():
                return passed
        sure = self._kept[:len(self._kept) - begun(self._kept, self._form.begin)]
        return passed + self._passed(len(sure.rstrip()))

    def rest(self) -> str:
        """What was kept back, when no more comes."""
        kept = self._passed(len(self._kept))
        if kept.lstrip().startswith(self._form.begin):
            self.calls += (calls := self._parsed(kept.lstrip().removeprefix(self._form.begin)))
            return "" if calls else kept
        return kept if kept.strip() or not self.calls else ""

    def _passed(self, length: int) -> str:
        passed, self._kept = self._kept[:length], self._kept[length:]
        return passed

    def _took_call(self) -> bool:
        """Whether the call that has begun has come to its end."""
        stop = self._kept.find(self._form.end) if self._form.end else -1
        while stop >= 0:
            if calls := self._parsed(self._kept[:stop].lstrip().removeprefix(self._form.begin)):
                self.calls += calls
                self._passed(stop + len(self._form.end))
                return True
            stop = self._kept.find(self._form.end, stop + 1)
        return False

    def _parsed(self, text: str) -> list[ToolCall]:
        """Empty: it is none."""
        return [ToolCall(name, json.dumps(arguments, ensure_ascii=False))
                for name, arguments in calls_in(self._form, text, self._functions)]
