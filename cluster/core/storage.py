"""One way to read and write a local folder, a shared folder, `s3://` or `gs://`, and to read `hf://`, by pyarrow.fs.

A `Store` is a folder given by its URI; every path is relative to it, with `/` between its parts. A `Store` can be
pickled and opened again on another machine. On a file system a write is whole or absent (by rename); an object store
may keep half an object, so what must not be half there is committed by a manifest that names its size and hash.

A write is durable when it returns: a power cut after it neither loses it nor leaves it empty. Only what is written
often, and is found damaged and made again, or is only there to be looked at, asks for `durable=False`.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

import errno
import os
import shutil
import stat
import threading
import time
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.fs as pafs

from cluster.core.auth import expanded
from cluster.core.errors import StorageError, StorageFullError
from cluster.core.hub import hub_files, is_hub, open_hub, without_commit
from cluster.core.tls_remedy import tls_remedy
from cluster.core.walk import walk

_moved_at: dict[int, float] = {}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
_DENIED = {errno.EACCES, errno.EPERM}


def moved() -> None:
    """This thread got on with reading or writing: a piece of a file, or any answer at all."""
    _moved_at[threading.get_ident()] = time.monotonic()


def moved_at(thread: int) -> float:
    """When a thread of this process last did so, by time.monotonic(); 0 if it never did. Whoever waits for it asks."""
    return _moved_at.get(thread, 0.0)


@dataclass(frozen=True)
class FileInfo:
    """One stored file: its path relative to the store, its size in bytes, and when it was last written (seconds)."""

    path: str
    size: int
    mtime: float
    digest: str = ""
    """A hash of its content, where the storage has one."""


@dataclass(frozen=True)
class Store:
    """A folder on some storage. `uri` is what the user wrote: a path, `file://`, `s3://`, `gs://` or `hf://`."""

    uri: str
    _fs: pafs.FileSystem = field(default=None, compare=False, repr=False)
    _root: str = field(default="", compare=False, repr=False)

    @staticmethod
    def open(uri: str) -> "Store":
        """Touches nothing. Raises: StorageError for a scheme that is unknown, ConfigError for `~` without a home,
        DataError for what names no dataset of the Hub."""
        if "://" not in uri:
            return Store(uri, pafs.LocalFileSystem(), os.path.abspath(expanded(uri)))  # noqa: PTH100
        if is_hub(uri):
            return Store(uri, *open_hub(uri))
        try:
            fs, root = pafs.FileSystem.from_uri(uri)
        except (pa.ArrowInvalid, OSError) as error:
            remedy = "use a folder, s3://BUCKET/… or gs://…"
            raise StorageError(f"storage {uri!r} cannot be opened ({error}): {remedy}") from error
        local = isinstance(fs, pafs.LocalFileSystem)
        if not root.strip("/") and not local:
            raise StorageError(f"storage {uri!r} names no bucket: use s3://BUCKET/… or gs://BUCKET/…")
        return Store(uri, fs, os.path.abspath(root) if local else root.rstrip("/"))  # noqa: PTH100

    def __reduce__(self) -> tuple[Callable[[str], "Store"], tuple[str]]:
        return Store.open, (self.uri,)

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of a file system (local or shared), not an object store."""
        return isinstance(self._fs, pafs.LocalFileSystem)

    def child(self, path: str) -> "Store":
        """The store of a sub-folder."""
        return Store.open(self._below(path))

    def location(self, path: str = "") -> str:
        """What to show a person or give another tool: an absolute path or a URI."""
        if not self.is_local:
            return self._below(path) if path else self.uri.rstrip("/")
        return f"{self._root}/{path}" if path else self._root

    def identity(self, path: str) -> str:
        """What a file is known by: its location, whatever the commit is that it is read at."""
        return without_commit(self.location(path))

    def local_path(self, path: str = "") -> Path:
        """Raises: StorageError on an object store, where files have no local path."""
        if not self.is_local:
            raise StorageError(f"{self.uri} is not a folder of this machine")
        return Path(self._absolute(path))

    def read_bytes(self, path: str) -> bytes:
        """Raises: FileNotFoundError."""
        with self.reading(path) as stream:
            return cast(bytes, stream.read())

    def read_text(self, path: str) -> str:
        return self.read_bytes(path).decode()

    @contextmanager
    def reading(self, path: str) -> Generator[Any]:
        """An open, seekable pyarrow NativeFile. Raises: FileNotFoundError, StorageError if it is a pipe or a device."""
        self._refuse_special(path)
        with self._fs.open_input_file(self._absolute(path)) as stream:
            moved()
            yield stream
        moved()

    def write_bytes(self, path: str, data: bytes, *, durable: bool = True) -> None:
        """Whole or not at all. Raises: StorageFullError, StorageError."""
        with self.writing(path, durable=durable) as stream:
            stream.write(data)

    def write_text(self, path: str, text: str, *, durable: bool = True) -> None:
        self.write_bytes(path, text.encode(), durable=durable)

    @contextmanager
    def writing(self, path: str, *, durable: bool = True) -> Generator[IO[bytes]]:
        """An open pyarrow output stream; the file appears under its name when the block ends without an error.

        durable: whether it has reached the disk before it appears, and its name before this returns.
        Raises: StorageFullError if the storage is full or was made read-only, StorageError if it may not be written.
        """
        target = self._absolute(path)
        partial = f"{target}.{uuid.uuid4().hex[:8]}.partial" if self.is_local else target
        try:
            if self.is_local:
                make_folder(Path(partial).parent)
            with self._fs.open_output_stream(partial) as stream:
                yield stream
            if self.is_local:
                _replace(Path(partial), Path(target), durable=durable)
            moved()
        except OSError as error:
            self._forget(partial)
            raise self.explain(error, path) from error
        except BaseException:
            self._forget(partial)
            raise

    def files(self, path: str = "", *, recursive: bool = True, unfinished: bool = False) -> list[FileInfo]:
        """The files below a folder, sorted by path; none if the folder is not there.

        unfinished: also those whose names end in `.partial`, which a write that was cut off leaves. On a file system
        links are followed, and each real folder is listed once (cluster/core/walk.py).
        """
        prefix = len(self._root.rstrip("/") + "/")
        if self.is_local:
            walked = walk(f"/{self._absolute(path).lstrip('/')}", recursive=recursive)
            files = [FileInfo(name[prefix:], about.st_size, about.st_mtime_ns / 1e9) for name, about in walked]
        elif is_hub(self.uri):
            files = [FileInfo(name[prefix:], size, 0.0, digest)
                     for name, size, digest in hub_files(self._fs, self._absolute(path), recursive=recursive)]
        else:
            selector = pafs.FileSelector(self._absolute(path), recursive=recursive, allow_not_found=True)
            found = [info for info in self._fs.get_file_info(selector) if info.type == pafs.FileType.File]
            files = [FileInfo(info.path[prefix:], info.size or 0, (info.mtime_ns or 0) / 1e9) for info in found]
        moved()
        return sorted((file for file in files if unfinished or not file.path.endswith(".partial")),
                      key=lambda file: file.path)

    def folders(self, path: str = "") -> list[str]:
        """The names of the direct sub-folders, sorted."""
        selector = pafs.FileSelector(self._absolute(path), recursive=False, allow_not_found=True)
        return sorted(i.base_name for i in self._fs.get_file_info(selector) if i.type == pafs.FileType.Directory)

    def exists(self, path: str) -> bool:
        return self._fs.get_file_info(self._absolute(path)).type == pafs.FileType.File

    def delete(self, path: str) -> None:
        """A file; nothing if it is not there."""
        if self.exists(path):
            self._fs.delete_file(self._absolute(path))
            moved()

    def delete_folder(self, path: str) -> None:
        """A folder and all below it; nothing if it is not there."""
        if self._fs.get_file_info(self._absolute(path)).type == pafs.FileType.Directory:
            self._fs.delete_dir(self._absolute(path))
            moved()

    def room(self) -> tuple[int, int] | None:
        """Bytes that are free, and all; None where nobody knows: of an object store, or before the folder is there."""
        if not self.is_local:
            return None
        try:
            usage = shutil.disk_usage(self._root)
        except OSError:
            return None
        return usage.free, usage.total

    def make_durable(self, path: str) -> None:
        """Returns once a file that something else has written, and its name, have reached the disk; object stores see
        to it themselves. Raises: StorageFullError, StorageError."""
        if not self.is_local:
            return
        try:
            for place in (self.local_path(path), self.local_path(path).parent):
                _sync(place)
        except OSError as error:
            raise self.explain(error, path) from error

    def copy_to(self, other: "Store", path: str, to: str) -> None:
        """Streams one file to another store, in pieces of 8 MiB."""
        with self.reading(path) as source, other.writing(to) as sink:
            while piece := source.read(8 << 20):
                sink.write(piece)
                moved()

    def _below(self, path: str) -> str:
        """The URI of what lies below; options of pyarrow's (`s3://BUCKET/…?endpoint_override=HOST`) stay at its end."""
        base, mark, options = self.uri.partition("?" if "://" in self.uri else "\0")
        return f"{base.rstrip('/')}/{path}{mark}{options}"

    def _absolute(self, path: str) -> str:
        if ".." in path.split("/"):
            raise StorageError(f"path {path!r} leaves its folder {self.uri}: it may not contain '..'")
        return f"{self._root}/{path}".rstrip("/") if path else self._root

    def _refuse_special(self, path: str) -> None:
        """Opening a pipe would wait for its writer, reading some devices would never end."""
        if not self.is_local:
            return
        kind = stat.S_IFMT(os.stat(self._absolute(path)).st_mode)  # noqa: PTH116
        if kind not in (stat.S_IFREG, stat.S_IFDIR):
            raise StorageError(f"{self.location(path)} is not a file, but a pipe, a socket or a device: put the file "
                               "there again")

    def _forget(self, partial: str) -> None:
        if self.is_local:
            with suppress(OSError):  # on storage that has become read-only it stays; it is never listed
                Path(partial).unlink(missing_ok=True)

    def explain(self, error: OSError, path: str) -> Exception:
        """The error to raise for one met while writing a file:
        StorageFullError or StorageError where it is one of those."""
        if error.errno in _FULL:
            why = "read-only" if error.errno == errno.EROFS else "full"
            remedy = "make room or make it writable, then run the same command again"
            return StorageFullError(f"storage {self.location()} is {why}, {path} was not written: {remedy}")
        if error.errno in _DENIED or not self.is_local:
            remedy = tls_remedy(error) or "check its address and permissions"
            return StorageError(f"storage {self.location()} cannot be written ({error}): {remedy}")
        return error


def make_folder(path: Path) -> None:
    """Makes a folder and those above it where they are missing;
    the names of new ones have reached the disk when it returns."""
    if path.is_dir():
        return
    missing = [place for place in (path, *path.parents) if not place.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for place in missing:
        _sync(place.parent)


def _replace(partial: Path, target: Path, *, durable: bool) -> None:
    if durable:
        _sync(partial)  # first: else the power may be cut when the name is there and the content is not
    partial.replace(target)
    if durable:
        _sync(target.parent)


def _sync(place: Path) -> None:
    try:
        descriptor = os.open(place, os.O_RDONLY)
    except PermissionError:
        return  # a folder above the storage that may be passed through and not read
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems do not sync folders
            raise
    finally:
        os.close(descriptor)
