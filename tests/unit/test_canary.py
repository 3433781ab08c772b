"""A change of weights that is watched: when requests go back by themselves,
and that all replicas of an ingress do the same."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from serving.core.errors import ModelError
from serving.traffic import shared_state as coordinator
from serving.traffic.batching import Batcher
from serving.traffic.canary import Canary, CanaryWindow, Tally
from serving.traffic.shadow import Shadow, same_rows
from serving.traffic.shared_state import Reporter, SharedState
from tests.unit.test_http import Replicas, ask, endpoint

GUARD = Canary(id="a", candidates=["2"], before={"1": 1.0}, max_error_rate=0.05, max_p95_ms=100.0, min_requests=50)


def tally(answers: int, errors: int = 0, seconds: float = 0.01) -> Tally:
    made = Tally()
    for _ in range(answers):
        made.add(200, seconds)
    for _ in range(errors):
        made.add(500, 9.0)
    return made


def test_quantiles_are_at_most_a_tenth_too_high_and_refusals_say_nothing() -> None:
    made, seconds = Tally(), np.random.default_rng(0).lognormal(-5, 1, 2000)
    for each in seconds:
        made.add(200, float(each))
        made.add(429, 30.0)
    wanted = 1000 * float(np.quantile(seconds, 0.95, method="inverted_cdf"))
    assert made.p95_ms is not None
    assert wanted <= made.p95_ms * 1.001
    assert made.p95_ms <= 1.1001 * wanted
    assert made.requests == 2000
    assert Tally().p95_ms is None


@pytest.mark.parametrize(("others", "candidate", "said"), [
    (tally(100), tally(60), None),
    (tally(100), tally(46, 4), "4 of 50 requests to version 2 failed, 8.0 %, against 0.0 % elsewhere"),
    (tally(90, 10), tally(46, 4), None),
    (tally(100), tally(30, 19), None),
    (tally(0), tally(60, seconds=0.2), "the p95 of version 2 is 20"),
    (tally(100, seconds=0.2), tally(60), None),
    (tally(0, 100), tally(60), None),
])
def test_a_candidate_is_judged_by_what_it_fails_more_than_the_others_and_by_its_p95(
    others: Tally, candidate: Tally, said: str | None
) -> None:
    reason = CanaryWindow(GUARD).hear({"1": others, "2": candidate}, now=0.0)
    assert reason is None if said is None else said in (reason or "")


def test_what_is_long_past_does_not_count_and_a_verdict_stays() -> None:
    watch = CanaryWindow(GUARD)
    for second in range(600):
        assert watch.hear({"2": tally(10)}, now=float(second)) is None
    assert watch.seen("2").requests <= 620
    for second in range(600, 610):
        watch.hear({"2": tally(5, 5)}, now=float(second))
    assert watch.reason is not None
    said = watch.reason
    assert watch.hear({"2": tally(10_000)}, now=700.0) == said


def test_a_few_requests_are_waited_for_however_long_they_take() -> None:
    watch = CanaryWindow(GUARD)
    said = [watch.hear({"2": tally(0, 1)}, now=100.0 * k) for k in range(50)]
    assert said[:49] == [None] * 49
    assert said[49] is not None


# ── in an ingress ──
class _Method:
    def __init__(self, call: Any) -> None:
        self._call = call

    async def remote(self, *arguments: Any) -> Any:
        return self._call(*arguments)


class _Actor:
    """As an actor's handle, in this process."""

    def __init__(self) -> None:
        self.coordinator = SharedState()

    def __getattr__(self, name: str) -> _Method:
        return _Method(getattr(self.coordinator, name))


def test_every_ingress_takes_the_requests_back_and_a_new_one_hears_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    actor, heard = _Actor(), []
    monkeypatch.setattr(coordinator, "coordinator", lambda: actor)

    async def tried() -> None:
        replicas = Replicas()
        first, second = endpoint(replicas, {"1": 0.5, "2": 0.5}), endpoint(replicas, {"1": 0.5, "2": 0.5})
        for each in (first, second):
            each.table.guards = {"m": GUARD}
        reporters = [Reporter(each.table, lambda model, gone: heard.append(gone)) for each in (first, second)]
        for _ in range(60):
            await ask(second, "/v2/models/m/versions/1/infer")
        replicas.broken = True
        for _ in range(30):
            await ask(first, "/v2/models/m/versions/2/infer")
            await ask(second, "/v2/models/m/versions/2/infer")
        replicas.broken = False
        for reporter in reporters:
            await reporter._report()
        await reporters[0]._report()
        for each in (first, second):
            seen = Counter([(await ask(each))[2]["model_version"] for _ in range(30)])
            assert seen == {"1": 30}
            assert "30 of 30" in (each.table.reason("m") or "") or "60 of 60" in (each.table.reason("m") or "")
        assert (await ask(first, "/v2/models/m/versions/2/infer"))[0] == 200, "by its version it can still be asked"
        third = endpoint(replicas, {"1": 0.5, "2": 0.5})
        third.table.guards = {"m": GUARD}
        reporter = Reporter(third.table, lambda model, gone: heard.append(gone))
        await reporter.follow()
        assert {(await ask(third))[2]["model_version"] for _ in range(30)} == {"1"}
        third.table.guards = {}
        assert heard[-1] is True

    asyncio.run(tried())
    assert actor.coordinator.watched()["m"]["versions"]["2"]["error_rate"] == 1.0


# ── shadows ──
@pytest.mark.parametrize(("answered", "shadow", "same"), [
    ([[0.9, 0.1], [0.4, 0.6]], [[0.6, 0.4], [0.6, 0.4]], [True, False]),
    ([1.0, 2.0], [1.0000001, 2.1], [True, False]),
    ([[1.0], [2.0]], [[1.0], [3.0]], [True, False]),
    ([[0.9, 0.1]], None, [False]),
    ([[0.9, 0.1]], [[0.9, 0.1, 0.0]], [False]),
])
def test_a_row_says_the_same_if_its_class_or_its_values_are_the_same(answered: Any, shadow: Any,
                                                                     same: list[bool]) -> None:
    assert same_rows(np.array(answered), None if shadow is None else np.array(shadow)).tolist() == same
    texts = np.array(["a", "b"], object)
    assert same_rows(texts, np.array(["a", "c"], object)).tolist() == [True, False]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


def test_a_shadow_counts_what_differs_fails_and_cannot_be_followed() -> None:
    async def tried() -> Counter[str]:
        async def call(requests: Any) -> Any:
            await asyncio.sleep(0)
            if any((each["x"] < 0).any() for each in requests):
                raise ModelError("broken")
            return [{"y": each["x"] + (each["x"] > 5)} for each in requests]

        batcher, told = Batcher(call, max_rows=8, max_calls=1, max_queued=100), Counter[str]()

        def seen(outcome: str, rows: int) -> None:
            told[outcome] += rows

        made = Shadow(batcher, id="s", version="2", share=1.0, timeout_s=5.0, seen=seen)
        for values, rows in (([1.0, 2.0], 2), ([9.0, 3.0], 4), ([-1.0], 5)):
            x = np.array(values)
            made.follow({"x": x}, len(x), {"y": x})
            await until(lambda rows=rows: told.total() == rows)
        assert made.outcomes == told == {"same": 3, "other": 1, "failed": 1}
        for _ in range(70):
            made.follow({"x": np.ones(1)}, 1, {"y": np.ones(1)})
        assert told["dropped"] == 6
        await until(lambda: told.total() == 5 + 70)
        none = Shadow(batcher, id="s", version="2", share=0.0, timeout_s=5.0, seen=seen)
        none.follow({"x": np.ones(1)}, 1, {"y": np.ones(1)})
        return told

    assert asyncio.run(tried())["same"] == 3 + 64


def test_the_caller_gets_the_answer_of_the_version_that_was_asked() -> None:
    async def tried() -> None:
        app = endpoint(Replicas(), {"1": 1.0, "2": 0.0})
        shadow = app.table._shadow(app.table._routes["m"], id="s", version="2", share=1.0)
        for _ in range(5):
            assert (await ask(app))[2]["model_version"] == "1"
        await until(lambda: shadow.outcomes.total() >= 5)
        assert shadow.outcomes == {"same": 5}
        assert app.table._routes["m"]["2"].tally.requests == 0, "nobody asked it"

    asyncio.run(tried())
