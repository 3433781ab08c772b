"""A file of text, or a part of one: what it is called, how it is written, and its bytes."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Sequence
from dataclasses import dataclass, field

from cluster.core.errors import DataError
from cluster.core.storage import Store
from jobs.common.data.csv_config import CsvDataConfig, conversion
from jobs.common.data.dataset import SplitName
from jobs.common.data.files import plain_name, read_unpacked, reading, unpacked
from jobs.common.data.found.bad_rows import BadRow, refuse

TABLES = (".parquet", ".pq", ".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".tar")
FORMATS = (*TABLES, ".txt", ".md", ".text", ".py")
"""The endings that are read, also before .gz, .bz2 and .zst."""
HEADER_BYTES = 1 << 20


@dataclass(frozen=True)
class FilePart:
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
    options: CsvDataConfig = field(default_factory=CsvDataConfig)
    """How it is written, and what becomes of rows that cannot be read."""
    kept: dict[str, list[int]] = field(default_factory=dict[str, list[int]], compare=False)

    @property
    def name(self) -> str:
        return self.store.location(self.path)

    @property
    def is_table(self) -> bool:
        return plain_name(self.path).endswith(TABLES)

    @property
    def ending(self) -> str:
        return plain_name(self.path).rpartition(".")[2]

    @property
    def skips(self) -> bool:
        return self.options.bad_rows == "skip"

    @property
    def encoding(self) -> str:
        return self.options.encoding or "utf-8"

    @property
    def can_be_cut(self) -> bool:
        """Whether a line break is one byte wherever it stands, and the file is not packed."""
        wide = self.encoding.lower().replace("_", "-").startswith(("utf-16", "utf-32", "utf16", "utf32"))
        packed = plain_name(self.path) != self.path.lower()
        return not wide and not packed and not (self.ending == "json" and self.is_array())

    def describe(self, row: int) -> str:
        """row: among those that `read` kept, once it has been called."""
        return self.place(self.kept["rows"][row] if "rows" in self.kept else row)

    def place(self, row: int) -> str:
        """What to call a row, among all of the part."""
        return f"{self.name}, row {row}{self.since()}"

    def leave_out(self, bad: Sequence[BadRow], remedy: str) -> None:
        """Says which rows cannot be read: all of them, up to twenty.

        Raises: DataError, unless they are to be left out.
        """
        if not self.skips:
            refuse(bad, remedy)

    @property
    def wanted(self) -> list[str]:
        """The columns that are read."""
        return [*self.columns, *([self.label_column] if self.label_column else [])]

    def line_offset(self) -> int:
        """Lines before the part."""
        if self.part is None or not self.part[0]:
            return 0
        if "lines" not in self.kept:  # each of many rows may be named
            with self.store.reading(self.path) as stream:
                self.kept["lines"] = [stream.read(self.part[0]).count(b"\n")]
        return self.kept["lines"][0]

    def json_place(self, number: int, *, is_array: bool) -> str:
        """What to call an object of JSON. number: of its line in the part, from 1, or its place in one list, from 0."""
        return (f"{self.name}, item {number} of its list" if is_array
                else f"{self.name}, line {number + self.line_offset()}")

    def since(self) -> str:
        """From where on rows are counted, in a message; the line would have to be counted in all of the file before."""
        if self.part is None or not self.part[0]:
            return ""
        return (f" from row group {self.part[0]}" if self.ending in ("parquet", "pq")
                else f" from byte {self.part[0]:,}")

    def is_array(self) -> bool:
        """Whether a JSON file holds one list of objects, and not an object a line."""
        with reading(self.name), unpacked(self.store, self.path) as stream:
            return stream.read(HEADER_BYTES).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")

    def content(self) -> bytes:
        """The bytes of the part, unpacked. Raises: DataError."""
        with reading(self.name):
            if self.part is None:
                return read_unpacked(self.store, self.path)
        with reading(self.name), self.store.reading(self.path) as stream:
            stream.seek(self.part[0])
            return stream.read(self.part[1] - self.part[0])

    def check_columns(self, names: Sequence[str]) -> None:
        """Raises: DataError where one that is read is not among them."""
        for name in self.wanted:
            if name not in names:
                option = "label" if name == self.label_column else "text"
                raise DataError(f"{self.name} has no column {name!r}: it has {', '.join(names)}; name one with "
                                f"--data.{option}-column")


def decoded(data: bytes, file: FilePart) -> str:
    """Raises: DataError, naming byte and line, for what is not of the file's encoding."""
    try:
        return data.decode("utf-8-sig" if file.encoding == "utf-8" else file.encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1 + file.line_offset()
        raise DataError(f"{file.name}: byte {error.start + (file.part or (0,))[0]} (line {line}) is not "
                        f"{file.encoding.upper()} (0x{data[error.start]:02x}): {conversion(data)}") from error
