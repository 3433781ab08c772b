"""Metrics sent in batches from a background thread: recording one costs the training loop nothing.

A place that does not answer is tried again, and what could not be sent is kept, newest first to stay, up to a bound.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from dataclasses import dataclass

from cluster.core.background import in_background, logged

BATCH, MOST_KEPT = 1000, 100_000
RETRY_S = 30.0


@dataclass(frozen=True)
class Metric:
    """One value of one metric, at a step and a time (milliseconds since 1970)."""

    key: str
    value: float
    step: int
    timestamp_ms: int


class MetricLog:
    """Sends what is added, in order. `send` gets up to 1000 metrics and raises if they were not taken."""

    def __init__(
        self, send: Callable[[Sequence[Metric]], None], warn: Callable[[Exception], None], retry_s: float = RETRY_S
    ) -> None:
        self._send, self._warn, self._retry_s = send, warn, retry_s
        self._pending: list[Metric] = []
        self._sending: list[Metric] = []
        self._dropped = 0
        self._changed = threading.Condition()
        self._closing = False
        self._sender = in_background("metric-log", self._run)
        self._sender.add_done_callback(logged("the recording of metrics"))

    def add(self, metrics: Sequence[Metric]) -> None:
        """Returns at once."""
        with self._changed:
            self._keep([*self._pending, *metrics])
            self._changed.notify_all()

    def close(self, timeout_s: float = 10.0) -> int:
        """Sends what is left, trying once more where the last try failed. Returns how many metrics were never sent."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        wait([self._sender], timeout_s)
        with self._changed:
            return self._dropped + len(self._pending) + len(self._sending)

    def _run(self) -> None:
        while self._take():
            last_try = self._closing
            try:
                self._send(self._sending)
            except Exception as error:  # noqa: BLE001 - recording must never end the training that it records
                self._warn(error)
                self._put_back()
                if last_try:
                    return
                self._pause()

    def _take(self) -> bool:
        """Waits for something to send; false when all is sent and no more will come."""
        with self._changed:
            self._sending = []
            self._changed.wait_for(lambda: self._pending or self._closing)
            self._sending, self._pending = self._pending[:BATCH], self._pending[BATCH:]
            return bool(self._sending)

    def _put_back(self) -> None:
        with self._changed:
            self._keep([*self._sending, *self._pending])
            self._sending = []

    def _keep(self, metrics: list[Metric]) -> None:
        """The newest stay where there are too many."""
        self._dropped += max(0, len(metrics) - MOST_KEPT)
        self._pending = metrics[-MOST_KEPT:]

    def _pause(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closing, self._retry_s)
