"""Hears what happens in a search: shows it, tells the registry, and says when and with what it ends."""

from collections.abc import Callable

from cluster.core.errors import ConfigError, StoppedError, TrainingFailedError, TrainyardError
from cluster.core.storage import Store
from jobs.common.config import RunConfig
from jobs.common.registry.connection import open_registry
from jobs.common.runs.console import duration
from tuning.console import SearchConsole
from tuning.journal import Trial
from tuning.metrics import SearchMetrics
from tuning.options import SearchOptions
from tuning.search import Search
from tuning.tracking import Tracking


class SearchProgress:
    """Hears what happens in a search, and ends it when a budget is reached, a signal came,
    or it cannot come to anything."""

    def __init__(self, search: Search, store: Store, options: SearchOptions, run: RunConfig,
                 asked_to_stop: Callable[[], bool]) -> None:
        """run: what the job's config says of it. asked_to_stop: whether a signal came. Raises: ConfigError."""
        self._search, self._options, self._asked_to_stop = search, options, asked_to_stop
        self.display = SearchConsole(search)
        job = search.journal.about["job"]
        self._metrics = SearchMetrics(run.name, job)
        registry = open_registry(run.tracking_uri, Store.open(run.storage), name=run.name,
                                 experiment=run.experiment or job)
        self.tracking = Tracking(registry, store, run.name, job)
        self.lost: str | None = None
        self._sent: dict[int, int] = {number: len(trial.evaluations) for number, trial in search.trials.items()}
        self._unfit: str | None = None

    @property
    def why(self) -> str:
        """What ended the search."""
        options = self._options
        if self._search.over:
            return "all trials have ended"
        if self.lost or self._unfit:
            return self.lost or self._unfit or ""
        if self._asked_to_stop():
            return "a signal"
        if self._time_is_up():
            return f"--time-budget {options.time_budget}"
        return f"--epoch-budget {options.epoch_budget}"

    def verdict(self, best: Trial | None) -> TrainyardError | None:
        """What the search ends with; None if all is well."""
        if self.lost:
            return StoppedError(f"{self.lost}; the search goes on with the same command when that is mended")
        if self._unfit:
            return ConfigError(self._unfit)
        if self._asked_to_stop() and not self._search.over:
            return StoppedError("stopped after a checkpoint of each trial: run the same command again to continue")
        if self._asked_to_stop() and self._options.then_train:
            return StoppedError("stopped before the final trainings: run the same command again to continue")
        if best is None:
            return self._no_result()
        return None

    def _no_result(self) -> TrainyardError:
        failures = [trial.failures[-1] for trial in self._search.trials.values() if trial.failures]
        if failures:
            return TrainingFailedError(f"no trial came to a result; the last failure: {failures[-1]}")
        if any(trial.evaluations for trial in self._search.trials.values()):
            constraints = ", ".join(map(str, self._search.goal.constraints))
            return TrainingFailedError(f"no trial keeps the constraints {constraints}: loosen them")
        return ConfigError(f"no trial was evaluated within {self.why}: one epoch takes longer, so give it more")

    # ── what Ray Tune's side tells and asks (ray_tune.Watcher) ──
    def started(self, trial: Trial) -> None:
        self.tracking.trial(trial)

    def on_event(self, trial: Trial) -> None:
        for row in trial.evaluations[self._sent.get(trial.number, 0) :]:
            self.tracking.log(trial.folder, row)
        self._sent[trial.number] = len(trial.evaluations)
        self._unfit = self._unfit or self._misfit(trial)

    def on_trial_slot_free(self, trial: Trial) -> None:
        self.tracking.end(trial.folder, trial.status)
        self.display.on_trial_slot_free(trial)

    def ends(self) -> bool:
        self.display.tick()
        self._metrics.update(self._search)
        spent = self._options.epoch_budget is not None and self._search.epochs_done >= self._options.epoch_budget
        return self._asked_to_stop() or self._unfit is not None or self._time_is_up() or spent

    def _time_is_up(self) -> bool:
        budget = self._options.time_budget_s
        return budget is not None and self._search.journal.elapsed_s >= budget

    def _misfit(self, trial: Trial) -> str | None:
        """A time budget within which no trial can reach its last epoch:
        found out by the pace of the first one's epochs."""
        budget, times = self._options.time_budget_s, [e["at_s"] for e in trial.events if e["kind"] == "evaluation"]
        waits = self._options.scheduler == "pbt"  # for the others of its population
        if budget is None or len(times) != 3 or waits or any(t.status == "completed"
                                                             for t in self._search.trials.values()):
            return None
        needs = (times[-1] - times[0]) / (trial.evaluations[2]["epoch"] - trial.evaluations[0]["epoch"]
                                          or 1) * self._search.epochs
        if needs <= budget:
            return None
        return (f"--time-budget {self._options.time_budget}: one trial of {self._search.epochs} epochs takes about "
                f"{duration(needs)}: pass a longer budget, to go on from here, or fewer --train.epochs with another "
                "--run.name")
