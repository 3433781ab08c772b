"""The command `trainyard`, and what a program of yours imports: `import trainyard as ty`, `ty.train` and `ty.load`."""

from pathlib import Path
from runpy import run_path

run_path(str(Path(__file__).parents[1] / "cluster/core/shadows.py"))["check"]()  # by its path: cluster may be hidden

from trainyard.api import Run, load, train  # noqa: E402  after what other packages of these names would hide

__all__ = ["Run", "load", "train"]
