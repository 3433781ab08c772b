"""What a report shows beyond the metrics, within a budget of time: `--eval.extras-budget 60s`.

Workers make some of it, then the driver the rest, each in an order of its own, the cheapest first. The next thing is
begun only where there is time left, and, of things of a kind, for all that it is likely to take by what those before it
took. Nothing is cut off in the middle: what is begun is made whole. Where all fits in, nothing depends on the clock.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

EXPLANATIONS = "what answers rest on"
"""What several jobs call so."""
Agree = Callable[[str, Callable[[], bool]], bool]
"""By a key, what rank 0 finds, on all ranks."""


@dataclass(frozen=True)
class ExtrasAccount:
    """What became of the budget."""

    spent_s: float = 0.0
    left_out: tuple[str, ...] = ()


def of_changed_rows(change: str) -> str:
    """What the robustness to a change is called, and the predictions that it is measured by."""
    return f"robustness {change}"


def _alone(key: str, find: Callable[[], bool]) -> bool:
    return find()


class Extras:
    """What is left of the budget, and what was left out."""

    def __init__(self, budget_s: float = float("inf"), before: ExtrasAccount | None = None,
                 agree: Agree = _alone, clock: Callable[[], float] = time.monotonic) -> None:
        """before: of those who made things before."""
        before = before or ExtrasAccount()
        self._budget_s, self._before_s, self._agree, self._clock = budget_s, before.spent_s, agree, clock
        self._left_out, self._work = list(before.left_out), 0.0
        self._began: float | None = None

    def begins(self, name: str, work: float = 0.0) -> bool:
        """Whether there is time for what people call by this name; else it is left out. All ranks ask, in the same
        order. work: how much it takes, in a unit of those that are asked for beside it; 0: nobody knows."""
        if self._began is None:
            self._began = self._clock()
        if self._agree(f"extra: {name}", lambda: self._fits(work)):
            self._work += work
            return True
        self._left_out.append(name)
        return False

    def _fits(self, work: float) -> bool:
        own_s = self._own_s
        likely_s = own_s / self._work * work if self._work else 0.0
        spent_s = self._before_s + own_s
        return spent_s < self._budget_s and spent_s + likely_s <= self._budget_s

    @property
    def account(self) -> ExtrasAccount:
        return ExtrasAccount(self._before_s + self._own_s, tuple(self._left_out))

    @property
    def _own_s(self) -> float:
        return 0.0 if self._began is None else self._clock() - self._began

    def has(self, name: str) -> bool:
        """Whether it was not left out."""
        return name not in self._left_out
