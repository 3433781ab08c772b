"""Writes one large file that a later manifest commits: straight to the disk where it is local,
streamed to an object store.

Local files pass by the page cache (O_DIRECT): measured on ext4, 720 MB cost 0.01 s of CPU time that way, 0.2 to 1.7 s
through the cache; that time is taken from the training step.
File systems that cannot do it (some network ones) get plain writes.
"""

import errno
import fcntl
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress

from cluster.core.storage import Store, make_folder

_O_DIRECT = getattr(os, "O_DIRECT", 0)  # Linux only
_BLOCK_BYTES = 4096
_DIRECT_FROM_BYTES = 1 << 20

Write = Callable[[memoryview], object]


@contextmanager
def writing(store: Store, path: str, size: int) -> Generator[Write]:
    """A function that appends to the file, of `size` bytes in all;
    when the block ends without an error, the file is durable.

    Each piece but the last must be a multiple of 4096 bytes at such an address, or it is copied once more by the
    system. Raises: StorageFullError, StorageError. After an error the file is gone.
    """
    if not store.is_local:
        with store.writing(path) as stream:
            yield stream.write
        return
    try:
        with _LocalFile(store, path, direct=size >= _DIRECT_FROM_BYTES) as file:
            yield file.write
        store.make_durable(path)
    except BaseException as error:
        with suppress(OSError):
            store.local_path(path).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise store.explain(error, path) from error
        raise


class _LocalFile:
    def __init__(self, store: Store, path: str, *, direct: bool) -> None:
        target = store.local_path(path)
        make_folder(target.parent)
        flags = os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC
        self._direct = direct and bool(_O_DIRECT)
        try:
            self._descriptor = os.open(target, flags | (_O_DIRECT if self._direct else 0), 0o644)
        except OSError as error:
            if not self._direct or error.errno != errno.EINVAL:
                raise
            self._direct = False
            self._descriptor = os.open(target, flags, 0o644)

    def __enter__(self) -> "_LocalFile":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def write(self, piece: memoryview) -> None:
        while piece:
            if len(piece) % _BLOCK_BYTES:
                self._through_cache()
            try:
                written = os.write(self._descriptor, piece)
            except OSError as error:
                if not self._direct or error.errno != errno.EINVAL:
                    raise
                self._through_cache()
                continue
            piece = piece[written:]

    def _through_cache(self) -> None:
        if self._direct:
            flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags & ~_O_DIRECT)
            self._direct = False
