"""Collects requests that wait for one model into batches, while others of them are being answered.

A batch leaves as soon as fewer than `max_calls` are under way, so a request that comes alone waits for nothing, and the
busier an endpoint is, the larger its batches are: one call to a replica then carries many requests. Who has gone, or
whose deadline has come, leaves before it is batched.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from cluster.core.background import in_loop
from jobs.common.arrays import Array
from serving.core.errors import DeadlineError, ModelError, OverloadedError, RefusedError

Inputs = Mapping[str, Array]
Outputs = Mapping[str, Array]
Call = Callable[[list[Inputs]], Awaitable[Sequence[Outputs | RefusedError]]]


@dataclass(kw_only=True)
class _Waiting:
    inputs: Inputs
    rows: int
    answer: "asyncio.Future[Outputs]"


class Batcher:
    """Of one model. Used by one event loop."""

    def __init__(self, call: Call, *, max_rows: int, max_calls: int, max_queued: int, wait_s: float = 0.0,
                 seen: Callable[[int, int], None] = lambda requests, rows: None) -> None:
        """call: answers a list of requests, in its order. wait_s: how long a batch that is not full waits for more.

        seen: is told the requests and the rows of each batch.
        """
        self._call, self._max_rows, self._max_calls, self._max_queued = call, max_rows, max_calls, max_queued
        self._wait_s, self._seen = wait_s, seen
        self._queue: deque[_Waiting] = deque()
        self._queued_rows = self._calls = 0
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def queued(self) -> int:
        """Requests that no replica has yet."""
        return len(self._queue)

    async def infer(self, inputs: Inputs, rows: int, timeout_s: float) -> Outputs:
        """Raises: OverloadedError, DeadlineError, and what the call answers with."""
        if len(self._queue) >= self._max_queued:
            raise OverloadedError(f"{len(self._queue)} requests wait already: try again later")
        loop = asyncio.get_running_loop()
        waiting = _Waiting(inputs=inputs, rows=rows, answer=loop.create_future())
        timer = loop.call_later(timeout_s, _expire, waiting.answer, timeout_s)
        self._queue.append(waiting)
        self._queued_rows += rows
        try:
            self._pump()
            return await waiting.answer
        finally:
            timer.cancel()
            if not waiting.answer.done():
                waiting.answer.cancel()

    def _pump(self) -> None:
        """Sends batches while calls are free; the last one waits for more if it is not full and may."""
        while self._queue and self._calls < self._max_calls:
            if self._wait_s and self._queued_rows < self._max_rows and self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(self._wait_s, self._waited)
            if self._timer is not None and self._queued_rows < self._max_rows:
                return
            self._send()

    def _waited(self) -> None:
        self._timer = None
        if self._queue and self._calls < self._max_calls:
            self._send()
        self._pump()

    def _send(self) -> None:
        batch: list[_Waiting] = []
        rows = 0
        while self._queue and (not batch or rows + self._queue[0].rows <= self._max_rows):
            waiting = self._queue.popleft()
            self._queued_rows -= waiting.rows
            if not waiting.answer.done():
                batch.append(waiting)
                rows += waiting.rows
        if batch:
            self._calls += 1
            self._seen(len(batch), rows)
            task = in_loop(self._carry_out(batch), "a batch of requests")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _carry_out(self, batch: list[_Waiting]) -> None:
        try:
            answers = await self._call([waiting.inputs for waiting in batch])
            for waiting, answer in zip(batch, answers, strict=True):
                _settle(waiting.answer, answer)
        except RefusedError as error:
            for waiting in batch:
                _settle(waiting.answer, error)
        except Exception as error:  # noqa: BLE001  (each of the requests hears of it)
            for waiting in batch:
                _settle(waiting.answer, ModelError(str(error)))
        finally:
            for waiting in batch:  # as all have by now, unless what was raised is no Exception
                _settle(waiting.answer, ModelError("the model failed"))
            self._calls -= 1
            self._pump()


def _settle(future: "asyncio.Future[Outputs]", answer: Outputs | RefusedError) -> None:
    if future.done():
        return
    if isinstance(answer, RefusedError):
        future.set_exception(answer)
    else:
        future.set_result(answer)


def _expire(future: "asyncio.Future[Outputs]", timeout_s: float) -> None:
    if not future.done():
        future.set_exception(DeadlineError(f"not answered within {timeout_s:.3g} s"))
