"""Copies on this machine of models in object stores: one for all processes that use it, gone with the last of them.

Each process holds a shared lock on `DIGEST.lock` until it ends. Who can lock it alone removes the copy: a process that
ends, or the next one that copies a model, where those before were killed.
"""

import atexit
import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import IO

from jobs.common.artifact.artifact import Artifact, open_artifact


def copy_of(found: Artifact) -> Artifact:
    """For as long as this process runs. Raises: ArtifactError, StorageError."""
    above = Path(tempfile.gettempdir(), f"trainyard-models-{os.getuid()}")
    above.mkdir(mode=0o700, parents=True, exist_ok=True)
    for lock in above.glob("*.lock"):
        with lock.open("w") as file:
            _remove_if_left(above, lock.stem, file)
    kept, held = above / found.digest, (above / f"{found.digest}.lock").open("w")
    fcntl.flock(held, fcntl.LOCK_SH)
    atexit.register(_leave, kept, held, os.getpid())
    if not kept.exists():
        draft = tempfile.mkdtemp(prefix=f"{found.digest}-", dir=above)
        found.copy_to(draft)
        try:
            Path(draft).rename(kept)
        except OSError:  # another process was quicker
            shutil.rmtree(draft)
    return open_artifact(kept, found.digest)


def _leave(kept: Path, held: IO[str], process: int) -> None:
    """process: that holds the lock; one that it has forked has the same, and leaves it alone."""
    if os.getpid() == process:
        _remove_if_left(kept.parent, kept.name, held)
        held.close()


def _remove_if_left(above: Path, digest: str, lock: IO[str]) -> None:
    """Removes copies that no process uses, and what was never copied whole. The lock's file stays."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    for folder in above.glob(f"{digest}*/"):
        shutil.rmtree(folder, ignore_errors=True)
