"""A source of text is a list of fragments in the order of their rows."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from dataclasses import dataclass
from typing import Any, Protocol

from jobs.common.data.dataset import SplitName


@dataclass(frozen=True)
class Texts:
    """Rows of one fragment. labels: of the same length, or None.
    empty: rows that were left out as they hold no text."""

    texts: list[str]
    labels: Any = None
    empty: int = 0


class TextFragment(Protocol):
    """Successive rows of a source."""

    @property
    def split(self) -> SplitName: ...

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
