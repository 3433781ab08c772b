"""How often a key may ask, whichever replica of the ingress it asks."""

import asyncio
import logging
import math
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable

from serving.core.errors import RateLimitError

Lease = Callable[[str, float, int], Awaitable[tuple[int, float]]]
"""Of a key's name, its rate and how many tokens are wanted: how many it gets, and if none,
after how many seconds there is one."""
_SHARE_S = 0.1
"""An ingress takes so many seconds' worth of tokens at a time from what all replicas share."""
_log = logging.getLogger(__name__)


class Bucket:
    """Tokens that come at a rate, up to a second's worth."""

    def __init__(self, per_s: float) -> None:
        self._per_s, self._tokens, self._at = per_s, max(1.0, per_s), time.monotonic()

    def take(self, wanted: int) -> tuple[int, float]:
        """As Lease."""
        now = time.monotonic()
        self._tokens = min(max(1.0, self._per_s), self._tokens + (now - self._at) * self._per_s)
        self._at = now
        if self._tokens < 1:
            return 0, (1 - self._tokens) / self._per_s
        taken = min(wanted, int(self._tokens))
        self._tokens -= taken
        return taken, 0.0


class Buckets:
    """By the name of the key."""

    def __init__(self) -> None:
        self._buckets: dict[str, Bucket] = {}

    def take(self, name: str, per_s: float, wanted: int) -> tuple[int, float]:
        """As Lease."""
        bucket = self._buckets.get(name)
        if bucket is None:
            bucket = self._buckets[name] = Bucket(per_s)
        return bucket.take(wanted)


class Limits:
    """Of one ingress: what it took and has not given yet is at most a tenth of a second's worth."""

    def __init__(self, per_s: float, shared: Lease | None = None) -> None:
        """shared: what all replicas of the ingress take tokens from; None where there is one replica."""
        self._per_s, self._shared, self._own = per_s, shared, Buckets()
        self._left: defaultdict[str, int] = defaultdict(int)
        self._again: defaultdict[str, float] = defaultdict(float)
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def check(self, name: str) -> None:
        """Raises: RateLimitError."""
        if self._left[name] <= 0:
            async with self._locks[name]:
                if self._left[name] <= 0:
                    self._left[name] = await self._taken(name)
        self._left[name] -= 1

    async def _taken(self, name: str) -> int:
        now = time.monotonic()
        wait_s = self._again[name] - now
        if wait_s <= 0:
            wanted = 1 if self._shared is None else max(1, math.floor(_SHARE_S * self._per_s))
            taken, wait_s = await self._lease(name, wanted)
            if taken < wanted:
                self._again[name] = now + (wait_s if self._shared is None else max(wait_s, _SHARE_S))
            if taken:
                return taken
        raise RateLimitError(f"more than {self._per_s:g} requests a second with this key", wait_s)

    async def _lease(self, name: str, wanted: int) -> tuple[int, float]:
        if self._shared is not None:
            try:
                return await self._shared(name, self._per_s, wanted)
            except Exception:  # noqa: BLE001  (requests are answered all the same: each ingress then counts for itself)
                _log.exception("what the replicas of the ingress share does not answer")
        return self._own.take(name, self._per_s, wanted)
