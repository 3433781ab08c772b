"""The command `trainyard`, and the names that a job of yours imports."""

from pathlib import Path
from runpy import run_path

run_path(str(Path(__file__).parents[1] / "cluster/core/shadows.py"))["check"]()  # by its path: cluster may be hidden
