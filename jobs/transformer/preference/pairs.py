"""Rows of data sets as pairs of conversations that differ in the last answer: the chosen one and the rejected one.

    pair_of({"prompt": "What is it?", "chosen": "It is this.", "rejected": "No idea."})
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from cluster.core.documents import JsonObject, parse_json
from jobs.transformer.chat.conversation import Conversation
from jobs.transformer.chat.rows import FORMS, conversation_of

SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class Pair:
    """Two conversations that are the same up to the last answer."""

    chosen: Conversation
    rejected: Conversation

    @property
    def sides(self) -> tuple[Conversation, Conversation]:
        return self.chosen, self.rejected


def pair_of(row: Mapping[str, Any]) -> Pair:
    """prompt: a text or messages; chosen, rejected: a text, the last message, or the whole conversation.

    Raises: ValueError, saying what is wrong with the row.
    """
    there = {name: value for name, value in row.items() if value is not None}
    if missing := [name for name in SIDES if name not in there]:
        raise ValueError(f"has no {' and '.join(missing)}")
    prompt = _said(there["prompt"], "user", "prompt") if "prompt" in there else []
    if not prompt and any(isinstance(there[name], str) for name in SIDES):
        raise ValueError("has no prompt, without which chosen and rejected have to be whole conversations, each a list "
                         "of messages")
    pair = Pair(*(_side(prompt, there, name) for name in SIDES))
    if pair.chosen.messages[:-1] != pair.rejected.messages[:-1]:
        raise ValueError("chosen and rejected differ in more than the last message")
    if pair.chosen == pair.rejected:
        raise ValueError("chosen and rejected are the same")
    return pair


def as_text(pair: Pair) -> str:
    """One line of JSON."""
    *before, chosen = pair.chosen.messages
    tools = {"tools": list(pair.chosen.tools)} if pair.chosen.tools else {}
    return json.dumps({"messages": before, "chosen": chosen, "rejected": pair.rejected.messages[-1], **tools},
                      ensure_ascii=False, separators=(",", ":"))


def from_text(text: str) -> Pair:
    """What `as_text` has written."""
    read = parse_json(text)
    return Pair(*(Conversation((*read["messages"], read[name]), tuple(read.get("tools", ()))) for name in SIDES))


def contents_of(pair: Pair) -> Iterable[str]:
    """What is said in it, what is in both once."""
    return (message["content"] for message in (*pair.chosen.messages, pair.rejected.messages[-1]))


def _said(value: Any, role: str, column: str) -> list[Any]:
    """A text, or messages."""
    if isinstance(value, str) and value.strip():
        return [{"role": role, "content": value}]
    if isinstance(value, list) and value:
        return cast("list[Any]", value)
    if isinstance(value, str | list):
        raise ValueError(f"has nothing in column {column!r}")
    raise ValueError(f"holds {type(value).__name__}, neither text nor messages, in column {column!r} ({value!r:.50})")


def _side(prompt: list[Any], row: Mapping[str, Any], name: str) -> Conversation:
    """The conversation with one of the answers; of a row whose answers repeat the prompt, that is in it once."""
    said = _said(row[name], "assistant", name)
    whole = said if len(said) > len(prompt) and said[: len(prompt)] == prompt else [*prompt, *said]
    try:
        found = conversation_of(FORMS["messages"], {
            "messages": whole, **{more: row[more] for more in ("system", "tools") if more in row}})
    except ValueError as error:
        raise ValueError(f"of {name}: {error}") from error
    last: JsonObject = found.messages[-1]
    if last["role"] != "assistant":
        raise ValueError(f"{name} ends with what the {last['role']} says, not the assistant")
    if not last["content"].strip() and not last.get("tool_calls"):
        raise ValueError(f"{name} is an empty answer")
    return found
