"""`--scale.offload nvme`: where DeepSpeed swaps the optimiser's state to, and what this machine needs for that."""
# pyright: reportMissingTypeStubs=false

import fcntl
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO

from cluster.core.auth import expanded
from cluster.core.errors import ConfigError
from jobs.transformer.strategies.internals import file_access_compiles

_PREFIX, _LOCK = "trainyard-swap-", "lock"


class SwapFolder:
    """A worker's own folder below `--scale.offload-path`, for as long as the object is open: DeepSpeed's own names in
    it are those of ranks, the same for every run on the machine. What killed workers left there is removed."""

    def __init__(self, offload_path: str) -> None:
        """Raises: ConfigError if it cannot be written."""
        above = expanded(offload_path)
        try:
            above.mkdir(parents=True, exist_ok=True)
            for folder in above.glob(f"{_PREFIX}*"):
                _remove_if_left(folder)
            made = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}", dir=above))  # under its own name only once it is locked
            self._lock: IO[str] = (made / _LOCK).open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            self.path = made.rename(above / made.name.removeprefix("."))
        except OSError as error:
            raise ConfigError(f"--scale.offload-path {offload_path}: cannot be written ({error.strerror}): name a "
                              "folder on each worker's own disk") from error

    def close(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def _remove_if_left(folder: Path) -> None:
    """A folder whose owner is gone: the kernel has let go of its lock. What is in use, or another user's, stays."""
    with suppress(OSError), (folder / _LOCK).open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)


def require_compiler() -> None:
    """DeepSpeed compiles its file access on the worker. Raises: ConfigError that names what is missing for it."""
    from torch.utils import cpp_extension

    needed: dict[str, bool] = {"g++": shutil.which("g++") is not None,
                               "ninja-build": cpp_extension.is_ninja_available(),
              "libaio-dev": file_access_compiles()}
    if missing := [name for name, there in needed.items() if not there]:
        raise ConfigError("--scale.offload nvme: DeepSpeed compiles its access to files on the worker, and this "
                          f"worker's machine lacks {', '.join(missing)}: install that there (apt-get install "
                          f"{' '.join(missing)}), or pass --scale.offload cpu")
