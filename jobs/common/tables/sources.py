"""Where tables come from: CSV and Parquet files, read as a stream, and two embedded sets of scikit-learn."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import csv
import io
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from cluster.core.errors import DataError
from cluster.core.storage import FileInfo, Store
from jobs.common.data.csv_config import CsvDataConfig, conversion, looks_delimited_by
from jobs.common.data.dataset import SplitName
from jobs.common.data.files import list_files, plain_name, reading, unpacked
from jobs.common.data.found.split_names import Unread, by_split, not_read
from jobs.common.data.pieces import in_pieces
from jobs.common.tables.columns import MISSING
from jobs.common.tables.config import TableDataConfig

EMBEDDED = ("diabetes", "breast_cancer")
FORMATS = "CSV (*.csv, *.tsv, also .gz, .bz2 and .zst) or Parquet (*.parquet)"
MEND_ROW = "mend the row, or quote what holds the delimiter"
_CSV, _PARQUET = (".csv", ".tsv"), (".parquet", ".pq")
compute: Any = pyarrow.compute  # its functions are made when it is imported
_BATCH_ROWS = 65536
_BLOCK_BYTES = 8 << 20
Listing = list[tuple[str, int, float]]


class Part(Protocol):
    """Successive rows of a table: a file, or a part of one."""

    @property
    def size(self) -> int:
        """Bytes in its file."""
        ...

    def batches(self) -> Iterator[Any]:
        """Its rows in order, as Arrow record batches. Of a CSV file all columns are texts. Raises: DataError."""
        ...

    def describe(self, row: int) -> str:
        """What to call one of its rows, counted from 0, in a message."""
        ...


Parts = dict[SplitName, list[Part]]


@dataclass(frozen=True)
class Found:
    """The tables at a URI."""

    listing: Listing
    """What their content is known by."""
    parts: Parts
    """All under `train` unless the files are named after splits."""
    unread: Unread
    contents: Sequence[str] = ()
    """Hashes of what is in its files, cheaply."""


def find_table(uri: str, config: TableDataConfig) -> Found:
    """Raises: DataError if the URI holds no tables, or they could be two things."""
    if uri in EMBEDDED:
        return Found([(uri, 0, 0.0)], {"train": [EmbeddedTable(uri)]}, {})
    listing = list_files(uri, FORMATS)
    tables = [file for file in listing.files
              if plain_name(file.path).endswith(_CSV) or file.path.lower().endswith(_PARQUET)]
    if not tables:
        raise DataError(f"data {uri!r}: none of its {len(listing.files)} files ({listing.files[0].path} …) is a table: "
                        f"give {FORMATS}")
    groups, unread = by_split(uri, tables, config.layout)
    most = config.piece_bytes(sum(file.size for file in tables))
    parts: Parts = {split: [part for file in files for part in _parts(listing.store, file, config, most)]
                    for split, files in groups.items()}
    return Found(listing.identity, parts, unread | not_read(listing.files, tables, "files of another format"),
                 replace(listing, files=tuple(tables)).contents())


def _parts(store: Store, file: FileInfo, config: TableDataConfig, most: int) -> "Sequence[Part]":
    if file.path.lower().endswith(_PARQUET):
        return ParquetTable(store, file.path, file.size).cut(most)
    return [CsvTable(store, file.path, config, file.size)]


@dataclass(frozen=True)
class _File:
    store: Store
    path: str

    def describe(self, row: int) -> str:
        return f"row {row} of {self.store.location(self.path)}"


@dataclass(frozen=True)
class ParquetTable(_File):
    """A Parquet file, or successive row groups of one."""

    size: int
    """Bytes."""
    groups: tuple[int, int] | None = None
    first: int = 0
    """The first row, in the file."""

    def batches(self) -> Iterator[Any]:
        with self._opened() as file:
            groups = range(*(self.groups or (0, file.num_row_groups)))
            yield from file.iter_batches(_BATCH_ROWS, row_groups=groups, use_threads=False)

    def describe(self, row: int) -> str:
        return super().describe(self.first + row)

    def cut(self, most: int) -> "list[ParquetTable]":
        """It in parts of so many bytes, or of one row group. Raises: DataError."""
        if self.size <= most:
            return [self]
        with self._opened() as file:
            about: list[Any] = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
            groups = [(int(group.total_byte_size), int(group.num_rows)) for group in about]
        parts: list[ParquetTable] = []
        begin = row = 0
        for some in in_pieces(groups, lambda group: group[0], most):
            end = begin + len(some)
            parts.append(replace(self, size=self.size * len(some) // len(groups), groups=(begin, end), first=row))
            begin, row = end, row + sum(rows for _, rows in some)
        return parts or [self]

    @contextmanager
    def _opened(self) -> Generator[pq.ParquetFile]:
        name = self.store.location(self.path)
        with reading(name, "it is not whole Parquet; write it again"), self.store.reading(self.path) as stream:
            yield pq.ParquetFile(stream, pre_buffer=False)


@dataclass(frozen=True)
class CsvTable(_File):
    """A CSV file with a header, perhaps packed; its values stay texts, so that nothing is guessed from a few."""

    options: CsvDataConfig
    size: int = 0
    """Bytes."""

    def batches(self) -> Iterator[Any]:
        with reading(self.store.location(self.path), MEND_ROW):
            header = self.header()
            with unpacked(self.store, self.path) as stream:
                for batch in self.read(stream, header, skip_rows=1, null_values=MISSING):
                    yield pa.RecordBatch.from_arrays([compute.utf8_trim_whitespace(each) for each in batch.columns],
                                                     names=header)

    def read(self, stream: Any, header: Sequence[str], *, skip_rows: int, null_values: Sequence[str] = (),
             odd_row: Callable[[Any], str] | None = None) -> Iterator[Any]:
        """The rows of an open stream as Arrow record batches of texts. odd_row: is told of a row that has not as many
        columns as the header, and says `skip`; by default such a row is an error. Raises: as Arrow does."""
        quoted = self.options.quoting != "none"
        read = pa_csv.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False, column_names=header, skip_rows=skip_rows,
                                  encoding=self._encoding)
        parse = pa_csv.ParseOptions(delimiter=self._delimiter, newlines_in_values=quoted,
                                    quote_char='"' if quoted else False, invalid_row_handler=odd_row)
        texts = pa_csv.ConvertOptions(column_types=dict.fromkeys(header, pa.string()),
                                      strings_can_be_null=bool(null_values), null_values=list(null_values))
        return pa_csv.open_csv(stream, read, parse, texts)

    def header(self) -> list[str]:
        """The names of its columns, which are its first line. Raises: DataError."""
        where = self.store.location(self.path)
        with unpacked(self.store, self.path) as stream:
            begin = stream.read(1 << 20)
        text = io.TextIOWrapper(io.BytesIO(begin), self._encoding.replace("utf-8", "utf-8-sig"), errors="replace",
                                newline="")
        quoting = csv.QUOTE_NONE if self.options.quoting == "none" else csv.QUOTE_MINIMAL
        names = [name.strip() for name in next(csv.reader(text, delimiter=self._delimiter, quoting=quoting), [])]
        if "" in names:
            raise DataError(f"column {names.index('') + 1} of {where} has no name in the first line (pandas writes its "
                            "index so): name it, or write the file without it")
        if strange := next((name for name in names if "\ufffd" in name), None):
            raise DataError(f"the column {strange!r} of {where} is not {self._encoding.upper()}: {conversion(begin)}")
        twice = sorted(name for name, count in Counter(names).items() if count > 1)
        if not names or twice:
            what = f"has the column {twice[0]!r} twice" if twice else "is empty"
            raise DataError(f"{where} {what}: its first line must name its columns")
        if len(names) == 1 and (other := looks_delimited_by(names[0], self._delimiter)):
            raise DataError(f"{where} has one column only, {names[0]!r:.60}: pass --data.delimiter '{other}' if that "
                            "is what is between its columns")
        return names

    @property
    def _delimiter(self) -> str:
        return self.options.delimiter_of(self.path)

    @property
    def _encoding(self) -> str:
        return self.options.encoding or "utf-8"


@dataclass(frozen=True)
class EmbeddedTable:
    """442 patients with a measure of their disease's progression a year later (Efron et al. 2004), or 569 tumours and
    whether they are malignant (Wolberg et al. 1995): they come with scikit-learn."""

    name: str
    size: int = 0

    def batches(self) -> Iterator[Any]:
        from sklearn import datasets

        load: Callable[..., Any] = getattr(datasets, f"load_{self.name}")
        found = load(scaled=False) if self.name == "diabetes" else load()
        classes = getattr(found, "target_names", None)
        target = found.target if classes is None else [str(classes[code]) for code in found.target]
        columns = {str(name): found.data[:, place] for place, name in enumerate(found.feature_names)}
        if self.name == "diabetes":  # which code is which was never published
            columns["sex"] = ["first" if code == 1 else "second" for code in columns["sex"]]
        yield pa.RecordBatch.from_pydict({**columns, "target": target})

    def describe(self, row: int) -> str:
        return f"row {row} of the embedded {self.name}"
