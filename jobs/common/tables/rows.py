"""The rows of a table, a batch at a time, whatever its files: the same columns in all of them, each row with a name."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import difflib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.core.errors import DataError
from jobs.common.tables.config import TableDataConfig, names
from jobs.common.tables.sources import Part


@dataclass(frozen=True)
class Rows:
    """Successive rows of a part. first_in_part, first: the place of the first one, in the part and in all parts that
    are read with it."""

    part: Part
    first_in_part: int
    first: int
    columns: Any
    """An Arrow record batch."""

    def describe(self, row: int) -> str:
        return self.part.describe(self.first_in_part + row)

    def column(self, name: str) -> Any:
        return self.columns.column(name)


@dataclass(frozen=True)
class Heading:
    """The columns of a table, and what its config says of them."""

    config: TableDataConfig
    example: Part
    """The first part, which has these columns."""
    columns: tuple[str, ...]
    targets: tuple[str, ...]
    categories: tuple[str, ...]
    inputs: tuple[str, ...]

    @staticmethod
    def of(parts: Sequence[Part], config: TableDataConfig) -> "Heading":
        """Raises: DataError for a column that is not there, and where there is nothing to predict from."""
        example, columns = _first_columns(parts, config)
        targets, categories, ignored = (_named(listed, columns) for listed in (
            config.label_column, config.categories, config.ignore))
        inputs = tuple(name for name in columns if name not in (*targets, *ignored))
        if not inputs:
            raise DataError(f"data {config.uri!r} has no column but {', '.join(columns)}: there is nothing to predict "
                            "from")
        return Heading(config, example, columns, targets, categories, inputs)

    def rows(self, parts: Sequence[Part]) -> Iterator[Rows]:
        """All rows of these, some at a time. Raises: DataError for a part that has other columns."""
        first = 0
        for part in parts:
            in_part = 0
            for batch in part.batches():
                if sorted(batch.schema.names) != sorted(self.columns):
                    strange = sorted(set(batch.schema.names) ^ set(self.columns))
                    raise DataError(f"{part.describe(0)} has other columns than {self.example.describe(0)} "
                                    f"({', '.join(strange[:5])}): all files of a table must have the same")
                yield Rows(part, in_part, first, batch)
                in_part, first = in_part + batch.num_rows, first + batch.num_rows


def _named(listed: str | None, columns: Sequence[str]) -> tuple[str, ...]:
    """The columns of a list with commas; or the one column of that name, which may have some."""
    return (listed,) if listed is not None and listed in columns else names(listed)


def _first_columns(parts: Sequence[Part], config: TableDataConfig) -> tuple[Part, tuple[str, ...]]:
    for part in parts:
        for batch in part.batches():
            present = list(batch.schema.names)
            if twice := sorted(name for name, count in Counter(present).items() if count > 1):
                raise DataError(f"{part.describe(0)}: there are two columns {twice[0]!r}: rename one")
            _check(present, part.describe(0).partition(" of ")[2], config)
            return part, tuple(present)
    raise DataError(f"data {config.uri!r} holds no rows")


def _check(present: list[str], where: str, config: TableDataConfig) -> None:
    for option, listed in (("label-column", config.label_column), ("ignore", config.ignore),
                           ("categories", config.categories)):
        for name in () if listed in present else names(listed):
            if name not in present:
                near = difflib.get_close_matches(name, present, 1)
                raise DataError(f"there is no column {name!r} in {where}, which has {', '.join(present)}: name it, as "
                                f"in --data.{option} {near[0] if near else present[-1]}")
