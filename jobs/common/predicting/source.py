"""What is at a URI that answers are asked for: its files, cut into pieces in a way that they alone decide."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pyarrow.parquet as pq

from cluster.core.errors import DataError
from cluster.core.storage import FileInfo, Store
from jobs.common.data.csv_config import CsvDataConfig
from jobs.common.data.files import Listing, list_files, plain_name, reading
from jobs.common.data.pieces import in_pieces
from jobs.common.data.webdataset import is_tar
from jobs.common.predicting.rows import CsvPiece, JsonPiece, ParquetPiece, Part, Piece
from jobs.common.predicting.single_files import EmbeddedPiece, FilesPiece, TarPiece
from jobs.common.tables.sources import EMBEDDED
from jobs.common.vision.sources.folder import is_picture

Kind = Literal["image", "text", "table"]
"""What a model takes."""
FORMATS = "Parquet, CSV, TSV or JSON Lines (.jsonl, .json)"
_TABLES = {"parquet": "Parquet", "pq": "Parquet", "csv": "CSV", "tsv": "CSV", "jsonl": "JSON", "ndjson": "JSON",
           "json": "JSON"}
_TEXTS = (".txt", ".md", ".text")
_SCAN_BYTES, _THREADS = 8 << 20, 8


@dataclass(frozen=True)
class NewData:
    """The rows that a model is asked about."""

    uri: str
    pieces: tuple[Piece, ...]
    rows: tuple[int, ...]
    """Of each piece."""
    fingerprint: str
    """Of its files: what they are called, how large and old they are, and their ends."""
    unread: tuple[str, ...] = ()
    """Files of another format than those that are read."""

    @property
    def pictures(self) -> tuple[str, ...]:
        """The column of pictures that are files, which stay where they are."""
        first = self.pieces[0]
        is_picture = isinstance(first, TarPiece) or (isinstance(first, FilesPiece) and first.encoding is None)
        return ("image",) if is_picture else ()

    @property
    def num_rows(self) -> int:
        return sum(self.rows)


def find_rows(config: CsvDataConfig, kind: Kind) -> NewData:
    """config: where the data is, and how its files are written. Raises: DataError."""
    pieces, files, unread = _found(config, kind)
    with ThreadPoolExecutor(_THREADS) as pool:
        rows = tuple(pool.map(_count, pieces))
    if not sum(rows):
        raise DataError(f"data {config.uri!r} holds no rows")
    known = [] if files is None else [files.identity, files.contents()]
    digest = hashlib.sha256(json.dumps([config.uri if files is None else "", known]).encode()).hexdigest()
    return NewData(config.uri, _numbered(pieces, rows), rows, digest, unread)


def _count(piece: Piece) -> int:
    return piece.count()


def _found(config: CsvDataConfig, kind: Kind) -> tuple[Sequence[Piece], Listing | None, tuple[str, ...]]:
    """The pieces, the files that they are of, and those that are not read."""
    if config.uri in ("digits", *EMBEDDED):
        return [EmbeddedPiece(config.uri)], None, ()
    listing = list_files(config.uri, f"{FORMATS}, or pictures or plain texts")
    chosen, pieces = _chosen(listing, kind, config)
    read = {file.path for file in chosen}
    unread = tuple(file.path for file in listing.files if file.path not in read)
    return pieces, replace(listing, files=tuple(chosen)), unread


def _chosen(listing: Listing, kind: Kind, config: CsvDataConfig) -> tuple[Sequence[FileInfo], Sequence[Piece]]:
    most = config.piece_bytes(sum(file.size for file in listing.files))
    formats = {_TABLES[ending] for file in listing.files if (ending := _ending(file.path)) in _TABLES}
    if len(formats) > 1:
        raise DataError(f"data {config.uri!r} has files of {' and '.join(sorted(formats))}, whose rows have other "
                        "types: name those of one, as in 'DIR/*.parquet'")
    if formats:
        tables = [file for file in listing.files if _ending(file.path) in _TABLES]
        cut: Callable[[Store, FileInfo, int, CsvDataConfig], Sequence[Piece]] = {
            "Parquet": _parquet, "CSV": _csv, "JSON": _json}[formats.pop()]
        pieces = [piece for file in tables for piece in cut(listing.store, file, most, config)]
        return tables, _same_columns(pieces)
    if kind == "image" and (tars := [file for file in listing.files if is_tar(file.path)]):
        return tars, [TarPiece(listing.store, file.path) for file in tars]
    column, encoding, is_one = _of_files(kind, config, listing)
    if not (singles := [file for file in listing.files if is_one(file.path)]):
        also = {"image": ", pictures (PNG, JPEG, …) or WebDataset (.tar)", "text": ", or plain text (.txt)"}
        raise DataError(f"data {config.uri!r}: none of its {len(listing.files)} files ({listing.files[0].path} …) is "
                        f"what this model takes: give {FORMATS}{also.get(kind, '')}")
    return singles, [FilesPiece(listing.store, tuple(file.path for file in some), column, encoding)
                     for some in in_pieces(singles, lambda file: file.size, most)]


def _of_files(kind: Kind, config: CsvDataConfig, listing: Listing) -> tuple[str, str | None, Callable[[str], bool]]:
    """Of files that are a row each: the column's name, the encoding of texts, and whether a file is one."""
    if kind == "image":
        return "image", None, lambda path: is_picture(listing.store, path)
    return "text", config.encoding or "utf-8", lambda path: kind == "text" and path.lower().endswith(_TEXTS)


def _ending(path: str) -> str:
    return plain_name(path).rpartition(".")[2]


def _numbered(pieces: Sequence[Piece], rows: Sequence[int]) -> tuple[Piece, ...]:
    """With the rows of their files that come before."""
    made: list[Piece] = []
    first = 0
    for place, (piece, count) in enumerate(zip(pieces, rows, strict=True)):
        first = 0 if place and made[-1].name != piece.name else first
        made.append(replace(piece, first=first) if isinstance(piece, CsvPiece | JsonPiece) else piece)
        first += count
    return tuple(made)


def _same_columns(pieces: Sequence[Piece]) -> Sequence[Piece]:
    """Those of JSON have the columns of the first one's first rows."""
    if isinstance(first := pieces[0], JsonPiece):
        names = first.first_names()
        return [replace(piece, names=names) if isinstance(piece, JsonPiece) else piece for piece in pieces]
    return pieces


# ── cutting ──
def _parquet(store: Store, file: FileInfo, most: int, _: CsvDataConfig) -> Sequence[Piece]:
    """Successive row groups together; one that is twice as large or more in parts of as many rows, each of which reads
    what comes before it in the group, too."""
    with reading(store.location(file.path), "it is not whole Parquet; write it again"), \
            store.reading(file.path) as stream:
        about = pq.ParquetFile(stream, pre_buffer=False).metadata
        groups = [about.row_group(place) for place in range(about.num_row_groups)]
    sizes: list[tuple[int, int, int]] = [(place, group.num_rows, group.total_byte_size)
                                         for place, group in enumerate(groups) if group.num_rows]
    pieces: list[ParquetPiece] = []
    first = 0
    for some in in_pieces(sizes, lambda of: of[2], most):
        part, rows = (some[0][0], some[-1][0] + 1), sum(count for _, count, _ in some)
        parts = max(1, min(rows, some[0][2] // most)) if len(some) == 1 else 1
        ends = [rows * end // parts for end in range(parts + 1)]
        pieces += [ParquetPiece(store, file.path, part, first + start, start, end - start)
                   for start, end in itertools.pairwise(ends)]
        first += rows
    return pieces


def _csv(store: Store, file: FileInfo, most: int, config: CsvDataConfig) -> Sequence[Piece]:
    parts = _line_parts(store, file, most, config, quoted=config.quoting != "none")
    return [CsvPiece(store, file.path, part, options=config) for part in parts]


def _json(store: Store, file: FileInfo, most: int, config: CsvDataConfig) -> Sequence[Piece]:
    is_lines = _ending(file.path) != "json"
    parts = _line_parts(store, file, most if is_lines else file.size, config, quoted=False)
    return [JsonPiece(store, file.path, part, encoding=config.encoding or "utf-8") for part in parts]


def _line_parts(store: Store, file: FileInfo, most: int, config: CsvDataConfig, *,
                quoted: bool) -> list[Part | None]:
    """Parts of about as many bytes, each of whole lines. quoted: what is between two quotes may hold line breaks."""
    wide = (config.encoding or "").lower().replace("_", "-").startswith(("utf-16", "utf-32", "utf16", "utf32"))
    if file.size <= most or wide or plain_name(file.path) != file.path.lower():
        return [None]
    ends = [*_line_ends(store, file.path, most, quoted=quoted), file.size]
    starts = [0, *ends[:-1]]
    return [(start, end) for start, end in zip(starts, ends, strict=True) if start < end]


def _line_ends(store: Store, path: str, most: int, *, quoted: bool) -> Iterator[int]:
    """The first end of a line behind each `most` bytes."""
    at = quotes = 0
    wanted = most
    with reading(store.location(path)), store.reading(path) as stream:
        while data := stream.read(_SCAN_BYTES):
            values = np.frombuffer(data, np.uint8)
            is_end = values == ord("\n")
            if quoted:
                inside = quotes + np.cumsum(values == ord('"'))
                is_end &= inside % 2 == 0
                quotes = int(inside[-1]) % 2
            found = at + 1 + np.flatnonzero(is_end)
            while (place := int(np.searchsorted(found, wanted))) < len(found):
                yield (end := int(found[place]))
                wanted = end + most
            at += len(data)
