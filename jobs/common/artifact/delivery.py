"""A file or a folder for other programs that appears whole under its name, or not at all."""

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from cluster.core.errors import ConfigError, StorageError
from cluster.core.storage import Store, make_folder


@contextmanager
def delivered(out: str, *, overwrite: bool, mark: str | None) -> Generator[Path]:
    """A path to write to, which becomes `out` when the block ends without an error; else nothing of it is left.

    mark: the file by which a folder of the same kind is known, since no other one is replaced; None: `out` is a file.
    Raises: ConfigError for a place that is taken or is not of this machine, StorageError.
    """
    if "://" in out and not out.startswith("file://"):
        raise ConfigError(f"--out {out} is not on this machine: name a path here, and copy from there")
    target = Store.open(out).local_path()
    _check_free(target, overwrite, mark)
    try:
        make_folder(target.parent)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as place:
            draft = Path(place, target.name)
            yield draft
            if target.is_dir():
                target.rename(Path(place, "before"))
            draft.replace(target)
    except OSError as error:
        raise StorageError(f"--out {target} cannot be written ({error.strerror or error}): name a place that "
                           "can be") from error


def _check_free(target: Path, overwrite: bool, mark: str | None) -> None:
    if not target.exists():
        return
    if mark is None and target.is_dir():
        raise ConfigError(f"--out {target} is a folder: name a file")
    if mark is not None and (target.is_file() or (any(target.iterdir()) and not (target / mark).is_file())):
        raise ConfigError(f"--out {target} is something else, which is left as it is: name a new folder")
    if not overwrite and (mark is None or any(target.iterdir())):
        raise ConfigError(f"--out {target} is there already: pass --overwrite, or another --out")
