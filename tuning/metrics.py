"""What monitoring sees of a search: gauges of `ray.util.metrics`, named `trainyard_tune_<what>_<unit>`,
exported by the driver."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false

import time
from collections import Counter

from tuning.journal import STATUSES
from tuning.results import best_trial
from tuning.search import Search

GAUGES = {
    "trainyard_tune_trials": ("Trials by status; of those that run, also such as rest", "status"),
    "trainyard_tune_running_trials": ("Trials that have a process now", ""),
    "trainyard_tune_planned_trials": ("Trials that there are to be", ""),
    "trainyard_tune_epochs": ("Epochs done by all trials", ""),
    "trainyard_tune_failures": ("Failures of all trials, also those that were retried", ""),
    "trainyard_tune_elapsed_seconds": ("Time that the search has taken, over all its drivers", ""),
    "trainyard_tune_best": ("The best evaluation's value of each metric that is looked for", "metric"),
}
_EVERY_S = 2.0
Reading = tuple[str, str, float]


def readings(search: Search) -> list[Reading]:
    """(metric, value of its own label, figure) of a search as it is now."""
    trials = list(search.trials.values())
    by_status = Counter(trial.status for trial in trials)
    found: list[Reading] = [("trainyard_tune_trials", status, by_status[status]) for status in STATUSES]
    found += [
        ("trainyard_tune_running_trials", "", len(search.running)),
        ("trainyard_tune_planned_trials", "", search.num_trials),
        ("trainyard_tune_epochs", "", search.epochs_done),
        ("trainyard_tune_failures", "", sum(len(trial.failures) for trial in trials)),
        ("trainyard_tune_elapsed_seconds", "", search.journal.elapsed_s),
    ]
    best = best_trial(search)
    row = search.goal.best_row(best) if best else None
    return found + [("trainyard_tune_best", name, row[name]) for name in search.goal.metrics if row is not None]


class SearchMetrics:
    """Of one search. `update` is called often: what is not set again within 20 s is no more exported."""

    def __init__(self, search: str, job: str) -> None:
        from ray.util.metrics import Gauge

        self._tags = {"search": search, "job": job}
        self._gauges = {name: Gauge(name, text, tag_keys=(*self._tags, *([own] if own else [])))
                        for name, (text, own) in GAUGES.items()}
        self._updated_at = -_EVERY_S

    def update(self, search: Search) -> None:
        if time.monotonic() - self._updated_at < _EVERY_S:
            return
        self._updated_at = time.monotonic()
        for name, value, figure in readings(search):
            own = GAUGES[name][1]
            self._gauges[name].set(float(figure), {**self._tags, **({own: value} if own else {})})
