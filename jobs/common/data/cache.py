"""The node-local cache of prepared blocks: Arrow IPC files, memory-mapped, shared by all processes of a node.

A block is fetched from storage when it is first asked for, and the least recently used ones make room for it. Room is
counted before a file is written, and a file is written whole under a name of its own and then renamed, both under a
file lock: so the cache is never over its cap, and nobody reads a torn file. Each file ends with a checksum of what
comes before; a damaged one is dropped and fetched again. It is checked when a process reads it first, and then
where another one has used it or written to it since: checking takes longer than copying its rows.
A block that is dropped while mapped stays readable until let go.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import contextlib
import errno
import fcntl
import logging
import mmap
import os
import stat
import struct
import tempfile
import time
import zlib
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster.core.auth import expanded
from cluster.core.errors import ConfigError, StorageError, StorageFullError
from jobs.common.data.arrow import RecordBatch

_TRAILER = struct.Struct("<4sI")
_MAGIC = b"TYB1"
_PAGE = 4096
_BOOKKEEPING_BYTES = 2 * _PAGE
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BlockCache:
    """A folder of this node that holds at most `cap_bytes`. Any number of processes and runs may share it."""

    folder: Path
    cap_bytes: int
    _checked: dict[str, tuple[int, int]] = field(default_factory=dict, compare=False, repr=False)
    """By name, each block that this process has checked: its inode, and when it was last used."""

    @staticmethod
    def open(cache_dir: str | None, cache_gb: float) -> "BlockCache":
        """The cache that a config asks for (`data.cache_dir`, `data.cache_gb`). Raises: StorageError."""
        folder = expanded(cache_dir) if cache_dir else _default_folder()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cache folder {folder} cannot be made ({error.strerror}): name another with "
                               "--data.cache-dir") from error
        if not cache_dir:
            _require_private(folder)
        return BlockCache(folder, int(cache_gb * 1e9))

    def get(self, name: str, fetch: Callable[[], RecordBatch]) -> RecordBatch:
        """The record batch called `name` (a plain file name), memory-mapped; `fetch()` gives it where it is not here.

        Raises: ConfigError if one block is larger than the cap, StorageError or StorageFullError if it cannot be kept.
        """
        batch = self._read(name)
        if batch is None:
            fetched = fetch()
            self._keep(name, fetched)
            batch = self._read(name) or fetched  # others may have pushed it out already
        return batch

    def ensure(self, name: str, fetch: Callable[[], RecordBatch]) -> None:
        """As `get`, without reading what is already here."""
        if not (self.folder / name).exists():
            self._keep(name, fetch())

    def _read(self, name: str) -> RecordBatch | None:
        path = self.folder / name
        try:
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                info, now = os.fstat(file.fileno()), time.time_ns()
                os.utime(file.fileno(), ns=(now, now))
        except FileNotFoundError:
            return None
        except ValueError:  # an empty file cannot be mapped
            return self._drop(path)
        buffer = pa.py_buffer(mapped)
        body = buffer.slice(0, max(0, buffer.size - _TRAILER.size))
        if self._checked.get(name) != (info.st_ino, info.st_mtime_ns) and not _is_whole(buffer, body):
            return self._drop(path)
        self._checked[name] = info.st_ino, now
        return pa.ipc.open_file(pa.BufferReader(body)).get_batch(0)

    def _drop(self, path: Path) -> None:
        _log.warning("cached block %s is damaged: it is fetched again", path)
        path.unlink(missing_ok=True)

    def _keep(self, name: str, batch: RecordBatch) -> None:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
        body = sink.getvalue()
        need = _on_disk(body.size + _TRAILER.size)
        if need + _BOOKKEEPING_BYTES > self.cap_bytes:
            raise ConfigError(f"--data.cache-gb {self.cap_bytes / 1e9:g}: one block of the data takes {need / 1e9:.4g} "
                              f"GB: use at least {4 * need / 1e9:.2g}")
        try:
            with self._locked():
                if not (self.folder / name).exists():
                    self._make_room(need)
                    self._write(name, body)
        except OSError as error:
            raise self._explain(error) from error

    def _write(self, name: str, body: Any) -> None:
        partial = self.folder / f"{name}.partial"
        with partial.open("wb") as file:
            file.write(body)
            file.write(_TRAILER.pack(_MAGIC, zlib.crc32(body)))
        partial.rename(self.folder / name)

    def _make_room(self, need: int) -> None:
        """Counts `need` bytes in, before they are written; the count may run ahead of the truth, never behind it."""
        room = self.cap_bytes - _BOOKKEEPING_BYTES
        used = self._recorded_use()
        if used is None or used + need > room:
            used = self._evict(room - max(need, room // 20))
        (self.folder / ".used").write_text(str(used + need))

    def _recorded_use(self) -> int | None:
        try:
            return int((self.folder / ".used").read_text())
        except (FileNotFoundError, ValueError):
            return None

    def _evict(self, limit: int) -> int:
        """Removes the least recently used blocks until at most `limit` bytes are left; returns what is left."""
        entries: list[tuple[int, int, str]] = []
        for entry in os.scandir(self.folder):
            with contextlib.suppress(FileNotFoundError):
                if entry.name.endswith(".partial"):  # a writer died: whoever writes holds the lock, and we do
                    Path(entry.path).unlink()
                elif entry.name.endswith(".arrow"):
                    info = entry.stat()
                    entries.append((info.st_mtime_ns, _on_disk(info.st_size), entry.path))
        left = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if left <= limit:
                break
            Path(path).unlink(missing_ok=True)
            left -= size
        return left

    @contextlib.contextmanager
    def _locked(self) -> Generator[None]:
        with (self.folder / ".lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _explain(self, error: OSError) -> Exception:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            return StorageFullError(f"cache folder {self.folder} is full or read-only: make room, lower "
                                    "--data.cache-gb or name another with --data.cache-dir, then run the same command "
                                    "again")
        return StorageError(f"cache folder {self.folder} cannot be written ({error.strerror}): name another with "
                            "--data.cache-dir")


def _is_whole(buffer: Any, body: Any) -> bool:
    """Whether a file ends with the checksum of its body."""
    return buffer.size >= _TRAILER.size and bytes(buffer[body.size:]) == _TRAILER.pack(_MAGIC, zlib.crc32(body))


def _default_folder() -> Path:
    return Path(tempfile.gettempdir()) / f"trainyard-cache-{os.getuid()}"


def _require_private(folder: Path) -> None:
    """In a folder that everyone can write to, someone else may have made it first."""
    info = folder.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid() or info.st_mode & 0o077:
        raise StorageError(f"cache folder {folder} is not a private folder of this user (mode 0700): remove it, or "
                           "name another with --data.cache-dir")


def _on_disk(size: int) -> int:
    return -(-size // _PAGE) * _PAGE
