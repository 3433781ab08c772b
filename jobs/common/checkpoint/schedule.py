"""When to take a checkpoint, so that a failure costs at most so many steps and checkpoints cost little time.

With `checkpoint_every_steps = K` a snapshot is taken every K - K//4 steps, and it must be committed K//4 steps after
that: a process that dies just before the commit falls back to the snapshot before, which is at most (K - K//4)
+ K//4 = K steps old.

    step     0 ──────── 75 ───── 100 ──── 150 ───── 175        K = 100
    snapshot            ▲                  ▲
    committed by                  ▲                  ▲          dying at step 175 loses the steps from 75 on

The quarter is what the background has for writing before the loop must wait for it.

`auto` knows what a checkpoint costs. Where it also knows how often the run fails (`--run.mtbf-h`, or what the run has
seen), it weighs that against the work that a failure loses (goodput.py); where not, it takes what costs little.
"""

from dataclasses import dataclass
from typing import Literal

from jobs.common.checkpoint.optimal_interval import best_interval_s

MAX_COST = 0.02
"""Fraction of the time that `auto` lets checkpoints take, where it does not know how often the run fails."""
MIN_INTERVAL_S = 10.0
MAX_INTERVAL_S = 600.0
CONTENTION = 0.5
"""Part of a background write's time that is taken to be lost to training, where its CPU time is not known."""
SNAPSHOT_SHARE = 0.75
"""Of the interval: so much of it lies between two snapshots, see above."""
FIRST_STEPS = 20
"""`auto` takes its first snapshot after so many steps where it does not know yet how long a step takes."""


@dataclass(frozen=True)
class Costs:
    """Measured, in seconds: a step; how long a checkpoint keeps the loop, and is written;
    its CPU time in the background."""

    step_s: float
    blocking_s: float = 0.0
    write_s: float = 0.0
    background_s: float | None = None
    mtbf_s: float | None = None
    """Mean time between failures of the run; None: not known."""

    @property
    def cost_s(self) -> float:
        """What one checkpoint takes from training."""
        return self.blocking_s + (self.write_s * CONTENTION if self.background_s is None else self.background_s)

    @property
    def interval_s(self) -> float:
        """Most seconds that a failure is to cost; a write fits in a quarter of them.

        How often the run fails not being known, what checkpoints cost stays under MAX_COST,
        and the interval within MAX_INTERVAL_S.
        """
        cheap_s, write_s = self.cost_s / MAX_COST, self.write_s * 4
        if self.mtbf_s is None:
            return min(MAX_INTERVAL_S, max(MIN_INTERVAL_S, cheap_s, write_s))
        best_s = best_interval_s(self.cost_s, self.mtbf_s) / SNAPSHOT_SHARE
        return max(MIN_INTERVAL_S, write_s, min(best_s, max(MAX_INTERVAL_S, cheap_s)))

    @property
    def every_steps(self) -> int:
        return max(1, round(self.interval_s / self.step_s)) if self.step_s > 0 else FIRST_STEPS


class CheckpointSchedule:
    """Counts steps; the loop asks after each one. Rank 0 decides, and the loop makes it common to all ranks.

        if cadence.due(step):
            writer.save(…)
            cadence.begun(step)
        if writer.in_flight and step >= cadence.must_be_committed_by():
            writer.wait()
    """

    def __init__(self, every_steps: int | Literal["auto"], last_step: int | None = None,
                 mtbf_s: float | None = None) -> None:
        """last_step: the step resumed from (0: from the beginning); by default, the one before the first that is asked
        about. mtbf_s: the run's mean time between failures, if it is known; only `auto` listens."""
        self._mtbf_s = mtbf_s
        self._fixed = None if every_steps == "auto" else every_steps
        self.every_steps = self._fixed or Costs(step_s=0.0).every_steps
        """K: most steps that a failure costs."""
        self._last_step = last_step
        self._deadline: int | None = None

    def due(self, step: int) -> bool:
        """Whether a snapshot is to be taken now that `step` steps are done. Never twice at one step."""
        if self._last_step is None:
            self._last_step = step - 1
        every = self.every_steps
        return step - self._last_step >= every - every // 4

    def begun(self, step: int) -> None:
        """A snapshot was taken after this step, due or not (an evaluation, a stop)."""
        every = self.every_steps
        self._last_step, self._deadline = step, step + every // 4

    def must_be_committed_by(self) -> int | None:
        """The step beyond which the loop may not go before the last snapshot is committed; None before the first."""
        return self._deadline

    def room(self, step: int) -> int:
        """How many steps may be made in one go after `step` steps,
        until `due` or `must_be_committed_by` has to be heeded again."""
        every = self.every_steps
        begins = self.due(step)
        last, deadline = (step, step + every // 4) if begins else (self._last_step or 0, self._deadline or 0)
        # none ahead: `observe`, in another thread, has just changed the interval
        marks = (last + every - every // 4, deadline)
        return max(1, min((mark - step for mark in marks if mark > step), default=1))

    def observe(self, step_s: float, blocking_s: float = 0.0, write_s: float = 0.0,
                background_s: float | None = None) -> None:
        """What a step and the last checkpoint took, in seconds; only `auto` listens.
        background_s: CPU time (Timings)."""
        self.every_steps = self._fixed or Costs(step_s, blocking_s, write_s, background_s, self._mtbf_s).every_steps
