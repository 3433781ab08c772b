"""How often a key may ask: of one ingress, and of several that share."""

import asyncio
from collections import Counter
from typing import Any

import pytest

from serving.core.errors import RateLimitError
from serving.traffic import rate_limit
from serving.traffic.rate_limit import Buckets, Limits
from tests.clock import Clock

PER_S = 200.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(rate_limit, "time", made)
    return made


async def asked(clock: Clock, limits: list[Limits], seconds: float, names: tuple[str, ...] = ("a",)) -> Counter[str]:
    """Requests that were let through,
    of callers who ask each of them several times in each millisecond of the clock's."""
    through: Counter[str] = Counter()
    end = clock.now + seconds

    async def pass_time() -> None:
        while clock.now < end:
            clock.now += 0.001
            for _ in range(3):
                await asyncio.sleep(0)

    async def caller(limit: Limits, name: str) -> None:
        while clock.now < end:
            try:
                await limit.check(name)
                through[name] += 1
            except RateLimitError as error:
                assert error.retry_after_s is not None
                assert error.retry_after_s > 0
            await asyncio.sleep(0)

    await asyncio.gather(pass_time(), *(caller(limit, name) for limit in limits for name in names for _ in range(3)))
    return through


@pytest.mark.parametrize("ingresses", [1, 3])
def test_callers_get_their_rate_and_no_more_whichever_ingress_they_ask(ingresses: int, clock: Clock) -> None:
    shared, calls = Buckets(), 0

    async def lease(name: str, per_s: float, wanted: int) -> tuple[int, float]:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0)
        return shared.take(name, per_s, wanted)

    limits = [Limits(PER_S, lease if ingresses > 1 else None) for _ in range(ingresses)]
    through = asyncio.run(asked(clock, limits, 0.5, ("a", "b")))
    for name in ("a", "b"):
        assert 0.75 * PER_S * 1.5 < through[name] <= PER_S * 1.5 + 1, (
            "a second's worth at once, and half a one's after it")
    assert calls < through.total() / 3, "of a key that asks often, not each request is a call"


def test_less_than_one_a_second_is_possible(clock: Clock) -> None:
    async def tried() -> None:
        limits = Limits(0.5)
        await limits.check("a")
        with pytest.raises(RateLimitError, match=r"more than 0\.5 requests a second with this key") as refused:
            await limits.check("a")
        assert refused.value.retry_after_s == 2.0
        clock.now += 2.0
        await limits.check("a")

    asyncio.run(tried())


def test_each_ingress_counts_for_itself_while_what_they_share_is_away(clock: Clock) -> None:
    async def gone(*arguments: Any) -> tuple[int, float]:
        raise OSError("gone")

    through = asyncio.run(asked(clock, [Limits(PER_S, gone)], 0.2))
    assert PER_S * 0.9 < through["a"] <= PER_S * 1.2 + 1
