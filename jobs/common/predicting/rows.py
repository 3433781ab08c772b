"""The rows of new data, in pieces: each is read alike by whoever is asked to, with all of its columns.

What a row says is kept as it is written: of CSV and JSON Lines all values are texts, so nothing is guessed.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.core.documents import DocumentError, JsonObject, parse_json
from cluster.core.errors import DataError
from cluster.core.storage import Store
from jobs.common.data.csv_config import CsvDataConfig, conversion
from jobs.common.data.files import plain_name, read_unpacked, reading, unpacked
from jobs.common.tables.sources import MEND_ROW, CsvTable

Part = tuple[int, int]
BadRow = tuple[int, str]
"""The number of a row in its piece, and why it cannot be read."""


@dataclass(frozen=True)
class Rows:
    """Successive rows of a piece."""

    columns: Any
    """An Arrow record batch."""
    numbers: npt.NDArray[np.int64]
    """(rows,) each one's number in the piece, from 0."""
    bad: Sequence[BadRow] = ()
    """Rows that cannot be read, which are none of these."""


class Piece(Protocol):
    """Successive rows of a file, or of several. It can be pickled."""

    @property
    def name(self) -> str:
        """What to call its file in a message."""
        ...

    def rows(self, at_once: int) -> Iterator[Rows]:
        """All of its rows in order, at most so many at a time. Raises: DataError."""
        ...

    def count(self) -> int:
        """How many rows it has, with bad ones. Raises: DataError."""
        ...

    def call(self, number: int) -> tuple[str, int]:
        """File and number in it of a row, by its number in the piece."""
        ...


@dataclass(frozen=True)
class OfFile:
    store: Store
    path: str
    part: Part | None = None
    """Of its bytes; None: all."""
    first: int = 0
    """Rows of the file that come before."""

    @property
    def name(self) -> str:
        return self.store.location(self.path)

    def call(self, number: int) -> tuple[str, int]:
        return self.name, self.first + number

    def content(self) -> bytes:
        """Its bytes, unpacked. Raises: DataError."""
        with reading(self.name):
            if self.part is None:
                return read_unpacked(self.store, self.path)
            with self.store.reading(self.path) as stream:
                stream.seek(self.part[0])
                return stream.read(self.part[1] - self.part[0])


@dataclass(frozen=True)
class ParquetPiece(OfFile):
    """Rows of successive row groups; `part` is of these."""

    skipped: int = 0
    """Rows of the first of them that another piece has."""
    num_rows: int = 0

    def count(self) -> int:
        return self.num_rows

    def rows(self, at_once: int) -> Iterator[Rows]:
        with reading(self.name, "it is not whole Parquet; write it again"), self.store.reading(self.path) as stream:
            file, place = pq.ParquetFile(stream, pre_buffer=False), -self.skipped
            for batch in file.iter_batches(at_once, row_groups=range(*(self.part or (0, file.num_row_groups))),
                                           use_threads=False):
                start, end = max(0, -place), min(batch.num_rows, self.num_rows - place)
                if start < end:
                    yield Rows(batch.slice(start, end - start), np.arange(place + start, place + end))
                place += batch.num_rows
                if place >= self.num_rows:
                    return


@dataclass(frozen=True)
class CsvPiece(OfFile):
    options: CsvDataConfig = field(default_factory=CsvDataConfig)
    """How it is written."""

    def count(self) -> int:
        return sum(rows.columns.num_rows + len(rows.bad) for rows in self.rows(1 << 30))

    def rows(self, at_once: int) -> Iterator[Rows]:
        odd: list[BadRow] = []
        table = CsvTable(self.store, self.path, self.options)
        before = int(self.part is None or not self.part[0])

        def odd_row(row: Any) -> str:
            odd.append((row.number - 1 - before,
                        f"has {row.actual_columns} columns, where the first line has {row.expected_columns}"))
            return "skip"

        with reading(self.name, MEND_ROW), self._stream() as stream:
            place, header = 0, table.header()
            for batch in table.read(stream, header, skip_rows=before, odd_row=odd_row):
                numbers = _without(place, batch.num_rows, [number for number, _ in odd])
                for start in range(0, batch.num_rows, at_once):
                    yield Rows(batch.slice(start, at_once), numbers[start : start + at_once])
                place = int(numbers[-1]) + 1 if len(numbers) else place
        yield Rows(_empty(header), np.empty(0, np.int64), odd)

    def _stream(self) -> Any:
        return unpacked(self.store, self.path) if self.part is None else closing(pa.BufferReader(self.content()))


@dataclass(frozen=True)
class JsonPiece(OfFile):
    """An object a line; of a `.json`, one list of objects, too."""

    names: tuple[str, ...] = ()
    """The columns; a row with another one is a bad one."""
    encoding: str = "utf-8"

    def count(self) -> int:
        return sum(1 for _ in self._values())

    def rows(self, at_once: int) -> Iterator[Rows]:
        numbered = enumerate(self._values())
        while some := list(itertools.islice(numbered, at_once)):
            good: list[tuple[int, JsonObject]] = []
            bad: list[BadRow] = []
            for number, value in some:
                row, why = self._row(value)
                if row is None:
                    bad.append((number, why))
                else:
                    good.append((number, row))
            columns = [pa.array([_text(row.get(name)) for _, row in good], pa.string()) for name in self.names]
            yield Rows(pa.RecordBatch.from_arrays(columns, names=list(self.names)),
                       np.array([number for number, _ in good], np.int64), bad)

    def _values(self) -> Iterator[object]:
        """Each line that is not blank; or the values of a list."""
        try:
            text = self.content().decode(self.encoding.replace("utf-8", "utf-8-sig"))
        except UnicodeDecodeError as error:
            raise DataError(f"{self.name}: byte {error.start + (self.part or (0,))[0]} is not {self.encoding.upper()}: "
                            f"{conversion(error.object)}") from error
        if not plain_name(self.path).endswith(".json") or not text.lstrip().startswith("["):
            yield from (line for line in text.split("\n") if line.strip())
            return
        try:
            yield from parse_json(text, list[object], most_bytes=1 << 32)
        except DocumentError as error:
            raise DataError(f"{self.name} begins as a JSON list, and is none ({error}): mend it, or give one object a "
                            "line") from error

    def _row(self, value: object) -> tuple[JsonObject | None, str]:
        try:
            row: object = parse_json(value) if isinstance(value, str) else value
        except DocumentError as error:
            return None, f"is no JSON object ({error})"
        if not isinstance(row, dict):
            return None, f"is no JSON object ({row!r:.40})"
        if strange := sorted(set(row) - set(self.names)):
            return None, f"has the column {strange[0]!r}, and the first rows have {', '.join(self.names)}"
        return row, ""

    def first_names(self, rows: int = 1000) -> tuple[str, ...]:
        """The columns of its first rows, in the order in which they come."""
        found: dict[str, None] = {}
        for value in itertools.islice(self._values(), rows):
            try:
                row: object = parse_json(value) if isinstance(value, str) else value
            except DocumentError:
                continue
            found |= dict.fromkeys(row) if isinstance(row, dict) else {}
        return tuple(found)


def _without(first: int, count: int, odd: Sequence[int]) -> npt.NDArray[np.int64]:
    """So many numbers from the first on that are none of the odd ones."""
    numbers = np.arange(first, first + count + len(odd))
    return numbers[~np.isin(numbers, np.array(odd, np.int64))][:count]


def _empty(names: Sequence[str]) -> Any:
    return pa.RecordBatch.from_arrays([pa.array([], pa.string())] * len(names), names=list(names))


def _text(value: object) -> str | None:
    return value if isinstance(value, str) or value is None else json.dumps(value, ensure_ascii=False)
