"""Conversations in files: Parquet, JSON Lines, a JSON list, or CSV, in any of the forms of chat/rows.py.

A row becomes a line of JSON in one form (`as_text`), so that whatever looks at texts looks at conversations alike.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.core.errors import DataError
from jobs.common.data.files import reading, unpacked
from jobs.common.data.found.bad_rows import BadRow
from jobs.transformer.chat.conversation import FormName
from jobs.transformer.chat.rows import FORMS, as_text, conversation_of, form_of
from jobs.transformer.preference import pairs
from jobs.transformer.text.files import HEADER_BYTES, TABLES, FilePart, decoded
from jobs.transformer.text.formats import JsonRow, first_row, json_rows, read_csv, read_parquet
from jobs.transformer.text.fragments import Texts
from jobs.transformer.text.text_file import TextFile

FORMATS = tuple(ending for ending in TABLES if ending != ".tar")


@dataclass(frozen=True)
class ConversationFile(TextFile):
    """Conversations of one file, or of a part of one."""

    form: str = "messages"
    """Of FORMS."""

    def read(self) -> Texts:
        texts: list[str] = []
        bad: list[BadRow] = []
        kept: list[int] = []
        self.kept.pop("rows", None)
        for number, (row, why) in self._rows(bad):
            try:
                if row is None:
                    raise ValueError(why)
                texts.append(self._text(row))
                kept.append(number)
            except (TypeError, ValueError) as error:
                bad.append((self.place(number), str(error)))
        self.leave_out(bad, "mend the row")
        self.kept["rows"] = kept
        return Texts(texts, skipped=bad)

    def _text(self, row: Mapping[str, Any]) -> str:
        if self.form == "preference":
            return pairs.as_text(pairs.pair_of(row))
        return as_text(conversation_of(FORMS[self.form], row))

    def place(self, row: int) -> str:
        if self.ending in ("json", "jsonl", "ndjson"):
            return self.json_place(row, is_array=self.ending == "json" and self.is_array())
        return super().place(row)

    def _rows(self, bad: list[BadRow]) -> Iterator[tuple[int, JsonRow]]:
        """Each row by its number. bad: takes those that are no rows."""
        if self.ending not in ("parquet", "pq", "csv", "tsv"):
            return json_rows(decoded(self.content(), self), self)
        if self.ending in ("parquet", "pq"):
            table = read_parquet(self, self._columns(columns_of(self)))
        else:
            table, wrong = read_csv(decoded(self.content(), self), self)
            bad += wrong
            if twice := next((name for name in table.column_names if table.column_names.count(name) > 1), None):
                raise DataError(f"{self.name} has the column {twice!r} twice: its first line must name its columns")
            table = table.select(self._columns(table.column_names))
        return ((number, (row, "")) for number, row in enumerate(table.to_pylist()))

    def _columns(self, there: list[str]) -> list[str]:
        form = FORMS[self.form]
        return [name for name in there if name in form.needed + form.more]


def columns_of(file: FilePart) -> list[str]:
    """What the columns of a file are called. Raises: DataError."""
    if file.ending in ("parquet", "pq"):
        import pyarrow.parquet as pq

        with reading(file.name), file.store.reading(file.path) as stream:
            return pq.ParquetFile(stream, pre_buffer=False).schema_arrow.names
    if file.ending in ("csv", "tsv"):
        return first_row(file)
    for number, (row, why) in json_rows(_first_lines(file), file):
        if row is None:
            raise DataError(f"{file.place(number)} {why}")
        return list(row)
    raise DataError(f"{file.name} holds no rows")


def _first_lines(file: FilePart) -> str:
    """The first line that holds something; of a JSON list, all of it."""
    if not file.can_be_cut:
        return decoded(file.content(), file)
    with reading(file.name), unpacked(file.store, file.path) as stream:
        data = b""
        while b"\n" not in data.lstrip(b"\xef\xbb\xbf \t\r\n") and (more := stream.read(HEADER_BYTES)):
            data += more
    lead = len(data) - len(data.lstrip(b"\xef\xbb\xbf \t\r\n"))
    return decoded(data[: data.find(b"\n", lead)] if b"\n" in data[lead:] else data, file)


def form_in(file: FilePart, name: FormName) -> str:
    """The form of a file's rows. Raises: DataError."""
    return form_of(columns_of(file), name, file.name).name
