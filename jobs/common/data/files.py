"""The files that a URI stands for: one file, a folder, or a pattern; on a file system or an object store."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

import fnmatch
import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import pyarrow as pa

from cluster.core.errors import DataError
from cluster.core.storage import FileInfo, Store, tls_remedy
from jobs.common.data.dataset import SPLITS, SplitName

FORMATS = "Parquet (*.parquet), IDX (train-images-idx3-ubyte[.gz] …), or a folder of images with one sub-folder a class"
_UNREADABLE = cast(tuple[type[Exception], ...], (OSError, EOFError, pa.ArrowException))
_SPLIT_NAMES: dict[str, SplitName] = {"train": "train", "training": "train", "val": "validation", "valid": "validation",
                                      "validation": "validation", "dev": "validation", "test": "test", "t10k": "test"}


@dataclass(frozen=True)
class Listing:
    """Files below a folder, sorted by their path in it."""

    uri: str
    store: Store
    files: tuple[FileInfo, ...]

    @property
    def identity(self) -> list[tuple[str, int, float]]:
        """(absolute path or URI, size, mtime) of each: what the content is known by."""
        return [(self.store.location(file.path), file.size, file.mtime) for file in self.files]


def list_files(uri: str, formats: str = FORMATS, hidden: tuple[str, ...] = (".", "_")) -> Listing:
    """formats: what may be there, for the message. Raises: DataError if there is nothing at the URI.
    Files and folders that begin with one of `hidden` are passed over."""
    with reading(uri):
        folder, _, name = uri.rstrip("/").rpartition("/")
        parent = _store(folder or ("/" if uri.startswith("/") else "."))
        if name and parent.exists(name):
            return Listing(uri, parent, (next(f for f in parent.files(recursive=False) if f.path == name),))
        found = (_matching(uri, hidden) if re.search(r"[*?\[]", uri)
                 else Listing(uri, _store(uri), _visible(_store(uri), hidden)))
    if not found.files and found.store.is_local and not found.store.local_path().exists():
        raise DataError(f"data {uri!r}: there is no such file or folder ({found.store.location()}): check the path; "
                        "every node must see it")
    if not found.files:
        raise DataError(f"data {uri!r}: no files in {found.store.location()}: give {formats}")
    return found


def split_of(file_path: str, *, by_name: bool) -> SplitName | None:
    """The split that a path is named after: its first folder, or with `by_name` the first word of its file's name."""
    folder, _, name = file_path.rpartition("/")
    words = [folder.split("/")[0]] + ([re.split(r"[-_.]", name)[0]] if by_name else [])
    return next((_SPLIT_NAMES[word.lower()] for word in words if word.lower() in _SPLIT_NAMES), None)


def by_split(files: Sequence[FileInfo], *, by_name: bool) -> dict[SplitName, list[FileInfo]]:
    """Files by the split that they are named after, if all are and some are training data;
    else all are training data."""
    named = [(split_of(file.path, by_name=by_name), file) for file in files]
    if any(split is None for split, _ in named) or not any(split == "train" for split, _ in named):
        return {"train": list(files)}
    groups: dict[SplitName, list[FileInfo]] = {}
    for split in SPLITS:
        if group := [file for own, file in named if own == split]:
            groups[split] = group
    return groups


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


def _matching(pattern: str, hidden: tuple[str, ...]) -> Listing:
    """`*` matches within one folder, as a shell's does."""
    fixed = re.split(r"[*?\[]", pattern)[0].rpartition("/")[0]
    store = _store(fixed or ("/" if pattern.startswith("/") else "."))
    parts = pattern[len(fixed):].lstrip("/").split("/")
    files = tuple(file for file in _visible(store, hidden) if _matches(file.path.split("/"), parts))
    if not files:
        raise DataError(f"data {pattern!r}: no file in {store.location()} matches: check the pattern")
    return Listing(pattern, store, files)


def _matches(path: Sequence[str], parts: Sequence[str]) -> bool:
    return len(path) == len(parts) and all(map(fnmatch.fnmatchcase, path, parts))


def _visible(store: Store, hidden: tuple[str, ...]) -> tuple[FileInfo, ...]:
    return tuple(f for f in store.files() if not any(part.startswith(hidden) for part in f.path.split("/")))
