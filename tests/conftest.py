"""What every run of the tests says first."""

import datetime
from pathlib import Path

import yaml


def pytest_report_header() -> str:
    date = yaml.safe_load((Path(__file__).parent / "advisories.yaml").read_text())["date"]
    days = (datetime.datetime.now(tz=datetime.UTC).date() - date).days
    return f"advisories: the lock is held against a list of {date}, {days} days old"
