"""A conversation, and what goes wrong with one. Imports nothing heavy: the config makes options of it."""

from dataclasses import dataclass
from typing import Literal

from cluster.core.documents import JsonObject

FormName = Literal["auto", "messages", "prompt", "sharegpt", "alpaca", "preference"]
"""How a row keeps a conversation: rows.py."""
LossOn = Literal["assistant", "last", "all"]
"""Which tokens are learnt: turns.py."""


class ChatTemplateError(ValueError):
    """A template that cannot be used, or refuses a conversation; the text says why."""


@dataclass(frozen=True)
class Conversation:
    """Messages as the OpenAI protocol has them, and the tools that they may name."""

    messages: tuple[JsonObject, ...]
    """Each with its role; contents are texts, and arguments of tool calls are objects."""
    tools: tuple[JsonObject, ...] = ()

    def until(self, message: int) -> "Conversation":
        """The messages before one."""
        return Conversation(self.messages[:message], self.tools)

    def with_content(self, message: int, content: str) -> "Conversation":
        """The same where one message has another content."""
        changed = [*self.messages]
        changed[message] = {**changed[message], "content": content}
        return Conversation(tuple(changed), self.tools)
