"""The lock of a run: one driver of a file system is at it at a time. On an object store Ray's named actor alone sees to
that."""

import fcntl
import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from cluster.core.errors import RunConflictError, StorageError
from cluster.core.storage import Store


@contextmanager
def locked(storage: Store, name: str) -> Generator[None]:
    """Keeps other processes away from the run of this name.

    Raises: RunConflictError if another one is at it; StorageError if the folder cannot be written.
    """
    if not storage.is_local:
        yield
        return
    path = lock_file(storage, name)
    made = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    with _taken(path):
        try:
            yield
        finally:
            _forget(path, made)


def lock_file(storage: Store, name: str) -> Path:
    """It is there as long as a driver is at the run."""
    return storage.local_path(f".locks/{name}")


def is_locked(storage: Store, name: str) -> bool:
    """Whether a driver of this file system is at the run. Writes nothing."""
    try:
        with lock_file(storage, name).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@contextmanager
def _taken(path: Path) -> Generator[None]:
    """Holds the lock at a path. The last holder deleted its file: one that is not there any more locks nobody out."""
    while True:
        with _open_lock(path) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunConflictError(
                    f"run {path.name!r} in {path.parent.parent} is being carried out by another process: wait for its "
                    "end, stop it, or pass another --run.name"
                ) from error
            if os.fstat(file.fileno()).st_nlink:
                yield
                return


def _open_lock(path: Path) -> IO[str]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("w")
    except OSError as error:
        raise StorageError(
            f"storage {path.parent.parent} cannot be written ({error.strerror}): make it writable, or pass another "
            "--run.storage"
        ) from error


def _forget(path: Path, made: Sequence[Path]) -> None:
    """Deletes the lock's file while it is held, and the folders that were made for it and hold nothing else."""
    with suppress(OSError):
        path.unlink()
        for folder in made:
            folder.rmdir()
