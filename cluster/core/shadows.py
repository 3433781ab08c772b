"""Folders of a user's own that Python would take for Trainyard's packages,
since they have the same name and come first.

A folder without an __init__.py, such as `~/trainyard` with its runs, hides nothing:
Python goes on to a package that has one.

Each of these packages calls `check` when it is imported: by its path, as this package may itself be the one that is
hidden.
"""

import os
import sys
from collections.abc import Iterable
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path

OURS = Path(__file__).parents[2]
PACKAGES = ("cluster", "jobs", "serving", "trainyard", "tuning")
_MARK = "jobs/common/config.py"
"""What a folder has that holds Trainyard itself."""


def check() -> None:
    """Ends `python -m` with exit code 2 and one message if a package is hidden. Raises: ImportError elsewhere."""
    # an editable install's finder comes after Python's own, for which such a folder would do
    if str(OURS) not in sys.path:
        sys.path.append(str(OURS))
    if (found := _message(find_spec(name) for name in PACKAGES)) is None:
        return
    if sys.argv[:1] == ["-m"]:  # Python still looks for the module that it is to run
        print(f"error: {found}", file=sys.stderr)
        raise SystemExit(2)
    raise ImportError(found)


def found_in(folder: Path) -> str | None:
    """The message for a folder in which a job is to run; None where it hides nothing, or holds Trainyard itself."""
    if (folder / _MARK).is_file():
        return None
    return _message(PathFinder.find_spec(name, [str(folder), str(OURS)]) for name in PACKAGES)


def _message(specs: Iterable[ModuleSpec | None]) -> str | None:
    places = [_place(spec) for spec in specs if spec is not None]
    hiding = [place for place in places if os.path.realpath(place) != os.path.realpath(OURS / place.stem)]
    if not hiding:
        return None
    named, names = ", ".join(map(str, hiding)), ", ".join(place.stem for place in hiding)
    return (f"{named}: Python takes it for Trainyard's own {names} (in {OURS}): rename it, or work in a folder that "
            "has none")


def _place(spec: ModuleSpec) -> Path:
    """The folder of a package, or the file of a module."""
    return Path(next(iter(spec.submodule_search_locations or [spec.origin or ""])))
