"""Tables of text in files: Parquet, CSV, JSON as an object a line or as one list, and WebDataset's tars."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any, cast

from cluster.core.documents import JsonObject, parse_json
from cluster.core.errors import DataError
from jobs.common.data.csv_config import conversion, looks_delimited_by
from jobs.common.data.files import MOST_UNPACKED, reading
from jobs.common.data.found.bad_rows import BadRow
from jobs.common.data.webdataset import Sample, samples
from jobs.transformer.text.files import HEADER_BYTES, FilePart

_TAR_ENDINGS = {"txt", "json", "cls"}
JsonRow = tuple[JsonObject | None, str]
"""The row, or what is wrong with it."""


def read_parquet(file: FilePart, columns: Sequence[str]) -> Any:
    """Columns of the row groups of the part."""
    import pyarrow.parquet as pq

    with reading(file.name), file.store.reading(file.path) as stream:
        opened = pq.ParquetFile(stream, pre_buffer=False)
        file.check_columns(opened.schema_arrow.names)
        groups = range(*(file.part or (0, opened.num_row_groups)))
        return opened.read_row_groups(list(groups), columns=list(dict.fromkeys(columns)), use_threads=False)


def read_csv(text: str, file: FilePart) -> tuple[Any, list[BadRow]]:
    """All columns as text, an empty label as null.
    Columns that are named by number (`0`, `1`, …) mean a file without a header."""
    import pyarrow as pa

    delimiter = file.options.delimiter_of(file.path)
    is_first = file.part is None or not file.part[0]
    top = next(filter(None, _reader(text, file)), []) if is_first else first_row(file)
    if len(top) == 1 and top != file.wanted and (other := looks_delimited_by(top[0], delimiter)):
        raise DataError(f"{file.name} has one column only, {top[0]!r:.60}: pass --data.delimiter '{other}' if that is "
                        "what is between its columns")
    if twice := next((name for name in file.wanted if top.count(name) > 1), None):
        raise DataError(f"{file.name} has the column {twice!r} twice: its first line must name its columns")
    numbered = all(name.isdigit() for name in file.wanted) and not set(file.wanted) <= set(top)
    header = [str(i) for i in range(len(top))] if numbered else top
    rows = _csv_rows(text, file)[int(is_first and not numbered):]
    offset = int(is_first and not numbered)
    bad = [(file.describe(number + offset), f"has {len(row)} columns, where the first row has {len(header)}")
           for number, row in enumerate(rows) if len(row) != len(header)]
    file.leave_out(bad, f"mend the row, or quote what holds a {delimiter!r}")
    rows = [row for row in rows if len(row) == len(header)]
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(header)
    values = [[value or None for value in column] if name == file.label_column else column
              for name, column in zip(header, columns, strict=True)]
    return pa.table([pa.array(column, pa.string()) for column in values], header), bad


def first_row(file: FilePart) -> list[str]:
    """What stands in the first line of a CSV file, most often the names of its columns."""
    with reading(file.name), file.store.reading(file.path) as stream:
        text = stream.read(HEADER_BYTES).decode(file.encoding.replace("utf-8", "utf-8-sig"), errors="replace")
    return next(filter(None, _reader(text, file)))


def _reader(text: str, file: FilePart) -> Any:
    csv.field_size_limit(2**31 - 1)  # 131,072 characters by default, less than many a document
    return csv.reader(io.StringIO(text, newline=""), delimiter=file.options.delimiter_of(file.path), strict=True,
                      quoting=csv.QUOTE_NONE if file.options.quoting == "none" else csv.QUOTE_MINIMAL)


def _csv_rows(text: str, file: FilePart) -> list[list[str]]:
    """Without blank lines. A quote that nothing closes is refused, and in tabs a text that holds line breaks: a stray
    quote swallows the rows that follow."""
    reader, rows, line = _reader(text, file), list[list[str]](), 1
    try:
        for row in reader:
            if file.ending == "tsv" and reader.line_num > line:
                raise DataError(f"{file.name}, line {line + file.line_offset()}: a quote begins a text of several "
                                "lines, which in a *.tsv is most likely a stray quote: pass --data.quoting none to "
                                "take quotes as they are, or name the file *.csv and pass --data.delimiter tab if it "
                                "is meant so")
            line = reader.line_num + 1
            rows += [row] if row else []
        return rows
    except csv.Error as error:
        raise DataError(f"{file.name}, line {reader.line_num + file.line_offset()} is no CSV ({error}): quote a text "
                        "that holds quotes and double them inside, or pass --data.quoting none") from error


def read_json(text: str, file: FilePart) -> tuple[Any, list[BadRow]]:
    """An object a line, or one list of objects."""
    rows: list[JsonObject] = []
    wrong: list[tuple[int, str]] = []
    for number, (row, why) in json_rows(text, file):
        if row is None:
            wrong.append((number, why))
        else:
            rows.append(row)
    bad = [(file.json_place(number, is_array=is_list(text)), why) for number, why in wrong]
    file.leave_out(bad, "mend the line, or name another column with --data.text-column or --data.label-column")
    return _table(rows, file), bad


def is_list(text: str) -> bool:
    """Whether JSON is one list, and not an object a line."""
    return text.lstrip().startswith("[")


def json_rows(text: str, file: FilePart) -> Iterator[tuple[int, JsonRow]]:
    """The objects, with the number of their line, from 1, or their place in one list, from 0."""
    return _json_array(text, file) if is_list(text) else _json_lines(text, file)


def read_tar(file: FilePart) -> tuple[Any, list[BadRow]]:
    """A sample a row: what its `json` says, its `txt` as the text, and its `cls` as the label."""
    rows: list[JsonObject] = []
    bad: list[BadRow] = []
    for sample in samples(file.store, file.path, _TAR_ENDINGS.__contains__, file.part):
        row, why = _tar_row(sample, file)
        if row is None:
            bad.append((f"{file.name}, sample {sample.key}", why))
        else:
            rows.append(row)
    file.leave_out(bad, "mend it")
    if not any(rows) and not bad:
        raise DataError(f"{file.name} holds no text: none of its samples has a member .txt or .json")
    return _table(rows, file), bad


def _tar_row(sample: Sample, file: FilePart) -> JsonRow:
    row: JsonObject = {}
    columns = {"txt": file.columns[0], "cls": file.label_column}
    try:
        if "json" in sample.data:
            row |= parse_json(sample.data["json"].decode("utf-8-sig"))
        row |= {column: sample.data[ending].decode(file.encoding.replace("utf-8", "utf-8-sig"))
                for ending, column in columns.items() if column and ending in sample.data}
    except UnicodeDecodeError as error:
        return None, f"is not {file.encoding.upper()} (byte {error.start}): {conversion(error.object)}"
    except ValueError as error:
        return None, f"has a .json that is no JSON object ({error})"
    if "cls" in sample.data and file.label_column:
        row[file.label_column] = row[file.label_column].strip() or None
    return _json_row(row, file)


def _table(rows: list[JsonObject], file: FilePart) -> Any:
    import pyarrow as pa

    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = [([_label(row.get(name)) for row in rows] if name == file.label_column
                else [row.get(name) for row in rows]) if name in file.wanted else None for name in names]
    return pa.table([pa.nulls(len(rows)) if column is None else pa.array(column, pa.string()) for column in columns],
                    names)


def _json_lines(text: str, file: FilePart) -> Iterator[tuple[int, JsonRow]]:
    """Each row with the number of its line in the text, from 1."""
    for number, line in enumerate(text.split("\n"), 1):  # splitlines() would also cut at U+2028 inside a text
        if line.strip():
            try:
                yield number, _json_row(parse_json(line), file)
            except ValueError as error:
                what = ("holds half a character (a lone surrogate), which is no UTF-8" if "hex escape" in str(error)
                        else f"is no JSON object ({error})")
                yield number, (None, what)


def _json_array(text: str, file: FilePart) -> Iterator[tuple[int, JsonRow]]:
    """Each row with its place in the list, from 0."""
    try:
        rows = parse_json(text, list[object], most_bytes=MOST_UNPACKED)
    except ValueError as error:
        raise DataError(f"{file.name} begins as a JSON list, and is none ({error}): mend it, or give one object a "
                        "line") from error
    for number, row in enumerate(rows):
        yield number, (_json_row(cast(JsonObject, row), file) if isinstance(row, dict)
                       else (None, f"is no JSON object ({row!r:.40})"))


def _json_row(row: JsonObject, file: FilePart) -> JsonRow:
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
