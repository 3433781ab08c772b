"""Where text comes from: the embedded sets, and files of Parquet, CSV, JSON Lines or plain text.

A source is a list of fragments in the order of their rows;
each can be pickled, and reads itself anywhere when it is asked to.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cluster.core.documents import JsonObject, parse_json
from cluster.core.errors import DataError
from cluster.core.storage import FileInfo, Store
from jobs.common.data.arrow import arrow_column
from jobs.common.data.dataset import SPLITS, SplitName
from jobs.common.data.files import by_split, list_files, reading
from jobs.transformer.config import TextDataConfig
from jobs.transformer.text.embedded import languages, stdlib
from jobs.transformer.text.fragments import TextFragment, Texts, TextSource

FORMATS = (".parquet", ".pq", ".csv", ".tsv", ".jsonl", ".json", ".txt", ".md", ".text", ".py")
_TABLES = FORMATS[:6]


def find_source(config: TextDataConfig, *, labelled: bool) -> TextSource:
    """The source of a config. Raises: DataError if there is none that it can be."""
    if config.uri == "languages":
        return languages()
    if config.uri == "stdlib":
        return stdlib()
    fragments = _files(config.uri, config, labelled, None)
    given: dict[SplitName, str | None] = {"validation": config.val_uri, "test": config.test_uri}
    for split, uri in given.items():
        if uri is not None:
            fragments = [f for f in fragments if f.split != split] + _files(uri, config, labelled, split)
    fragments.sort(key=lambda fragment: SPLITS.index(fragment.split))
    listing = [(f"{f.split}{' part' if f.share else ''} {f.name}", f.size, f.mtime) for f in fragments]
    return TextSource(tuple(fragments), listing, tuple(dict.fromkeys(f.split for f in fragments)))


# ── files ──
def _files(uri: str, config: TextDataConfig, labelled: bool, split: SplitName | None) -> "list[TextFile]":
    listing = list_files(uri)
    files = [file for file in listing.files if file.path.lower().endswith(FORMATS)]
    tables = [file for file in files if file.path.lower().endswith(_TABLES)]
    if not files:
        raise DataError(f"data {uri!r}: none of its {len(listing.files)} files ({listing.files[0].path} …) is Parquet, "
                        f"CSV, JSON Lines or text ({', '.join(FORMATS)})")
    if labelled and not tables:
        raise DataError(f"data {uri!r} holds plain text, which has no labels: to classify give Parquet, CSV or JSON "
                        "Lines with a text and a label column, or pass --task generate")
    chosen = tables or files
    groups: dict[SplitName, list[FileInfo]] = {split: list(chosen)} if split else by_split(chosen, by_name=True)
    columns = (config.text_column, *config.text_columns_join)
    if len(chosen) == 1 and not tables and split is None and not (config.val_uri or config.test_uri):
        return [TextFile(listing.store, chosen[0].path, chosen[0].size, chosen[0].mtime, of, share=of) for of in SPLITS]
    return [TextFile(listing.store, file.path, file.size, file.mtime, of, columns,
                     config.label_column if labelled else None)
            for of, members in groups.items() for file in members]


@dataclass(frozen=True)
class TextFile:
    """One file. share: of a single text file its first 90% of characters are training;
    the rest is validation, and test too."""

    store: Store
    path: str
    size: int
    mtime: float
    split: SplitName
    columns: tuple[str, ...] = ()
    label_column: str | None = None
    share: SplitName | None = None
    _kept: dict[str, list[int]] = field(default_factory=dict[str, list[int]], compare=False)

    @property
    def name(self) -> str:
        return self.store.location(self.path)

    def describe(self, row: int) -> str:
        """row: among those that `read` kept, once it has been called."""
        return f"{self.name}, row {self._kept['rows'][row] if 'rows' in self._kept else row}"

    def read(self) -> Texts:
        if not self.path.lower().endswith(_TABLES):
            return self._document()
        table = self._table()
        texts = self._joined([self._column(table, name) for name in self.columns])
        labels = self._column(table, self.label_column) if self.label_column else None
        there = self._kept["rows"] = [i for i, text in enumerate(texts) if text and text.strip()]
        if labels is not None:
            labels = labels.combine_chunks().take(arrow_column(np.array(there, np.int64)))
        return Texts([texts[i] for i in there], labels, len(texts) - len(there))

    def _document(self) -> Texts:
        text = _decoded(self.store.read_bytes(self.path), self.name)
        cut = len(text) * 9 // 10
        part = text if self.share is None else text[:cut] if self.share == "train" else text[cut:]
        return Texts([part] if part.strip() else [], empty=int(not part.strip()))

    def _table(self) -> Any:
        ending = self.path.lower().rpartition(".")[2]
        with reading(self.name):
            data = self.store.read_bytes(self.path)
            if ending in ("parquet", "pq"):
                import pyarrow as pa
                import pyarrow.parquet as pq

                return pq.read_table(pa.BufferReader(data))
        text = _decoded(data, self.name)
        return (_csv(text, self, "\t" if ending == "tsv" else ",") if ending in ("csv", "tsv")
                else _json_lines(text, self))

    def _column(self, table: Any, name: str) -> Any:
        if name not in table.column_names:
            option = "label" if name == self.label_column else "text"
            raise DataError(f"{self.name} has no column {name!r}: it has {', '.join(table.column_names)}; name one "
                            f"with --data.{option}-column")
        column = table.column(name)
        try:
            column.validate(full=True)
        except ValueError as error:
            row = next((row for row, value in enumerate(column) if not _is_text(value)), 0)
            raise DataError(f"{self.name}, row {row}: column {name!r} is not UTF-8: write the file again from "
                            "text") from error
        return column

    def _joined(self, columns: list[Any]) -> list[str]:
        values = [column.to_pylist() for column in columns]
        for name, column in zip(self.columns, values, strict=True):
            if (wrong := next((v for v in column if v is not None and not isinstance(v, str)), None)) is not None:
                raise DataError(f"{self.name}: column {name!r} holds {type(wrong).__name__}, not text ({wrong!r:.50}): "
                                "name another with --data.text-column")
        return [" ".join(part for part in row if part) for row in zip(*values, strict=True)]


def _is_text(value: Any) -> bool:
    """Whether an Arrow scalar can be read: Parquet may hold strings that are not UTF-8."""
    try:
        value.as_py()
    except UnicodeDecodeError:
        return False
    return True


def _decoded(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{name}: byte {error.start} (line {line}) is not UTF-8 (0x{data[error.start]:02x}): convert "
                        "the file, for instance with iconv -f LATIN1 -t UTF-8") from error


def _csv(text: str, file: TextFile, delimiter: str) -> Any:
    """All columns as text, an empty label as null.
    Columns that are named by number (`0`, `1`, …) mean a file without a header."""
    import pyarrow as pa

    rows = _csv_rows(text, file, delimiter)
    wanted = [name for name in (*file.columns, file.label_column) if name]
    numbered = all(name.isdigit() for name in wanted) and not set(wanted) <= set(rows[0] if rows else [])
    header = [str(i) for i in range(len(rows[0]))] if numbered and rows else rows.pop(0) if rows else []
    for number, row in enumerate(rows):
        if len(row) != len(header):
            raise DataError(f"{file.name}, row {number + (not numbered)}: {len(row)} columns, where the first row has "
                            f"{len(header)}: mend the row, or quote what holds a {delimiter!r}")
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(header)
    values = [[value or None for value in column] if name == file.label_column else column
              for name, column in zip(header, columns, strict=True)]
    return pa.table([pa.array(column, pa.string()) for column in values], header)


def _csv_rows(text: str, file: TextFile, delimiter: str) -> list[list[str]]:
    """Without blank lines. A quote that nothing closes is refused: it would swallow the rows that follow."""
    import csv
    import io

    csv.field_size_limit(2**31 - 1)  # 131,072 characters by default, less than many a document
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    try:
        return [row for row in reader if row]
    except csv.Error as error:
        raise DataError(f"{file.name}, line {reader.line_num} is no CSV ({error}): quote a text that holds quotes, and "
                        "double them inside") from error


def _json_lines(text: str, file: TextFile) -> Any:
    import pyarrow as pa

    rows: list[JsonObject] = []
    for number, line in enumerate(text.split("\n"), 1):  # splitlines() would also cut at U+2028 inside a text
        if line.strip():
            try:
                rows.append(parse_json(line))
                _check_json(rows[-1], file, number)
            except ValueError as error:
                if "hex escape" in str(error):
                    raise DataError(f"{file.name}, line {number} holds half a character (a lone surrogate): write the "
                                    "file again as UTF-8") from error
                raise DataError(f"{file.name}, line {number} is no JSON object ({error}): give one object a "
                                "line") from error
    names = list(dict.fromkeys(name for row in rows for name in row))
    label = file.label_column
    used = {*file.columns, label}
    columns = [[str(row[name]) if name == label and row.get(name) is not None else row.get(name) for row in rows]
               if name in used
               else None for name in names]
    return pa.table([pa.nulls(len(rows)) if column is None else pa.array(column, pa.string()) for column in columns],
                    names)


def _check_json(row: JsonObject, file: TextFile, line: int) -> None:
    for name in (*file.columns, file.label_column):
        value = row.get(name) if name else None
        if value is not None and not isinstance(value, str) and name != file.label_column:
            raise DataError(f"{file.name}, line {line}: column {name!r} holds {type(value).__name__}, not text "
                            f"({value!r:.50}): name another with --data.text-column, or mend the line")


def labels_of(fragments: Sequence[TextFragment], read: Sequence[Texts], label_column: str) -> list[Any]:
    """Each fragment's labels. Raises: DataError if one of validation or test was never seen in training."""
    known = {value for f, texts in zip(fragments, read, strict=True) if f.split == "train"
             for value in texts.labels.to_pylist()}
    for fragment, texts in zip(fragments, read, strict=True):
        for row, value in enumerate(texts.labels.to_pylist()):
            if value not in known and value is not None:
                raise DataError(f"{fragment.describe(row)}: label {value!r} in column {label_column!r} was never seen "
                                "in training: correct it, or add training rows of it")
    return [texts.labels for texts in read]
