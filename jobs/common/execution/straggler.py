"""Which worker keeps the others waiting.

In step with each other all workers take the same time for a step, whoever is slow. So each measures what it spends
computing and reading data, without what it waits inside collectives:
in a step that time is longest where the others wait for.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.monitoring.run_status import RankTime
from jobs.common.training.rendezvous import Heartbeat, WorkerInfo

RATIO = 1.3
"""A worker this many times as slow as the others' median is named,"""
LEAST_SHARE = 0.1
"""if what it takes longer than they is this share of a step at least,"""
HOLD_S = 10.0
"""and has been so for so many seconds."""


@dataclass(frozen=True, kw_only=True)
class Straggler:
    """The worker that the others wait for, and how long these take."""

    slow: RankTime
    others_s: float

    def __str__(self) -> str:
        times = f"{self.slow.busy_s:.3g} s a step, where the others take {self.others_s:.3g} s and wait for it"
        return f"rank {self.slow.rank} on {self.slow.host} computes {times}"


def straggler(times: Sequence[RankTime], step_s: float) -> Straggler | None:
    """None if no worker keeps the others waiting.
    One that has more micro-batches than another may take longer in proportion."""
    if len(times) < 2:
        return None
    slow = max(times, key=lambda each: each.busy_s)
    others_s = statistics.median(e.busy_s * max(1.0, slow.passes / e.passes) for e in times if e is not slow)
    late_s = slow.busy_s - others_s
    return Straggler(slow=slow, others_s=others_s) if late_s > max((RATIO - 1) * others_s, LEAST_SHARE * step_s,
                                                                   1e-9) else None


def rank_times(workers: Mapping[int, WorkerInfo], heartbeats: Mapping[int, Heartbeat]) -> dict[int, RankTime]:
    """How long a step takes each rank, of those that have made some. workers: by rank.
    heartbeats: by slot, the latest."""
    return {
        rank: RankTime(rank=rank, host=m.host, node_id=m.node_id, busy_s=beat.busy_s, passes=beat.passes)
        for rank, m in workers.items() if (beat := heartbeats.get(m.slot)) and beat.busy_s
    }


class StragglerWatch:
    """Of one generation: what is so for a while is said, once for each rank."""

    def __init__(self) -> None:
        self.present: Straggler | None = None
        """Who is slow, and has been for HOLD_S."""
        self._seen: Straggler | None = None
        self._since, self._said = 0.0, set[int]()

    def hear(self, times: Mapping[int, RankTime], step_s: float, now: float) -> str | None:
        """times: by rank, the latest. now: in seconds, by the loop's clock. Returns what is to be said."""
        found = straggler(list(times.values()), step_s)
        if found is None or self._seen is None or found.slow.rank != self._seen.slow.rank:
            self._since = now
        self._seen = found
        self.present = found if found is not None and now - self._since >= HOLD_S else None
        if self.present is None or self.present.slow.rank in self._said:
            return None
        self._said.add(self.present.slow.rank)
        return f"{self.present}: look at what else runs there, at its clock speed, and at its way to the data"
