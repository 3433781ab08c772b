"""Which trials end before their last epoch: Ray Tune's schedulers, asked here about evaluations by number.

They keep what they know in memory and Ray does not save it; here they are told again of every evaluation when a search goes on.
They see a stand-in for each trial, so that a trial that is started again is the same one to them.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportArgumentType=false

import math
from collections.abc import Mapping
from typing import Any

from tuning.objective import Goal

_SCORE = "score"


class _StandIn:
    def __init__(self, number: int) -> None:
        self.trial_id = str(number)


class Stopping:
    """`--scheduler asha`, `median`, or one that never ends a trial."""

    def __init__(self, kind: str, goal: Goal, *, epochs: int, grace_epochs: int, reduction_factor: int) -> None:
        self._goal, self._scheduler = goal, _scheduler(kind, epochs, min(grace_epochs, epochs), reduction_factor)
        self._stand_ins: dict[int, _StandIn] = {}

    def stops(self, number: int, row: Mapping[str, Any]) -> bool:
        """Whether a trial ends with this evaluation. Each is to be asked about once, in the order in which they were heard of."""
        from ray.tune.schedulers import TrialScheduler

        if self._scheduler is None:
            return False
        if number not in self._stand_ins:
            self._stand_ins[number] = _StandIn(number)
            self._scheduler.on_trial_add(None, self._stand_ins[number])
        result = {"epoch": row["epoch"], _SCORE: self._goal.score(row)}
        return self._scheduler.on_trial_result(None, self._stand_ins[number], result) == TrialScheduler.STOP


def _scheduler(kind: str, epochs: int, grace_epochs: int, reduction_factor: int) -> Any:
    from ray.tune.schedulers import AsyncHyperBandScheduler, MedianStoppingRule

    if kind == "asha":
        return AsyncHyperBandScheduler(time_attr="epoch", metric=_SCORE, mode="max", max_t=epochs, grace_period=grace_epochs,
                                       reduction_factor=reduction_factor, stop_last_trials=False)
    if kind == "median":  # it would pause a trial to let others run, which here have their own turn
        return MedianStoppingRule(time_attr="epoch", metric=_SCORE, mode="max", grace_period=grace_epochs, min_time_slice=math.inf)
    return None
