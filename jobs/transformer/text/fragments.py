"""A source of text is a list of fragments in the order of their rows."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from jobs.common.data.dataset import SplitName

BadRow = tuple[str, str]
"""Where it is, and what is wrong with it."""


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
