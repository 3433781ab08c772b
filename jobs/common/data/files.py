"""The files that a URI stands for: one file, a folder, or a pattern; on a file system or an object store."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

import fnmatch
import hashlib
import re
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import pyarrow as pa

from cluster.core.errors import DataError
from cluster.core.hub import HubPlace, is_hub, pin
from cluster.core.storage import FileInfo, Store
from cluster.core.tls_remedy import tls_remedy

FORMATS = ("Parquet (*.parquet), IDX (train-images-idx3-ubyte[.gz] …), WebDataset (*.tar), or a folder of images with "
           "one sub-folder a class")
PACKED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
MOST_UNPACKED = 4 << 30
"""Bytes of a file that cannot be read in parts."""
_PART_BYTES = 8 << 20
_END_BYTES, _HASHED_FILES, _THREADS = 1 << 16, 256, 8
_UNREADABLE = cast(tuple[type[Exception], ...], (OSError, EOFError, pa.ArrowException))
_LITTER = re.compile(r"\..*|_SUCCESS|_common_metadata|_metadata|_committed_.*|_started_.*|_temporary|_delta_log|"
                     r"__MACOSX|(eh)?Thumbs\.db|desktop\.ini|.*\.crc", re.IGNORECASE)
"""What systems and programs leave beside data: hidden files, markers of Spark's, thumbnails."""


@dataclass(frozen=True)
class Listing:
    """Files below a folder, sorted by their path in it."""

    uri: str
    store: Store
    files: tuple[FileInfo, ...]

    @property
    def identity(self) -> list[tuple[str, int, float]]:
        """(absolute path or URI, size, mtime) of each: what the content is known by, with `contents`."""
        return [(self.store.identity(file.path), file.size, file.mtime) for file in self.files]

    def contents(self) -> list[str]:
        """A hash of the first and last 64 KiB of each file, of many files of some: what a file of the same size and
        time is told apart by. Where the storage has hashes, those of all."""
        if all(file.digest for file in self.files):
            return [file.digest for file in self.files]
        step = -(-len(self.files) // _HASHED_FILES) or 1
        with ThreadPoolExecutor(_THREADS) as pool:
            return list(pool.map(self._ends, self.files[::step]))

    def _ends(self, file: FileInfo) -> str:
        with reading(self.store.location(file.path)), self.store.reading(file.path) as stream:
            first = stream.read(_END_BYTES)
            stream.seek(max(0, file.size - _END_BYTES))
            return hashlib.blake2b(first + stream.read(_END_BYTES), digest_size=16).hexdigest()


def list_files(uri: str, formats: str = FORMATS) -> Listing:
    """formats: what may be there, for the message. Raises: DataError if there is nothing at the URI.
    Hidden files and the litter of systems are passed over. What lies on the Hub is read at one commit."""
    with reading(uri):
        uri = pin(uri, {}) if is_hub(uri) else uri
        if (named := _named(uri)) is not None:
            return named
        found = _matching(uri) if re.search(r"[*?\[]", uri) else Listing(uri, _store(uri), _visible(_store(uri)))
    if not found.files and found.store.is_local and not found.store.local_path().exists():
        raise DataError(f"data {uri!r}: there is no such file or folder ({found.store.location()}): check the path; "
                        "every node must see it")
    if not found.files:
        raise DataError(f"data {uri!r}: no files in {found.store.location()}: give {formats}")
    return found


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name is no data."""
    return _LITTER.fullmatch(name) is not None


def plain_name(path: str) -> str:
    """In small letters, without the ending of what has packed the file: rows.csv of rows.csv.gz."""
    name = path.lower()
    return next((name.removesuffix(ending) for ending in PACKED if name.endswith(ending)), name)


@contextmanager
def unpacked(store: Store, path: str) -> Generator[Any]:
    """A stream of what a file holds, unpacked where its name says that it is packed. Raises: FileNotFoundError."""
    codec = next((codec for ending, codec in PACKED.items() if path.lower().endswith(ending)), None)
    with store.reading(path) as stream:
        yield stream if codec is None else pa.CompressedInputStream(stream, codec)


def read_unpacked(store: Store, path: str) -> bytes:
    """All of it. Raises: DataError if it is more than one process should hold; FileNotFoundError."""
    parts: list[bytes] = []
    room = MOST_UNPACKED
    with unpacked(store, path) as stream:
        while part := stream.read(_PART_BYTES):
            parts.append(part)
            room -= len(part)
            if room < 0:
                raise DataError(f"{store.location(path)} unpacks to more than {MOST_UNPACKED >> 30} GiB, which would "
                                "be read in one go: unpack it, or pack it in smaller files")
    return b"".join(parts)


@contextmanager
def reading(what: str, remedy: str = "check that it is there, whole and readable from every node") -> Generator[None]:
    """Raises: DataError that names the file or URI, for what Arrow, gzip and the file system raise."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{what}: there is no such file: {remedy}") from error
    except _UNREADABLE as error:
        raise DataError(f"{what} cannot be read ({_line(error)}): {tls_remedy(error) or remedy}") from error


def _line(error: BaseException) -> str:
    """Arrow appends its own call stack to a message."""
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__


def _store(uri: str) -> Store:
    """Of an absolute path, which means the same to a task that runs in another folder."""
    return Store.open(Store.open(uri).location())


def _named(uri: str) -> Listing | None:
    """If it is a file's own."""
    if is_hub(uri) and not HubPlace.of(uri).path:
        return None
    folder, _, name = uri.rstrip("/").rpartition("/")
    parent = _store(folder or ("/" if uri.startswith("/") else "."))
    if not name or not parent.exists(name):
        return None
    return Listing(uri, parent, (next(f for f in parent.files(recursive=False) if f.path == name),))


def _matching(pattern: str) -> Listing:
    """`*` matches within one folder, as a shell's does."""
    fixed = re.split(r"[*?\[]", pattern)[0].rpartition("/")[0]
    store = _store(fixed or ("/" if pattern.startswith("/") else "."))
    parts = pattern[len(fixed):].lstrip("/").split("/")
    files = tuple(file for file in _visible(store) if _matches(file.path.split("/"), parts))
    if not files:
        raise DataError(f"data {pattern!r}: no file in {store.location()} matches: check the pattern")
    return Listing(pattern, store, files)


def _matches(path: Sequence[str], parts: Sequence[str]) -> bool:
    return len(path) == len(parts) and all(map(fnmatch.fnmatchcase, path, parts))


def _visible(store: Store) -> tuple[FileInfo, ...]:
    return tuple(f for f in store.files() if not any(map(is_litter, f.path.split("/"))))
