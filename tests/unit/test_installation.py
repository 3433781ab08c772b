"""What is installed: the lock holds every dependency, and CI goes on where Debian packages cannot be installed."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NAMED = [Requirement(text) for texts in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
         for text in texts]


def locked() -> dict[str, str]:
    lines = [line.partition("#")[0].strip() for line in (ROOT / "lock.txt").read_text().splitlines()]
    pins = [re.fullmatch(r"([\w.-]+)==([^\s;]+)(\s*;.*)?", line) for line in lines if line]
    assert all(pins), "every line of the lock is NAME==VERSION"
    return {canonicalize_name(pin[1]): pin[2] for pin in pins if pin}


@pytest.mark.parametrize("wanted", NAMED, ids=str)
def test_the_lock_pins_a_version_that_the_project_accepts(wanted: Requirement) -> None:
    assert wanted.specifier.contains(locked()[canonicalize_name(wanted.name)], prereleases=True)


def test_ci_goes_on_where_debian_packages_cannot_be_installed(tmp_path: Path) -> None:
    for name, script in {"dpkg-query": "exit 1", "apt-get": "exit 100", "id": "echo 0"}.items():
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    done = subprocess.run([ROOT / ".ci/debian-packages"], capture_output=True, text=True, check=False,
                          env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert done.returncode == 0
    assert "not installed (apt-get failed), tests that want them will skip: chromium" in done.stdout
