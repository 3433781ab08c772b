"""Where the values of the next trial come from: Optuna's TPE, chance, or a grid.

A trial's values are a function of the seed, its number, and what the record holds of the trials before it, never of
what this process has drawn before: each is drawn by a sampler of its own. So a search that was killed goes on as if it
had not been, but for the time that this took: with several trials at a time others may have ended by then.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

import numpy as np

from cluster.core.documents import JsonObject
from tuning.journal import Trial
from tuning.objective import Goal
from tuning.parameter import label
from tuning.space import Space, Values

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

T = TypeVar("T")

_FAR = 1e30
"""How far beyond a bound a metric counts that is not a number."""


class Sampler(Protocol):
    """Trials are begun in the order of their numbers."""

    most: int | None
    """How many trials there can be; None: any number."""

    def suggest(self, number: int) -> Values: ...

    def begun(self, trial: Trial) -> None:
        """Of an earlier start of the search: what `suggest` gave then, and what became of it so far."""
        ...

    def ended(self, trial: Trial) -> None: ...


class Grid:
    """Every combination of values, one after the other."""

    def __init__(self, space: Space, base: Values) -> None:
        self._points = space.grid(base)
        self.most: int | None = len(self._points)

    def suggest(self, number: int) -> Values:
        return self._points[number]

    def begun(self, trial: Trial) -> None:
        pass

    def ended(self, trial: Trial) -> None:
        pass


class OptunaSampler:
    """Optuna's samplers, over a study that lives in memory and is built again from the trials."""

    most: int | None = None

    def __init__(self, kind: Literal["optuna", "random"], space: Space, base: Values, goal: Goal, seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._kind, self._space, self._base, self._goal, self._seed = kind, space, base, goal, seed
        self._conditional = any(parameter.when for parameter in space.parameters.values())
        self.study = optuna.create_study(directions=["maximize" if way == "max" else "minimize"
                                                     for way in goal.metrics.values()])

    def suggest(self, number: int) -> Values:
        self.study.sampler = self._sampler(number)
        trial = self.study.ask()
        assert trial.number == number
        return self._space.suggest(trial, self._base)

    def begun(self, trial: Trial) -> None:
        from optuna.trial import TrialState, create_trial

        known = ReplayTrial(trial.values)
        self._space.suggest(known, self._base)
        self.study.add_trial(create_trial(state=TrialState.RUNNING, params=known.params,
                                          distributions=known.distributions))
        if trial.status != "running":
            self.ended(trial)

    def ended(self, trial: Trial) -> None:
        from optuna.trial import Trial as OptunaTrial
        from optuna.trial import TrialState

        # a study of its own in memory, in which a trial's number is its id
        mine = OptunaTrial(self.study, trial.number)
        row = self._goal.best_row(trial)
        if trial.status == "failed" or row is None:
            self.study.tell(mine, state=TrialState.FAIL)
            return
        for constraint in self._goal.constraints:
            excess = constraint.excess(row)
            mine.set_constraint(str(constraint), excess if math.isfinite(excess) else _FAR)
        if trial.status == "completed":
            self.study.tell(mine, [float(row[name]) for name in self._goal.metrics])
            return
        for each in trial.evaluations:
            mine.report(float(each[self._goal.first]), int(each["epoch"]))
        self.study.tell(mine, state=TrialState.PRUNED)

    def _sampler(self, number: int) -> "BaseSampler":
        from optuna.samplers import RandomSampler, TPESampler

        seed = int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0])
        if self._kind == "random":
            return RandomSampler(seed=seed)
        with warnings.catch_warnings():
            # `group` is called experimental: it draws conditional parameters together too
            warnings.simplefilter("ignore")
            return TPESampler(seed=seed, group=self._conditional and len(self._goal.metrics) == 1)


class ReplayTrial:
    """Gives known values back, and keeps the distributions that they were drawn from."""

    def __init__(self, values: Values) -> None:
        from optuna import distributions

        self._values: JsonObject = values
        self._kinds = distributions
        self.params: Values = {}
        self.distributions: dict[str, BaseDistribution] = {}

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None,
                      log: bool = False) -> float:
        return self._keep(name, self._values[name], self._kinds.FloatDistribution(low, high, log=log, step=step))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        return self._keep(name, self._values[name], self._kinds.IntDistribution(low, high, log=log, step=step))

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> str:
        return self._keep(name, label(self._values[name]), self._kinds.CategoricalDistribution(choices))

    def _keep(self, name: str, value: T, distribution: "BaseDistribution") -> T:
        self.params[name], self.distributions[name] = value, distribution
        return value


def sampler_of(kind: Literal["optuna", "random", "grid"], space: Space, base: Values, goal: Goal, seed: int) -> Sampler:
    """base: the config that trials have in common, flat. Raises: ConfigError for a grid without an end."""
    return Grid(space, base) if kind == "grid" else OptunaSampler(kind, space, base, goal, seed)
