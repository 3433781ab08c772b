"""What somebody has who installed Trainyard, and keeps a job of their own in a folder: see `fixtures/own_job`."""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests import newcomer

NAME = "my_package.churn"
_EXAMPLE = Path(__file__).parent / "fixtures/own_job"


@dataclass(frozen=True)
class Place:
    """installed: where Trainyard's wheel is unpacked; what it needs is this environment's. folder: holds the job."""

    installed: Path
    folder: Path

    @property
    def env(self) -> dict[str, str]:
        return {"PYTHONPATH": str(self.installed), "PYTHONDONTWRITEBYTECODE": "1"}


def make(target: Path) -> Place:
    """Builds and installs the wheel. Nothing is downloaded."""
    place = Place(installed=target / "installed", folder=target / "mine")
    tree = newcomer.clone(target / "tree")
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
                    "--no-build-isolation", "--no-compile", "--target", str(place.installed), str(tree)], check=True)
    shutil.rmtree(tree)
    shutil.copytree(_EXAMPLE, place.folder, ignore=shutil.ignore_patterns("__pycache__"))
    return place
