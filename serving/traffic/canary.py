"""Whether a version that has just been given requests keeps to its limits;
if not, they go back to where they went before.

Each ingress tallies what its versions answered (`Tally`), and tells it every second to the coordinator of all of them
(serving/traffic/shared_state.py), which sums it over a window and judges (`CanaryWindow`).
"""

import math
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_FIRST_S, _RATIO = 1e-4, 1.1
"""Latencies are counted in bins: up to 0.1 ms, and each next one a tenth wider."""
WINDOW_S = 60.0


@dataclass(frozen=True, kw_only=True)
class ChampionBefore:
    """A registered model's champion from before a change, which it is again where its requests go back."""

    name: str
    version: str
    """The one before."""
    promoted: str
    """The one that the change made it: where it is another by now, nothing is done."""
    tracking_uri: str | None
    storage: str


@dataclass(frozen=True, kw_only=True)
class Canary:
    """The limits of a change of weights, and the weights that it replaced."""

    id: str
    """Of the change."""
    candidates: Sequence[str]
    """Versions that get more than before."""
    before: Mapping[str, float]
    """Weights to go back to."""
    max_error_rate: float
    """Share of a candidate's requests that may fail, beyond that of the other versions."""
    max_p95_ms: float | None = None
    """Of a candidate's answers; None: no limit."""
    min_requests: int = 50
    """Of a candidate, in the window: nothing is said of fewer."""
    champion: ChampionBefore | None = None

    @staticmethod
    def of(values: Mapping[str, Any]) -> "Canary":
        """As `asdict` gives them."""
        before: Mapping[str, Any] | None = values.get("champion")
        made: dict[str, Any] = {**values, "champion": ChampionBefore(**before) if before else None}
        return Canary(**made)


@dataclass(kw_only=True)
class Tally:
    """What a version answered: requests, those that failed through no fault of the caller's,
    and bins of the others' latencies."""

    requests: int = 0
    errors: int = 0
    bins: Counter[int] = field(default_factory=Counter[int])

    def add(self, status: int, seconds: float) -> None:
        """Refused requests (4xx) say nothing of a version."""
        if 400 <= status < 500:
            return
        self.requests += 1
        if status >= 500:
            self.errors += 1
        else:
            self.bins[max(0, math.ceil(math.log(max(seconds, _FIRST_S) / _FIRST_S, _RATIO)))] += 1

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(requests=self.requests + other.requests, errors=self.errors + other.errors,
                     bins=self.bins + other.bins)

    @property
    def error_rate(self) -> float:
        return self.errors / self.requests if self.requests else 0.0

    @property
    def p95_ms(self) -> float | None:
        return self.quantile_ms(0.95)

    def quantile_ms(self, share: float) -> float | None:
        """Of the answers' latencies, at most a tenth too high; None without any."""
        wanted, seen = math.ceil(share * self.bins.total()), 0
        for index in sorted(self.bins):
            seen += self.bins[index]
            if seen >= wanted:
                return 1000 * _FIRST_S * _RATIO**index
        return None


class CanaryWindow:
    """Of one change: the last minute's tallies of each version, or more if they are few."""

    def __init__(self, guard: Canary) -> None:
        self.guard = guard
        self.reason: str | None = None
        """Why the requests went back."""
        self._recent: dict[str, deque[tuple[float, Tally]]] = {}

    def hear(self, tallies: Mapping[str, Tally], now: float | None = None) -> str | None:
        """Of one ingress, since it was last heard of.
        Returns the reason for which the requests are to go back, if there is one."""
        at = time.monotonic() if now is None else now
        for version, tally in tallies.items():
            recent = self._recent.setdefault(version, deque())
            recent.append((at, tally))
            while (recent[0][0] < at - WINDOW_S
                   and self.seen(version).requests - recent[0][1].requests >= self.guard.min_requests):
                recent.popleft()
        if self.reason is None:
            self.reason = self._verdict()
        return self.reason

    def seen(self, version: str) -> Tally:
        """In the window."""
        return sum((tally for _, tally in self._recent.get(version, ())), Tally())

    @property
    def versions(self) -> list[str]:
        return list(self._recent)

    def _verdict(self) -> str | None:
        guard = self.guard
        others = sum((self.seen(version) for version in self.versions if version not in guard.candidates), Tally())
        for version in guard.candidates:
            seen = self.seen(version)
            if seen.requests < guard.min_requests:
                continue
            if seen.error_rate - others.error_rate > guard.max_error_rate:
                return (f"{seen.errors} of {seen.requests} requests to version {version} failed, "
                        f"{100 * seen.error_rate:.1f} %, against {100 * others.error_rate:.1f} % elsewhere: "
                        f"{100 * guard.max_error_rate:g} points more may")
            if guard.max_p95_ms is not None and (p95 := seen.p95_ms) is not None and p95 > guard.max_p95_ms:
                return f"the p95 of version {version} is {p95:.3g} ms: {guard.max_p95_ms:g} ms are allowed"
        return None
