"""A file of text, or a part of one: Parquet, CSV, JSON Lines or plain text, read by whoever is asked to."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cluster.core.documents import JsonObject, parse_json
from cluster.core.errors import DataError
from cluster.core.storage import Store
from jobs.common.data.arrow import arrow_column
from jobs.common.data.dataset import SplitName
from jobs.common.data.files import reading
from jobs.transformer.text.fragments import BadRow, Texts

TABLES = (".parquet", ".pq", ".csv", ".tsv", ".jsonl", ".json")
FORMATS = (*TABLES, ".txt", ".md", ".text", ".py")
_HEADER_BYTES = 1 << 20
MOST_NAMED = 20
"""Rows that one message names."""


@dataclass(frozen=True)
class TextFile:
    """Rows of one file: those of some of its bytes, or of some row groups of Parquet."""

    store: Store
    path: str
    size: int
    """Bytes of the part."""
    split: SplitName
    columns: tuple[str, ...] = ()
    label_column: str | None = None
    part: tuple[int, int] | None = None
    """The first byte (row group) and the one after the last; None: all."""
    begins: bool = True
    """Whether a plain text's part begins a document,"""
    ends: bool = True
    """and whether it ends one."""
    skips: bool = False
    """Whether rows that cannot be read are left out, and not refused."""
    _kept: dict[str, list[int]] = field(default_factory=dict[str, list[int]], compare=False)

    @property
    def name(self) -> str:
        return self.store.location(self.path)

    @property
    def is_table(self) -> bool:
        return self.path.lower().endswith(TABLES)

    @property
    def ending(self) -> str:
        return self.path.lower().rpartition(".")[2]

    def describe(self, row: int) -> str:
        """row: among those that `read` kept, once it has been called."""
        return self._place(self._kept["rows"][row] if "rows" in self._kept else row)

    def _place(self, row: int) -> str:
        return f"{self.name}, row {row}{self._since()}"

    def read(self) -> Texts:
        if not self.is_table:
            text = decoded(self._bytes(), self)
            return Texts([text] if text.strip() else [], empty=int(not text.strip()), begins=self.begins,
                         ends=self.ends)
        table, bad = self._table()
        texts = self._joined([self._column(table, name) for name in self.columns])
        labels = self._column(table, self.label_column).combine_chunks() if self.label_column else None
        there = self._kept["rows"] = [i for i, text in enumerate(texts) if text and text.strip()]
        empty = len(texts) - len(there)
        if labels is not None and self.skips:
            without = set(np.flatnonzero(labels.is_null().to_numpy(zero_copy_only=False)).tolist())
            bad += [(self._place(i), f"has no value in column {self.label_column!r}") for i in there if i in without]
            there[:] = [i for i in there if i not in without]
        if labels is not None:
            labels = labels.take(arrow_column(np.array(there, np.int64)))
        return Texts([texts[i] for i in there], labels, empty, skipped=bad)

    def leave_out(self, bad: Sequence[BadRow], remedy: str) -> None:
        """Says which rows cannot be read: all of them, up to twenty.

        Raises: DataError, unless they are to be left out.
        """
        if not bad or self.skips:
            return
        if len(bad) == 1:
            raise DataError(f"{bad[0][0]} {bad[0][1]}: {remedy}")
        lines = "".join(f"\n  {where} {why}" for where, why in bad[:MOST_NAMED])
        more = f"\n  and {len(bad) - MOST_NAMED:,} more" if len(bad) > MOST_NAMED else ""
        raise DataError(f"{len(bad):,} rows cannot be read: {remedy}; or leave them out with --data.bad-rows skip"
                        f"{lines}{more}")

    @property
    def wanted(self) -> list[str]:
        """The columns that are read."""
        return [*self.columns, *([self.label_column] if self.label_column else [])]

    def line_offset(self) -> int:
        """Lines before the part."""
        if self.part is None or not self.part[0]:
            return 0
        with self.store.reading(self.path) as stream:
            return stream.read(self.part[0]).count(b"\n")

    def _since(self) -> str:
        if self.part is None or not self.part[0]:
            return ""
        return (f" from row group {self.part[0]}" if self.ending in ("parquet", "pq")
                else f" from line {self.line_offset() + 1}")

    def _bytes(self) -> bytes:
        with reading(self.name), self.store.reading(self.path) as stream:
            if self.part is None:
                return stream.read()
            stream.seek(self.part[0])
            return stream.read(self.part[1] - self.part[0])

    def _table(self) -> tuple[Any, list[BadRow]]:
        """The table, and the rows that are not in it."""
        if self.ending in ("parquet", "pq"):
            return _parquet(self), []
        text = decoded(self._bytes(), self)
        return _csv(text, self) if self.ending in ("csv", "tsv") else _json_lines(text, self)

    def check_columns(self, names: Sequence[str]) -> None:
        """Raises: DataError where one that is read is not among them."""
        for name in self.wanted:
            if name not in names:
                option = "label" if name == self.label_column else "text"
                raise DataError(f"{self.name} has no column {name!r}: it has {', '.join(names)}; name one with "
                                f"--data.{option}-column")

    def _column(self, table: Any, name: str) -> Any:
        self.check_columns(table.column_names)
        column = table.column(name)
        try:
            column.validate(full=True)
        except ValueError as error:
            row = next((row for row, value in enumerate(column) if not _is_text(value)), 0)
            raise DataError(f"{self.name}, row {row}{self._since()}: column {name!r} is not UTF-8: write the file "
                            "again from text") from error
        return column

    def _joined(self, columns: list[Any]) -> list[str]:
        values = [column.to_pylist() for column in columns]
        for name, column in zip(self.columns, values, strict=True):
            if (wrong := next((v for v in column if v is not None and not isinstance(v, str)), None)) is not None:
                raise DataError(f"{self.name}: column {name!r} holds {type(wrong).__name__}, not text ({wrong!r:.50}): "
                                "name another with --data.text-column")
        if len(values) == 1:
            return values[0]
        return [" ".join(part for part in row if part) for row in zip(*values, strict=True)]


def _is_text(value: Any) -> bool:
    """Whether an Arrow scalar can be read: Parquet may hold strings that are not UTF-8."""
    try:
        value.as_py()
    except UnicodeDecodeError:
        return False
    return True


def decoded(data: bytes, file: TextFile) -> str:
    """Raises: DataError, naming byte and line, for what is not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1 + file.line_offset()
        raise DataError(f"{file.name}: byte {error.start + (file.part or (0,))[0]} (line {line}) is not UTF-8 "
                        f"(0x{data[error.start]:02x}): {_conversion(data)}") from error


def _conversion(data: bytes) -> str:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "it begins as UTF-16 does: convert it, for instance with iconv -f UTF-16 -t UTF-8"
    return "convert the file, for instance with iconv -f LATIN1 -t UTF-8"


# ── tables ──
def _parquet(file: TextFile) -> Any:
    """The columns that are read, of the row groups of the part."""
    import pyarrow.parquet as pq

    with reading(file.name), file.store.reading(file.path) as stream:
        opened = pq.ParquetFile(stream, pre_buffer=False)
        file.check_columns(opened.schema_arrow.names)
        groups = range(*(file.part or (0, opened.num_row_groups)))
        return opened.read_row_groups(list(groups), columns=list(dict.fromkeys(file.wanted)), use_threads=False)


def _csv(text: str, file: TextFile) -> tuple[Any, list[BadRow]]:
    """All columns as text, an empty label as null.
    Columns that are named by number (`0`, `1`, …) mean a file without a header."""
    import pyarrow as pa

    delimiter = "\t" if file.ending == "tsv" else ","
    rows = _csv_rows(text, file, delimiter)
    is_first = file.part is None or not file.part[0]
    top = rows[0] if is_first and rows else _first_row(file, delimiter) if not is_first else []
    numbered = all(name.isdigit() for name in file.wanted) and not set(file.wanted) <= set(top)
    if is_first and not numbered:
        rows = rows[1:]
    header = [str(i) for i in range(len(top))] if numbered else top
    offset = int(is_first and not numbered)
    bad = [(file.describe(number + offset), f"has {len(row)} columns, where the first row has {len(header)}")
           for number, row in enumerate(rows) if len(row) != len(header)]
    file.leave_out(bad, f"mend the row, or quote what holds a {delimiter!r}")
    rows = [row for row in rows if len(row) == len(header)]
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(header)
    values = [[value or None for value in column] if name == file.label_column else column
              for name, column in zip(header, columns, strict=True)]
    return pa.table([pa.array(column, pa.string()) for column in values], header), bad


def _first_row(file: TextFile, delimiter: str) -> list[str]:
    with reading(file.name), file.store.reading(file.path) as stream:
        text = stream.read(_HEADER_BYTES).decode("utf-8-sig", errors="replace")
    return next(csv.reader(io.StringIO(text), delimiter=delimiter))


def _csv_rows(text: str, file: TextFile, delimiter: str) -> list[list[str]]:
    """Without blank lines. A quote that nothing closes is refused: it would swallow the rows that follow."""
    csv.field_size_limit(2**31 - 1)  # 131,072 characters by default, less than many a document
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    try:
        return [row for row in reader if row]
    except csv.Error as error:
        raise DataError(f"{file.name}, line {reader.line_num + file.line_offset()} is no CSV ({error}): quote a text "
                        "that holds quotes, and double them inside") from error


def _json_lines(text: str, file: TextFile) -> tuple[Any, list[BadRow]]:
    import pyarrow as pa

    rows: list[JsonObject] = []
    bad: list[BadRow] = []
    for number, line in enumerate(text.split("\n"), 1):  # splitlines() would also cut at U+2028 inside a text
        if not line.strip():
            continue
        row, wrong = _json_row(line, file)
        if row is None:
            bad.append((f"{file.name}, line {number + file.line_offset()}", wrong))
        else:
            rows.append(row)
    file.leave_out(bad, "mend the line, or name another column with --data.text-column or --data.label-column")
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = [([_label(row.get(name)) for row in rows] if name == file.label_column
                else [row.get(name) for row in rows]) if name in file.wanted else None for name in names]
    return pa.table([pa.nulls(len(rows)) if column is None else pa.array(column, pa.string()) for column in columns],
                    names), bad


def _json_row(line: str, file: TextFile) -> tuple[JsonObject | None, str]:
    """The row, or what is wrong with it."""
    try:
        row = parse_json(line)
    except ValueError as error:
        return None, ("holds half a character (a lone surrogate), which is no UTF-8" if "hex escape" in str(error)
                      else f"is no JSON object ({error})")
    label = row.get(file.label_column) if file.label_column else None
    if isinstance(label, list | dict) or (isinstance(label, float) and not label.is_integer()):
        return None, f"has {label!r:.50} in column {file.label_column!r}, where a class is a text or a whole number"
    for name in file.columns:
        value = row.get(name)
        if value is not None and not isinstance(value, str) and name != file.label_column:
            return None, f"holds {type(value).__name__}, not text, in column {name!r} ({value!r:.50})"
    return row, ""


def _label(value: object) -> str | None:
    """A label as text; a whole number is written without a fraction."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) else str(value) if value is not None else None
