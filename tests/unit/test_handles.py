"""serving/endpoint/handles.py: an ingress whose versions change for months does not keep those that are gone."""

import asyncio
from typing import Any

import pytest

# Ray Serve's, of Pydantic
pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field` is deprecated")


class FakeApplication:
    def __init__(self, name: str) -> None:
        self.name, self.closed = name, False

    async def close(self) -> None:
        self.closed = True


def test_what_no_version_belongs_to_any_more_is_let_go_of_once_it_has_answered() -> None:
    from serving.endpoint.handles import Applications

    made: list[FakeApplication] = []

    def make(name: str) -> Any:
        made.append(FakeApplication(name))
        return made[-1]

    async def change() -> None:
        applications = Applications(make)
        for version in range(200):
            applications.get(f"digits-{version}")
            applications.keep({f"digits-{version}", f"digits-{version - 1}"}, 0.05)
        assert not any(each.closed for each in made), "a request may be under way"
        await asyncio.sleep(0.1)
        assert [each.name for each in made if not each.closed] == ["digits-198", "digits-199"]
        assert list(applications._known) == ["digits-198", "digits-199"]
        assert applications._closing == set()
        first = applications.get("digits-0")
        assert (first is made[0], first is applications.get("digits-0")) == (False, True)

    asyncio.run(change())
