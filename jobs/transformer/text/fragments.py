"""A source of text is a list of fragments in the order of their rows."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from jobs.common.data.arrow import arrow_column
from jobs.common.data.dataset import SplitName
from jobs.common.data.found.account import SHOWN, LeftOut
from jobs.common.data.found.bad_rows import BadRow
from jobs.transformer.text.config import TextDataConfig
from jobs.transformer.text.language import language_of

_EMPTY = "rows without text"


@dataclass(frozen=True)
class Texts:
    """Rows of one fragment. labels: of the same length, or None.
    empty: rows that were left out as they hold no text. begins, ends: whether its first text begins a document and its
    last one ends one."""

    texts: list[str]
    labels: Any = None
    empty: int = 0
    begins: bool = True
    ends: bool = True
    skipped: Sequence[BadRow] = ()
    """Rows that cannot be read, and are left out."""
    unwanted: Mapping[str, LeftOut] = field(default_factory=dict[str, LeftOut])
    """Rows that are left out as they are not as the config wants them, by reason."""


class TextFragment(Protocol):
    """Successive rows of a source."""

    @property
    def split(self) -> SplitName: ...

    @property
    def size(self) -> int:
        """Bytes of it, about."""
        ...

    def describe(self, row: int) -> str:
        """What to call a row in a message."""
        ...

    def read(self) -> Texts:
        """Raises: DataError."""
        ...


@dataclass(frozen=True)
class Cleaned:
    """A fragment of which the texts are cleaned, and those without text then, or of another length or language than is
    wanted, are left out. Whoever reads it, to count or to write, has the same rows."""

    fragment: TextFragment
    options: TextDataConfig
    kept: dict[str, list[int]] = field(default_factory=dict[str, list[int]], compare=False)

    @property
    def split(self) -> SplitName:
        return self.fragment.split

    @property
    def size(self) -> int:
        return self.fragment.size

    def describe(self, row: int) -> str:
        """row: among those that `read` kept, once it has been called."""
        return self.fragment.describe(self.kept["rows"][row] if "rows" in self.kept else row)

    def read(self) -> Texts:
        found = self.fragment.read()
        texts = list(map(self.options.rule, found.texts))
        rows: dict[str, list[int]] = {"": [], _EMPTY: []}
        for row, text in enumerate(texts):
            rows.setdefault(self._why(text), []).append(row)
        there, empty = rows.pop(""), rows.pop(_EMPTY)
        self.kept["rows"] = there
        labels = found.labels if found.labels is None else found.labels.take(arrow_column(np.array(there, np.int64)))
        unwanted = {why: LeftOut(len(of), tuple(map(self.fragment.describe, of[:SHOWN]))) for why, of in rows.items()}
        return replace(found, texts=[texts[row] for row in there], labels=labels, empty=found.empty + len(empty),
                       unwanted=unwanted)

    def _why(self, text: str) -> str:
        """Why a row is left out; empty: it is not."""
        if not text.strip():
            return _EMPTY
        least, most, languages = self.options.shortest, self.options.longest, self.options.languages
        if least is not None and len(text) < least:
            return f"rows shorter than {least:,} characters (--data.shortest)"
        if most is not None and len(text) > most:
            return f"rows longer than {most:,} characters (--data.longest)"
        if languages and language_of(text) not in languages:
            return f"rows in another language than {' or '.join(languages)} (--data.language)"
        return ""


@dataclass(frozen=True)
class TextSource:
    """The fragments in the order of their rows, and what their content is known by, cheaply."""

    fragments: tuple[TextFragment, ...]
    listing: list[tuple[str, int, float]]
    splits_given: tuple[SplitName, ...]
    """Splits that the source has by itself; the others are split off from its training rows."""
    is_one_text: bool = False
    """Whether its splits are parts of one text."""
    files: int = 0
    contents: tuple[str, ...] = ()
    """Hashes of what is in its files, cheaply."""
    left_out: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    """Names of files that are not read, by reason."""
