"""How much of a large run's time is training that counts, where most failures need no checkpoint: the model, against a
simulation, for fleets that nobody has here."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

from jobs.common.checkpoint.optimal_interval import best_interval_s, mean_time_between_failures_s
from jobs.common.checkpoint.schedule import MAX_INTERVAL_S
from tests.benchmarks.failures import Life, simulate
from tests.benchmarks.goodput_model import two_tier_goodput
from tests.benchmarks.results import Figure, Outcome

TITLE = "goodput of large runs, with and without workers' memory between them and storage"


@dataclass(frozen=True, kw_only=True)
class Settings:
    failures: int = 1000
    """That go back to a checkpoint, in each simulation."""
    node_mtbf_h: float = 50_000.0
    fleets: tuple[int, ...] = (1_000, 10_000)
    need_storage: tuple[float, ...] = (1.0, 0.1, 0.01)
    """Share of the failures that workers' memory does not make good."""
    checkpoint_cost_s: float = 10.0
    write_s: float = 60.0
    storage_recovery_s: float = 300.0
    """A checkpoint is read by all, and the cluster may have to be found again."""
    worker_recovery_s: float = 30.0
    """The dead one is noticed, and another one reads what a neighbour holds."""


QUICK = Settings(failures=100)
NOTES = (
    "Not measured but assumed: a node fails every 50,000 hours; a checkpoint keeps training 10 s, and counts 60 s "
    "later; 300 s until training goes on from storage, 30 s from a worker's memory. Storage saved as often as is best "
    "for the failures that need it (Young 1974, Daly 2006).",
    "Model: `goodput_model.py`. Simulation: `failures.py`, event by event, in which a recovery may be interrupted, "
    "too; a step that a dead worker had not finished is done again.",
)


def measure(settings: Settings, workspace: Path) -> Outcome:
    life = Life(step_s=1.0, blocking_s=1.0, write_s=4.0, mtbf_s=3600.0, recovery_s=30.0, worker_recovery_s=4.0)
    figures: list[Figure] = []
    samples = {}
    for worker_mtbf_s in (600.0, 60.0):
        found = simulate(replace(life, worker_mtbf_s=worker_mtbf_s), failures=settings.failures, seed=0)
        samples[f"a worker lost every {worker_mtbf_s:g} s"] = vars(found)
        figures.append(Figure(name=f"all lost every hour, a worker every {worker_mtbf_s:g} s: simulated less model",
                              value=found.goodput - found.model, at_least=-0.004, at_most=0.004))
    for nodes in settings.fleets:
        every_s = mean_time_between_failures_s(settings.node_mtbf_h, nodes)
        for share in settings.need_storage:
            storage_s, worker_s = every_s / share, every_s / (1 - share) if share < 1 else math.inf
            best_s = best_interval_s(settings.checkpoint_cost_s, storage_s)
            best, bounded = (two_tier_goodput(
                interval_s, settings.checkpoint_cost_s, storage_s, commit_s=settings.write_s,
                recovery_s=settings.storage_recovery_s, worker_mtbf_s=worker_s,
                worker_recovery_s=settings.worker_recovery_s) for interval_s in (best_s, min(best_s, MAX_INTERVAL_S)))
            name = f"model: {nodes:,} nodes, {share:.0%} of failures need storage"
            figures += [Figure(name=f"{name}: best interval", value=best_s, unit="s"),
                        Figure(name=f"{name}: goodput with it", value=best),
                        Figure(name=f"{name}: goodput with `auto`, at most ten minutes", value=bounded)]
    return Outcome(figures=tuple(figures), samples=samples, notes=NOTES)
