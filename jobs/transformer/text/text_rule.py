"""The rule by which a text is cleaned before it becomes tokens. Imports nothing heavy: the config makes it, and an
artifact keeps it."""

import itertools
import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from cluster.core.documents import JsonObject, parse_json

Normalise = Literal["keep", "nfc", "nfkc"]
ControlCharacters = Literal["keep", "drop"]
Case = Literal["keep", "lower"]
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Unicode's category Cc, but for line breaks and tabs."""
_MANY_MARKS = re.compile(rb"[^\0]{30}(?=[^\0])")
_JOINER = "\u034f"


@dataclass(frozen=True, kw_only=True)
class TextRule:
    """How a text is cleaned. The artifact's manifest has it, so that an endpoint does what training did."""

    normalise: Normalise = "keep"
    """Unicode's normalisation form, in which what looks the same is the same; `nfkc` also makes ﬁ fi, and ² 2."""
    control_characters: ControlCharacters = "keep"
    """Whether they are taken out, but for line breaks and tabs."""
    case: Case = "keep"
    """Whether capital letters become small."""

    def __call__(self, text: str) -> str:
        """The text as the tokenizer sees it. What is clean stays as it is."""
        if self.control_characters == "drop":
            text = _CONTROL.sub("", text)
        text = self._normalised(text)
        return self._normalised(text.lower()) if self.case == "lower" else text

    def to_dict(self) -> JsonObject:
        """Plain JSON values."""
        return asdict(self)

    def _normalised(self, text: str) -> str:
        if self.normalise == "keep" or text.isascii():
            return text
        return unicodedata.normalize("NFC" if self.normalise == "nfc" else "NFKC", _stream_safe(text))


def text_rule(preprocessing: Mapping[str, object]) -> TextRule:
    """That of an artifact, whose `preprocessing` is given; one of an earlier version has none, and cleans nothing.
    Raises: ValueError."""
    return parse_json(json.dumps(preprocessing.get("text", {})), TextRule)


def _stream_safe(text: str) -> str:
    """At most 30 marks upon a letter (UAX #15, section 13): Python puts them in order in the square of their number,
    which somebody's request may make minutes."""
    marks = bytes(map(unicodedata.combining, text))
    places = [0, *(found.end() for found in _MANY_MARKS.finditer(marks)), len(text)]
    return _JOINER.join(text[start:end] for start, end in itertools.pairwise(places))
