"""Rows of one file of text, read by whoever is asked to."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.core.errors import DataError
from jobs.common.data.arrow import arrow_column
from jobs.common.data.found.bad_rows import BadRow
from jobs.transformer.text.files import FilePart, decoded
from jobs.transformer.text.formats import read_csv, read_json, read_parquet, read_tar
from jobs.transformer.text.fragments import Texts


@dataclass(frozen=True)
class TextFile(FilePart):
    """Rows of one file: those of some of its bytes, or of some row groups of Parquet."""

    def read(self) -> Texts:
        if not self.is_table:
            text = decoded(self.content(), self)
            return Texts([text] if text.strip() else [], empty=int(not text.strip()), begins=self.begins,
                         ends=self.ends)
        table, bad = self._table()
        texts = self._joined([self._column(table, name) for name in self.columns])
        labels = self._column(table, self.label_column).combine_chunks() if self.label_column else None
        there = self.kept["rows"] = [i for i, text in enumerate(texts) if text and text.strip()]
        empty = len(texts) - len(there)
        if labels is not None and self.skips:
            without = set(np.flatnonzero(labels.is_null().to_numpy(zero_copy_only=False)).tolist())
            bad += [(self.place(i), f"has no value in column {self.label_column!r}") for i in there if i in without]
            there[:] = [i for i in there if i not in without]
        if labels is not None:
            labels = labels.take(arrow_column(np.array(there, np.int64)))
        return Texts([texts[i] for i in there], labels, empty, skipped=bad)

    def _table(self) -> tuple[Any, list[BadRow]]:
        """The table, and the rows that are not in it."""
        if self.ending in ("parquet", "pq"):
            return read_parquet(self, self.wanted), []
        if self.ending == "tar":
            return read_tar(self)
        text = decoded(self.content(), self)
        return read_csv(text, self) if self.ending in ("csv", "tsv") else read_json(text, self)

    def _column(self, table: Any, name: str) -> Any:
        self.check_columns(table.column_names)
        column = table.column(name)
        try:
            column.validate(full=True)
        except ValueError as error:
            row = next((row for row, value in enumerate(column) if not _is_text(value)), 0)
            raise DataError(f"{self.name}, row {row}{self.since()}: column {name!r} is not UTF-8: write the file "
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
