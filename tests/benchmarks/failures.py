"""A run that fails at random, simulated event by event; when it saves, the real `CheckpointSchedule` says."""

import math
import random
from dataclasses import dataclass

from jobs.common.checkpoint.schedule import CheckpointSchedule
from tests.benchmarks.goodput_model import two_tier_goodput


@dataclass(frozen=True, kw_only=True)
class Life:
    """Seconds: a step; how long a checkpoint keeps the loop, and until it is committed; between failures that go back
    to a checkpoint; until it goes on."""

    step_s: float
    blocking_s: float
    write_s: float
    mtbf_s: float
    recovery_s: float
    worker_mtbf_s: float = math.inf
    """Between failures that others make good: the step is done again, and none before it."""
    worker_recovery_s: float = 0.0
    every_steps: int | None = None
    """None: `auto`, which knows mtbf_s."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """goodput: of the simulation. model: of the formula, at the same interval."""

    goodput: float
    model: float
    interval_s: float


def simulate(life: Life, *, failures: int, seed: int) -> Found:
    """Until so many failures have been survived."""
    rng = random.Random(seed)
    now, committed, highest = 0.0, 0, 0
    for _ in range(failures):
        fails_at = now + _random_s(rng, life.mtbf_s)
        now, committed = _generation(life, now + life.recovery_s, fails_at,
                                     committed, rng) if now + life.recovery_s < fails_at else (
            fails_at, committed)
        highest = max(highest, committed)
    every = _cadence(life, 0).every_steps
    interval_s = (every - every // 4) * life.step_s
    half_a_step_s = life.step_s / 2  # of the one that a dead worker had not finished
    model = two_tier_goodput(interval_s, life.blocking_s, life.mtbf_s, commit_s=life.write_s,
                             recovery_s=life.recovery_s, worker_mtbf_s=life.worker_mtbf_s,
                             worker_recovery_s=life.worker_recovery_s + half_a_step_s)
    return Found(goodput=highest * life.step_s / now, model=model, interval_s=interval_s)


def _random_s(rng: random.Random, mean_s: float) -> float:
    """Until the next of failures that come so often in the mean; inf: never."""
    return rng.expovariate(1 / mean_s) if mean_s < math.inf else math.inf


def _cadence(life: Life, step: int) -> CheckpointSchedule:
    cadence = CheckpointSchedule(life.every_steps or "auto", step, life.mtbf_s)
    cadence.observe(life.step_s, life.blocking_s, life.write_s, 0.0)
    return cadence


def _generation(life: Life, now: float, fails_at: float, step: int, rng: random.Random) -> tuple[float, int]:
    """From a resumed step to a failure: when that is, and the newest step that was committed before it."""
    cadence, committed, in_flight = _cadence(life, step), step, (0.0, 0)
    worker_fails_at = now + _random_s(rng, life.worker_mtbf_s)
    while True:
        while worker_fails_at < now + life.step_s:
            now = worker_fails_at + life.worker_recovery_s
            worker_fails_at += _random_s(rng, life.worker_mtbf_s)
        now += life.step_s
        if in_flight[1] > committed and in_flight[0] <= min(now, fails_at):
            committed = in_flight[1]
        if now >= fails_at:
            return fails_at, committed
        step += 1
        if cadence.due(step):
            now += life.blocking_s
            in_flight = (now + life.write_s, step)
            cadence.begun(step)


