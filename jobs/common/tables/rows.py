"""The rows of a table, a batch at a time, whatever its files: the same columns in all of them, each row with a name."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import difflib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.core.errors import DataError
from jobs.common.data.dataset import SplitName
from jobs.common.tables.config import TableDataConfig, names
from jobs.common.tables.sources import Part


@dataclass(frozen=True)
class Rows:
    """Successive rows of a part. place: of the first one, in the part and in the whole table."""

    part: Part
    first_in_part: int
    first: int
    columns: Any
    """An Arrow record batch."""

    def describe(self, row: int) -> str:
        return self.part.describe(self.first_in_part + row)

    def column(self, name: str) -> Any:
        return self.columns.column(name)


class Table:
    """The parts of a table, and what its config says of them."""

    def __init__(self, parts: Sequence[tuple[SplitName, Part]], config: TableDataConfig) -> None:
        self.parts, self.config = parts, config
        self.header = self._header()
        self.targets = self._named(config.label_column)
        self.categories, ignored = self._named(config.categories), self._named(config.ignore)
        self.inputs = [name for name in self.header if name not in (*self.targets, *ignored)]
        if not self.inputs:
            raise DataError(f"data {config.uri!r} has no column but {', '.join(self.header)}: there is nothing to "
                            "predict from")

    def rows(self) -> Iterator[Rows]:
        """All rows, some at a time. Raises: DataError for a part that has other columns than the first."""
        first = 0
        for _, part in self.parts:
            in_part = 0
            for batch in part.batches():
                if sorted(batch.schema.names) != sorted(self.header):
                    strange = sorted(set(batch.schema.names) ^ set(self.header))
                    raise DataError(f"{part.describe(0)} has other columns than {self.parts[0][1].describe(0)} "
                                    f"({', '.join(strange[:5])}): all files of a table must have the same")
                yield Rows(part, in_part, first, batch)
                in_part, first = in_part + batch.num_rows, first + batch.num_rows

    def _named(self, listed: str | None) -> tuple[str, ...]:
        """The columns of a list with commas; or the one column of that name, which may have some."""
        return (listed,) if listed in self.header else names(listed)

    def _header(self) -> list[str]:
        for _, part in self.parts:
            for batch in part.batches():
                present = list(batch.schema.names)
                if twice := sorted(name for name, count in Counter(present).items() if count > 1):
                    raise DataError(f"{part.describe(0)}: there are two columns {twice[0]!r}: rename one")
                self._check(present, part.describe(0).partition(" of ")[2])
                return present
        raise DataError(f"data {self.config.uri!r} holds no rows")

    def _check(self, present: list[str], where: str) -> None:
        config = self.config
        for option, listed in (("label-column", config.label_column), ("ignore", config.ignore),
                               ("categories", config.categories)):
            for name in () if listed in present else names(listed):
                if name not in present:
                    near = difflib.get_close_matches(name, present, 1)
                    raise DataError(f"there is no column {name!r} in {where}, which has {', '.join(present)}: name "
                                    f"it, as in --data.{option} {near[0] if near else present[-1]}")
