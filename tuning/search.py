"""A search: which trial comes next, and what an evaluation means for it. Knows nothing of where trials run.

    next() ─► a trial begins, or goes on ─► evaluated(…) "continue" … "stopped" | "completed" ─► landed(…)
                        ▲                          failed(…) "retry" ─┘
                        └── after a restart: every trial that had not ended, then new ones

Each call that changes something is in the journal before it returns, and a search that is opened again has the same
trials, the same sampler and the same scheduler as if it had never been closed.
"""

from collections.abc import Mapping
from typing import Literal

from cluster.core.documents import JsonObject
from cluster.core.storage import Store
from jobs.common.command_line import flatten
from jobs.common.config import Config, to_dict
from tuning.journal import Journal, Trial
from tuning.objective import Goal
from tuning.options import SearchOptions
from tuning.sampler import sampler_of
from tuning.schedulers import Population, Stopping
from tuning.space import Space, Values

Decision = Literal["continue", "stopped", "completed"]


class Search:
    """See the module. `running`: numbers of the trials that were handed out and have not landed."""

    def __init__(self, journal: Journal, store: Store, options: SearchOptions, base: Config, space: Space,
                 pinned: Values,
                 goal: Goal) -> None:
        """store: the search's folder. base: the config that trials have in common.
        pinned: values for fields that are not searched.

        Raises: ConfigError for a grid without an end.
        """
        self.journal, self.goal, self.epochs, self.pinned = journal, goal, base.train.epochs, pinned
        self.running: set[int] = set()
        self._max_failures = base.run.max_failures
        self.flat_base = flatten(to_dict(base)) | pinned
        seed = base.run.seed
        self._sampler = sampler_of(options.search, space, self.flat_base, goal, seed)
        self._stopping = Stopping(options.scheduler, goal, epochs=self.epochs, grace_epochs=options.grace_epochs,
                                  reduction_factor=options.reduction_factor)
        self.num_trials = min(options.num_trials, self._sampler.most or options.num_trials)
        self._population = None if options.scheduler != "pbt" else Population(
            journal, store.child("trials"), goal, space, self.flat_base, size=self.num_trials, epochs=self.epochs,
            every=options.perturb_every_epochs, seed=seed)
        self._remember()

    def _remember(self) -> None:
        for number, event in self.journal.events():
            if event["kind"] == "evaluation":
                self._stopping.stops(number, event["row"])
        for number in sorted(self.trials):
            self._sampler.begun(self.trials[number])

    @property
    def trials(self) -> Mapping[int, Trial]:
        return self.journal.trials

    @property
    def left_out(self) -> int:
        """Points of a grid that --num-trials leaves out."""
        return (self._sampler.most or 0) - self.num_trials

    @property
    def epochs_done(self) -> int:
        return sum(trial.epoch for trial in self.trials.values())

    @property
    def over(self) -> bool:
        """Whether every trial that there is to be has ended."""
        return len(self.trials) >= self.num_trials and all(trial.status != "running" for trial in self.trials.values())

    def next(self) -> tuple[Trial, int] | None:
        """A trial to start, and the epoch after which it is to rest; None if there is none now."""
        until_epoch = self._population.until_epoch() if self._population else self.epochs
        for number in sorted(self.trials):
            trial = self.trials[number]
            if trial.status == "running" and number not in self.running and trial.paused < until_epoch:
                self.running.add(number)
                return trial, until_epoch
        if len(self.trials) >= self.num_trials:
            return None
        number = len(self.trials)
        trial = self.journal.add(number, kind="begun", values=self._sampler.suggest(number))
        self.running.add(number)
        return trial, until_epoch

    def evaluated(self, number: int, row: JsonObject) -> Decision:
        """An evaluation of a trial: whether it goes on. One that is known already changes nothing.
        Raises: ConfigError for one without a metric that is looked for."""
        trial = self.trials[number]
        if trial.status != "running":
            return "stopped"
        if trial.has(row["step"]):
            return "continue"
        self.goal.check(row)
        stops = self._stopping.stops(number, row)
        decision: Decision = "completed" if row["epoch"] >= self.epochs else "stopped" if stops else "continue"
        self._add(number, kind="evaluation", row=row, decision=decision)
        return decision

    def failed(self, number: int, message: str, *, fatal: bool = False) -> Literal["retry", "failed"]:
        """Something went wrong with a trial. fatal: it would again."""
        trial = self.journal.add(number, kind="failure", message=message)
        if fatal or 0 <= self._max_failures < len(trial.failures):
            self._add(number, kind="ended", status="failed")
            return "failed"
        return "retry"

    def finished(self, number: int) -> None:
        """A trial's run came to an end of its own before its last epoch."""
        if self.trials[number].status == "running":
            self._add(number, kind="ended", status="completed")

    def paused(self, number: int) -> None:
        """A trial's run has come as far as it was to, and its checkpoint is written."""
        if (trial := self.trials[number]).status == "running":
            self.journal.add(number, kind="rested", epoch=trial.epoch)

    def on_trial_slot_free(self, number: int) -> None:
        """A trial's process has let it go, ended or not."""
        self.running.discard(number)

    def _add(self, number: int, **event: object) -> None:
        """Writes what may end a trial. The sampler learns of an end at once: it knows what is in the record, no less,
        so a search that is opened again draws what this one would have drawn."""
        if (trial := self.journal.add(number, **event)).status != "running":
            self._sampler.ended(trial)
