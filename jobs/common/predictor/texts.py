"""What a model that writes texts tells of them, as a job says it and an endpoint reads it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from cluster.core.documents import JsonObject

Score = tuple[bytes, float]
"""A token's text, and the logarithm of its probability before temperature and `top_p`."""


@dataclass(frozen=True)
class Scores:
    """Of one token of a text."""

    written: Score
    likeliest: Sequence[Score]


CallStyle = Literal["json", "parameters", "pairs", "fenced", "bare_keys", "python"]
"""How a call is written: see call_forms.py."""


@dataclass(frozen=True, kw_only=True)
class ToolCallForm:
    """How a model that chats writes the calls of tools."""

    begin: str
    """What is written before a call; empty: it stands by itself."""
    end: str
    """What is written behind it; empty: it goes to the end of the answer."""
    style: CallStyle = "json"
    name: str = "name"
    """Of JSON: the field that has the name,"""
    arguments: str = "arguments"
    """and the one that has the arguments."""
    listed: bool = False
    """Of JSON: whether it stands in a list of all calls."""

    @property
    def is_held(self) -> bool:
        """Whether answers can be held to it."""
        return self.style == "json" and self.name == "name"


@dataclass(frozen=True, kw_only=True)
class CallRule:
    """What an answer may call, where it is held to that."""

    arguments: Mapping[str, JsonObject]
    """By the name of each function that may be called, the JSON schema of its arguments."""
    required: bool
    """Whether the answer is a call, and nothing else; else it may be any text, too, with calls in it."""
    several: bool
    """Whether there may be more calls than one."""
