"""Rows of data sets as conversations: the forms that people keep them in, and the one that all become.

    form = form_of(["instruction", "input", "output"])            # FORMS["alpaca"]
    conversation_of(form, {"instruction": "Add", "input": "2, 3", "output": "5"})
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from cluster.core.documents import JsonObject, parse_json
from cluster.core.errors import DataError
from jobs.common.predictor.messages import message_of
from jobs.transformer.chat.conversation import Conversation, FormName

_SAID_BY = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "model": "assistant",
    "bot": "assistant", "chatgpt": "assistant", "system": "system", "developer": "developer", "tool": "tool",
    "observation": "tool", "function_response": "tool", "function_call": "assistant",
}
"""Roles by what ShareGPT's `from` says."""
_WEIGHTS = ("weight", "train", "training")
_KEPT = ("name", "tool_call_id", "reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True)
class Form:
    """A way to keep a conversation in a row."""

    name: FormName
    needed: tuple[str, ...]
    """Columns by which it is known."""
    more: tuple[str, ...] = ()
    """Columns that are read where there are any."""


FORMS: dict[str, Form] = {form.name: form for form in (
    Form("messages", ("messages",), ("tools",)),
    Form("prompt", ("prompt", "completion"), ("system", "tools")),
    Form("sharegpt", ("conversations",), ("system", "tools")),
    Form("alpaca", ("instruction", "output"), ("input", "system")),
    Form("preference", ("chosen", "rejected"), ("prompt", "system", "tools")),
)}


def form_of(columns: Sequence[str], name: FormName, where: str) -> Form:
    """The form of rows with these columns. name: the one that the config asks for. where: the file, for messages.

    Raises: DataError where there is none, or more than one.
    """
    fits = [form for form in _forms(columns) if name != "auto" or form.name != "preference"]
    if name != "auto":
        if FORMS[name] not in fits:
            raise DataError(f"{where} has no columns {', '.join(FORMS[name].needed)}, which --data.form {name} needs: "
                            f"it has {', '.join(columns)}")
        return FORMS[name]
    if not fits:
        if FORMS["preference"] in _forms(columns):
            raise DataError(f"{where} holds pairs of answers, by its columns chosen and rejected: pass --task prefer")
        known = "; ".join(f"{form.name}: {', '.join(form.needed)}" for form in FORMS.values()
                          if form.name != "preference")
        raise DataError(f"{where} holds no conversations in a form that is known: it has the columns "
                        f"{', '.join(columns)}. Known are {known}")
    if len(fits) > 1:
        raise DataError(f"{where} can be read as {' or as '.join(form.name for form in fits)}, by its columns "
                        f"{', '.join(columns)}: pass --data.form {fits[0].name} or --data.form {fits[1].name}")
    return fits[0]


def conversation_of(form: Form, row: Mapping[str, Any]) -> Conversation:
    """Raises: ValueError, saying what is wrong with the row."""
    there = {name: value for name, value in row.items() if value is not None}
    if missing := [name for name in form.needed if name not in there]:
        fits = [each.name for each in _forms(there)]
        raise ValueError(f"has no {' and '.join(missing)}, as the rows of this data have"
                         + (f": it is of the form {fits[0]}" if fits else ""))
    messages = [_message(each, number) for number, each in enumerate(_said(form, there))]
    if not messages:
        raise ValueError("holds no messages")
    if there.get("system") and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": _text(there["system"], "system")})
    return Conversation(tuple(messages), tuple(_tools(there.get("tools"))))


def _forms(columns: Iterable[str]) -> list[Form]:
    return [form for form in FORMS.values() if set(form.needed) <= set(columns)]


def as_text(conversation: Conversation) -> str:
    """One line of JSON."""
    tools = {"tools": list(conversation.tools)} if conversation.tools else {}
    return json.dumps({"messages": list(conversation.messages), **tools}, ensure_ascii=False, separators=(",", ":"))


def from_text(text: str) -> Conversation:
    """What `as_text` has written."""
    read = parse_json(text)
    return Conversation(tuple(read["messages"]), tuple(read.get("tools", ())))


def contents_of(conversation: Conversation) -> Iterable[str]:
    """What is said in it."""
    return (message["content"] for message in conversation.messages)


# ── forms ──
def _said(form: Form, row: Mapping[str, Any]) -> list[Any]:
    if form.name == "messages":
        return _list(row["messages"], "messages")
    if form.name == "sharegpt":
        return [_of_sharegpt(each, number) for number, each in enumerate(_list(row["conversations"], "conversations"))]
    if form.name == "alpaca":
        asked = _text(row["instruction"], "instruction")
        if more := row.get("input"):
            asked += f"\n\n{_text(more, 'input')}"
        return [{"role": "user", "content": asked}, {"role": "assistant", "content": _text(row["output"], "output")}]
    return [*_side(row["prompt"], "user", "prompt"), *_side(row["completion"], "assistant", "completion")]


def _side(value: Any, role: str, column: str) -> list[Any]:
    """A text, or messages."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    return _list(value, column)


def _of_sharegpt(turn: Any, number: int) -> JsonObject:
    if not isinstance(turn, dict):
        raise ValueError(f"message {number} is no object but {turn!r:.40}")
    said = cast("JsonObject", turn)
    if "from" not in said:
        return said
    role = _SAID_BY.get(said["from"])
    if role is None:
        raise ValueError(f"message {number} is from {said['from']!r:.40}: known are {', '.join(_SAID_BY)}")
    if said["from"] == "function_call":
        call = _json(said.get("value"), f"message {number}, function_call")
        calls = cast("list[Any]", call) if isinstance(call, list) else [call]
        return {"role": role, "content": "", "tool_calls": [{"type": "function", "function": each} for each in calls]}
    rest = {key: value for key, value in said.items() if key not in ("from", "value")}
    return {**rest, "role": role, "content": said.get("value")}


# ── messages ──
def _message(message: Any, number: int) -> JsonObject:
    """As it is kept. Raises: ValueError."""
    said = dict(cast("JsonObject", message)) if isinstance(message, dict) else {}
    if said.get("function_call") is not None:  # as tool calls were written before there were several
        said["tool_calls"] = [{"function": said["function_call"]}]
    elif isinstance(said.get("tool_calls"), str):
        said["tool_calls"] = _list(said["tool_calls"], f"tool_calls of message {number}")
    made = message_of(said or cast(object, message), f"message {number}", _KEPT)
    for call in made.get("tool_calls", ()):
        call["function"]["arguments"] = _without_nulls(call["function"]["arguments"])
    weights = [said[name] for name in _WEIGHTS if said.get(name) is not None]
    if any(weight not in (0, 1) for weight in weights):
        raise ValueError(f"message {number} has the weight {weights[0]!r:.20}: known are 0 and 1")
    if not all(weights):
        made["weight"] = 0
    return made


def _tools(value: Any) -> list[JsonObject]:
    if not value:
        return []
    found: Any = _json(value, "tools") if isinstance(value, str) else value
    tools = _list(found, "tools")
    if not all(isinstance(tool, dict) for tool in tools):
        raise ValueError(f"has tools that are no objects ({tools!r:.60})")
    return [_without_nulls(cast("JsonObject", tool)) for tool in tools]


def _without_nulls(value: Any) -> Any:
    """Parquet has a null for each field that another row has."""
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in cast("JsonObject", value).items() if each is not None}
    return [_without_nulls(each) for each in cast("list[Any]", value)] if isinstance(value, list) else value


def _text(value: Any, column: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"holds {type(value).__name__}, not text, in column {column!r} ({value!r:.50})")
    return value


def _list(value: Any, what: str) -> list[Any]:
    found: Any = _json(value, what) if isinstance(value, str) else value
    if not isinstance(found, list):
        raise ValueError(f"holds {type(found).__name__}, not a list, in {what} ({found!r:.50})")
    return cast("list[Any]", found)


def _json(value: Any, what: str) -> Any:
    try:
        return parse_json(value, object) if isinstance(value, str) else value
    except ValueError as error:
        raise ValueError(f"{what} is no JSON ({value!r:.50})") from error
