"""What a search is told on its command line: its own options, and all of the job's,
which are the same for every trial."""

import dataclasses
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal

from jobs.common.config import C, Config, RunConfig, require
from jobs.common.formatting import seconds_in


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How a search goes about it."""

    num_trials: int = 30
    """Most trials; with `--scheduler pbt` the size of the population."""
    search: Literal["optuna", "random", "grid"] = "optuna"
    """Where a trial's values come from: `optuna` learns from the trials before (TPE)."""
    scheduler: Literal["asha", "median", "pbt", "none"] = "asha"
    """What ends a trial early: `asha` and `median`, or moves it beside a better one: `pbt`."""
    space: str | None = None
    """YAML file with the fields to search and their distributions, instead of the job's own."""
    fix: tuple[str, ...] = ()
    """Fields of the space that are not searched: FIELD=VALUE, such as optim.lr=3e-4."""
    objective: tuple[str, ...] = ()
    """Metrics to look for, the first one decides; by default what `eval.metric` says. Two or more: a Pareto front."""
    constraint: tuple[str, ...] = ()
    """What a trial must keep to be the best, such as "parameters<=100000"."""
    time_budget: str | None = None
    """Ends the search after this time, such as 90s, 10m or 2h."""
    epoch_budget: int | None = None
    """Ends the search after this many epochs, counted over all trials."""
    max_concurrent: int | None = None
    """Most trials at a time; by default as many as the cluster has resources for."""
    grace_epochs: int = 1
    """Epochs that `asha` and `median` let every trial have."""
    reduction_factor: int = 3
    """Of `asha`: of the trials that reach a rung, the best one in so many goes on, to so many times the epochs."""
    perturb_every_epochs: int = 5
    """Of `pbt`: epochs after which the worst quarter goes on from weights of the best quarter,
    with values near theirs."""
    then_train: int = 0
    """After the search, trains the best config with so many seeds on all its epochs, and registers the best of them."""

    def __post_init__(self) -> None:
        getattr(super(), "__post_init__")()  # noqa: B009  (the job's config, with which it is combined below)
        require(self.num_trials >= 1, "num_trials", self.num_trials, "must be at least 1")
        require(self.scheduler != "pbt" or self.num_trials >= 4, "num_trials", self.num_trials,
                "a population has at least 4 members")
        require(self.scheduler != "pbt" or self.search == "random", "search", self.search,
                "a population begins with values at random and learns by itself: pass --search random")
        require(self.scheduler == "none" or len(self.objective) < 2, "scheduler", self.scheduler,
                "who is behind cannot be told where there are several objectives: pass --scheduler none")
        require(self.time_budget is None or self.time_budget_s is not None, "time_budget", self.time_budget,
                "write 90s, 10m or 2h")
        require(self.epoch_budget is None or self.epoch_budget >= 1, "epoch_budget", self.epoch_budget,
                "must be at least 1")
        for name in ("max_concurrent", "grace_epochs", "perturb_every_epochs"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "must be at least 1")
        require(self.reduction_factor >= 2, "reduction_factor", self.reduction_factor, "must be at least 2")
        require(self.then_train >= 0, "then_train", self.then_train, "must be 0 or more")

    @property
    def time_budget_s(self) -> float | None:
        return seconds_in(self.time_budget or "")


OWN = tuple(each.name for each in dataclasses.fields(SearchOptions))
MAY_CHANGE = ("num_trials", "time_budget", "epoch_budget", "max_concurrent", "then_train", "space", "fix")
"""Between the starts of one search. What --space and --fix make of the space is compared by itself."""


@cache
def combined(config_type: type[Config]) -> type[Any]:
    """The options and a job's config as one class: one parser, one check, one --help."""
    run = field(default_factory=lambda: RunConfig(name="search"))
    body = {"__annotations__": {"run": RunConfig}, "run": run,
            "__doc__": f"Searches a space. The trials: {config_type.__doc__}"}
    return dataclass(frozen=True,
                     kw_only=True)(type(f"Search{config_type.__name__}", (SearchOptions, config_type), body))


def base_config(options: SearchOptions, config_type: type[C]) -> C:
    """The config that trials have in common."""
    return config_type(**{each.name: getattr(options, each.name) for each in dataclasses.fields(config_type)})


def in_folder(config: C, *, storage: str, name: str) -> C:
    """The config of a run of the search's own."""
    return replace(config, run=replace(config.run, storage=storage, name=name, resume="auto"))
