"""What every run of the tests says first and last, and in which order they run: `--shuffle SEED` for a random one."""

import datetime
import random
import signal
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml

TOGETHER = {"tests/integration/serving": "serving", "tests/faults/test_ray.py": "cnn",
            "tests/faults/test_cnn_faults.py": "cnn"}
"""What one process runs where several share the tests: it has an endpoint, or a reference run, in common."""
LONGEST = ("tests/faults/test_hosts.py", "serving", "tests/integration/test_tune.py", "cnn",
           "tests/unit/test_strategies.py",
           "tests/unit/test_weight_digest.py", "tests/unit/test_cnn.py", "tests/unit/test_mlp.py")
"""They begin first, so that none is left to one process at the end."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shuffle", type=int, metavar="SEED", help="run folders, files and their tests in a random order")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers",
                            "in_order: builds on what the file's other tests did; runs after those without, in order")
    # a shell that runs this in the background says so to all that it starts
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what tests have started ends with them


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Orders the tests. What a folder or a file makes once is still made once."""
    if (seed := config.getoption("shuffle")) is not None:
        shuffle(items, random.Random(seed))
    if hasattr(config, "workerinput"):  # a process of xdist's
        items.sort(key=lambda item: LONGEST.index(name) if (name := group(item.nodeid)) in LONGEST else len(LONGEST))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Makes `--dist loadfile` keep groups together.
    xdist 3.8 has `loadgroup`, which pytest 9.2 leaves without effect."""
    from xdist.scheduler import LoadFileScheduling

    class ByGroup(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group(nodeid)

    return ByGroup(config, log) if config.getoption("dist") == "loadfile" else None


def shuffle(items: list[pytest.Item], chance: random.Random) -> None:
    drawn = {place: chance.random() for item in items for place in (item.path.parent, item.path)}

    def place(item: pytest.Item) -> tuple[float, float, float]:
        own = 1.0 if item.get_closest_marker("in_order") else chance.random()
        return drawn[item.path.parent], drawn[item.path], own

    items.sort(key=place)


def group(nodeid: str) -> str:
    file = nodeid.partition("::")[0]
    return TOGETHER.get(file) or TOGETHER.get(file.rpartition("/")[0]) or file


def pytest_report_header() -> str:
    date = yaml.safe_load((Path(__file__).parent / "advisories.yaml").read_text())["date"]
    days = (datetime.datetime.now(tz=datetime.UTC).date() - date).days
    return f"advisories: the lock is held against a list of {date}, {days} days old"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says the minutes of each folder: of setups, tests and teardowns, of all processes together."""
    seconds = defaultdict[str, float](float)
    reports = [report for found in terminalreporter.stats.values() for report in found]
    for report in reports:
        if isinstance(report, pytest.TestReport):
            seconds[str(Path(report.nodeid.partition("::")[0]).parent)] += report.duration
    if sum(seconds.values()) > 60:
        shown = (f"{folder} {spent / 60:.1f}" for folder, spent in sorted(seconds.items()))
        terminalreporter.write_line(f"minutes: {', '.join(shown)}")
