"""Which tests go together to one process of pytest-xdist: those that share fixtures."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.parent
        item.add_marker(pytest.mark.xdist_group(folder.name if folder.name == "serving" else f"{folder.name}/{item.path.stem}"))
