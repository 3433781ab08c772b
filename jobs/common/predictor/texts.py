"""What a model that writes texts tells of them, as a job says it and an endpoint reads it."""

from collections.abc import Sequence
from dataclasses import dataclass

Score = tuple[bytes, float]
"""A token's text, and the logarithm of its probability before temperature and `top_p`."""


@dataclass(frozen=True)
class Scores:
    """Of one token of a text."""

    written: Score
    likeliest: Sequence[Score]


@dataclass(frozen=True, kw_only=True)
class ToolCallForm:
    """How a model that chats writes the calls of tools: as JSON objects, each with its `name` and its arguments."""

    begin: str
    """What is written before a call; empty: it stands by itself."""
    end: str
    """What is written behind it; empty: it goes to the end of the answer."""
    arguments: str
    """The field that has the arguments."""
    listed: bool
    """Whether it stands in a list of all calls."""
