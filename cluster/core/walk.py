"""Lists the files of a local folder. Links to folders are followed, and each real folder is listed once.

So links that form a loop end the listing instead of repeating what is there until the operating system gives up, and
data that two names lead to is not taken twice.
"""

import errno
import os
import stat
from collections.abc import Generator
from contextlib import contextmanager


def walk(folder: str, *, recursive: bool = True) -> Generator[tuple[str, os.stat_result]]:
    """Yields (path, stat) of every file; none if the folder is not there. What vanishes meanwhile is left out.

    A folder that is in the tree by itself is listed there, and not where a link leads to it. Raises: OSError.
    """
    seen: set[tuple[int, int]] = set()
    folders, links = [folder], list[str]()
    while folders or links:
        current = folders.pop() if folders else links.pop(0)
        for entry in _entries(current, seen):
            with _if_there():
                about = entry.stat()
                if not stat.S_ISDIR(about.st_mode):
                    if stat.S_ISREG(about.st_mode):
                        yield entry.path, about
                elif recursive:
                    (links if entry.is_symlink() else folders).append(entry.path)


def _entries(folder: str, seen: set[tuple[int, int]]) -> list["os.DirEntry[str]"]:
    """What is in a folder, by name; nothing if it has been seen under another one."""
    with _if_there():
        about = os.stat(folder)  # noqa: PTH116
        if (about.st_dev, about.st_ino) not in seen:
            seen.add((about.st_dev, about.st_ino))
            with os.scandir(folder) as entries:
                return sorted(entries, key=lambda entry: entry.name)
    return []


@contextmanager
def _if_there() -> Generator[None]:
    """Passes over what is not there: deleted meanwhile, a link to nothing, a link to itself."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP):
            raise
