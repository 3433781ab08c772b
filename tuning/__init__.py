"""Searches over any job: `python -m tuning JOB`."""

from pathlib import Path
from runpy import run_path

run_path(str(Path(__file__).parents[1] / "cluster/core/shadows.py"))["check"]()  # by its path: cluster may be hidden
