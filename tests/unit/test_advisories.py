"""The versions of lock.txt against the dated list of advisories beside the tests."""

import datetime
import importlib.metadata
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).parents[2]
LIST = yaml.safe_load((ROOT / "tests/advisories.yaml").read_text())
LEAST_PIP = Version("26.2.2")
"""GHSA-6q48-6c7w-9gw2. Pip is not in the lock: the Makefile asks for it."""


def _locked() -> dict[str, Version]:
    lines = [line.split("==") for line in (ROOT / "lock.txt").read_text().splitlines() if "==" in line]
    return {name: Version(version) for name, version in lines}


@pytest.mark.parametrize("advisory", LIST["advisories"], ids=lambda each: each["id"])
def test_the_lock_is_not_affected_or_a_test_shows_what_holds_it_off(advisory: dict[str, Any]) -> None:
    version = _locked()[advisory["package"]]
    if not SpecifierSet(advisory["affected"]).contains(version, prereleases=True):
        return
    if "held_off_by" not in advisory:
        assert advisory.get("why"), (
            f"{advisory['package']} {version} is affected by {advisory['id']}: {advisory['what']}")
        return
    file, _, name = advisory["held_off_by"].partition("::")
    assert re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.MULTILINE)


def test_each_package_of_the_list_is_locked_and_the_list_is_not_from_the_future() -> None:
    assert {each["package"] for each in LIST["advisories"]} <= set(_locked())
    assert LIST["date"] <= datetime.datetime.now(tz=datetime.UTC).date()


def test_the_environment_was_made_with_a_pip_that_is_not_affected() -> None:
    asked = re.search(r"'pip>=([\d.]+)'", (ROOT / "Makefile").read_text())
    assert asked and Version(asked[1]) >= LEAST_PIP
    assert Version(importlib.metadata.version("pip")) >= LEAST_PIP
