"""How requests become batches: alone at once, together while replicas are busy, and never after their deadline."""

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from serving.core.errors import BadRequestError, DeadlineError, ModelError, OverloadedError, RefusedError
from serving.traffic.batching import Batcher, Inputs, Outputs


class Model:
    """Answers a list when it is let; keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, requests: list[Inputs]) -> Sequence[Outputs | RefusedError]:
        self.asked.append([int(request["x"][0]) for request in requests])
        await self.gate.wait()
        if any(int(request["x"][0]) == 666 for request in requests):
            raise RuntimeError("broken")
        return [BadRequestError("odd") if int(request["x"][0]) == 13 else {"y": 2 * request["x"]}
                for request in requests]


def batcher(model: Model, **settings: Any) -> Batcher:
    return Batcher(model, **{"max_rows": 8, "max_calls": 1, "max_queued": 100} | settings)


async def ask(made: Batcher, value: int, rows: int = 1, timeout_s: float = 5) -> int:
    return int((await made.infer({"x": np.full(rows, value)}, rows, timeout_s))["y"][0])


def test_a_request_that_is_alone_goes_at_once_and_those_that_wait_go_together() -> None:
    async def scene() -> None:
        model = Model()
        made = batcher(model)
        assert await ask(made, 1) == 2
        model.gate.clear()
        tasks = [asyncio.create_task(ask(made, n)) for n in range(2, 13)]
        await asyncio.sleep(0)
        assert made.queued == 10
        model.gate.set()
        assert await asyncio.gather(*tasks) == [2 * n for n in range(2, 13)]
        assert model.asked == [[1], [2], list(range(3, 11)), [11, 12]]

    asyncio.run(scene())


def test_several_calls_are_under_way_at_a_time_and_a_large_request_goes_alone() -> None:
    async def scene() -> None:
        model = Model()
        made = batcher(model, max_calls=2)
        model.gate.clear()
        tasks = [asyncio.create_task(ask(made, n, rows))
                 for n, rows in ((1, 1), (2, 1), (3, 5), (4, 5), (5, 3), (6, 100))]
        await asyncio.sleep(0)
        assert model.asked == [] or model.asked == [[1], [2]]
        await asyncio.sleep(0)
        model.gate.set()
        await asyncio.gather(*tasks)
        assert model.asked == [[1], [2], [3], [4, 5], [6]]

    asyncio.run(scene())


def test_a_batch_that_is_not_full_waits_as_long_as_it_may() -> None:
    async def scene() -> None:
        model = Model()
        made = batcher(model, wait_s=0.05, max_calls=4)
        assert await asyncio.gather(ask(made, 1), ask(made, 2)) == [2, 4]
        assert model.asked == [[1, 2]]
        patient = batcher(model, wait_s=600.0)
        await asyncio.gather(*(ask(patient, n) for n in range(8)))  # within five seconds: a full one does not wait
        assert await ask(made, 9) == 18
        assert made.queued == 0

    asyncio.run(scene())


def test_who_has_gone_or_is_late_is_not_computed() -> None:
    async def scene() -> None:
        model = Model()
        made = batcher(model)
        model.gate.clear()
        first = asyncio.create_task(ask(made, 1))
        await asyncio.sleep(0)
        gone = asyncio.create_task(ask(made, 2))
        late = asyncio.create_task(ask(made, 3, timeout_s=0.01))
        stays = asyncio.create_task(ask(made, 4))
        await asyncio.sleep(0.03)
        gone.cancel()
        with pytest.raises(DeadlineError, match=r"not answered within 0\.01 s"):
            await late
        model.gate.set()
        assert [await first, await stays] == [2, 8]
        assert model.asked == [[1], [4]]

    asyncio.run(scene())


def test_what_is_wrong_with_one_leaves_the_others_be_and_a_broken_call_does_not_stop_the_next() -> None:
    async def scene() -> None:
        model = Model()
        made = batcher(model)
        model.gate.clear()
        first = asyncio.create_task(ask(made, 1))
        await asyncio.sleep(0)
        odd, good = asyncio.create_task(ask(made, 13)), asyncio.create_task(ask(made, 14))
        await asyncio.sleep(0)
        model.gate.set()
        assert [await first, await good] == [2, 28]
        with pytest.raises(BadRequestError, match="odd"):
            await odd
        with pytest.raises(ModelError):
            await ask(made, 666)
        assert await ask(made, 5) == 10

    asyncio.run(scene())


def test_more_than_may_wait_are_refused_at_once() -> None:
    async def scene() -> None:
        model = Model()
        made = batcher(model, max_queued=3)
        model.gate.clear()
        tasks = [asyncio.create_task(ask(made, n)) for n in range(4)]
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError):
            await ask(made, 9)
        model.gate.set()
        assert await asyncio.gather(*tasks) == [0, 2, 4, 6]

    asyncio.run(scene())
