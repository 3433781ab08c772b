"""Contract 1: a job's configuration is frozen dataclasses, parsed by tyro from `--config FILE.yaml` and then flags.

The YAML's scalars become flags placed before the user's, so one parser checks everything. Each field has a type, a
default and a docstring with its unit; values are checked at construction, and a wrong one is a ConfigError that names
the field, the value and the remedy. A resolved config, saved beside a run, is a valid `--config`.
"""

import contextlib
import dataclasses
import itertools
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeVar

import yaml

from cluster.core.documents import JsonObject
from cluster.core.errors import ConfigError
from jobs.common.command_line import Overrides, flags_of, parse_flags, recipe_flags, refuse_secrets, split_recipe
from jobs.common.config_groups.data import DataConfig
from jobs.common.config_groups.fields import OnResume, require
from jobs.common.config_groups.train import TrainConfig
from jobs.common.formatting import seconds_in

PREPARED_FOLDER, MODELS_FOLDER, COMPARISONS_FOLDER, GATES_FOLDER, USES_FOLDER = NO_RUNS = (
    "data", "mlartifacts", "comparisons", "gates", "uses")
DATABASE_FILE, INDEX_FILE, INDEX_RECORD = "mlflow.db", "index.html", "index.json"
"""What a storage has beside runs (with what its models were used for); others begin with `.`, as no run's name."""
_RANGES, _MOST_PROFILED = r"\d+(-\d+)?(,\d+(-\d+)?)*", 1000

C = TypeVar("C", bound="Config")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where and how a run is carried out; nothing here but the seed and `exact` changes what is computed."""

    name: str = "run"
    """The run's name. The same name in the same storage continues the run; with more steps, also one that is done."""
    storage: str = "~/trainyard"
    """Folder, s3:// or gs:// that every node can write; a run lies in STORAGE/NAME."""
    workers: str = "1"
    """Number of workers: N, or MIN:MAX to grow and shrink with the cluster. The most is fixed when a run is created."""
    num_shards: int | None = None
    """How many shards the training rows are dealt to: the most workers that the run may ever have. By default those of
    `--run.workers` that it is created with."""
    exact: Literal["same-workers", "any-workers"] = "same-workers"
    """`same-workers`: a run that goes on with as many workers ends with the same bits. `any-workers`: it does with any
    number of them, from 1 to the number of shards."""
    cpus_per_worker: int = 1
    """CPU cores, and compute threads, for each worker."""
    gpus_per_worker: int = 0
    """GPUs for each worker: 0 or 1."""
    engine: Literal["ray", "local"] = "ray"
    """`ray`: on the cluster. `local`: processes on this machine, without Ray."""
    address: str | None = None
    """Ray cluster to join; by default RAY_ADDRESS, else a cluster is started on this machine."""
    seed: int = 0
    """Seeds initial weights, order, augmentation and dropout."""
    max_failures: int = 3
    """How many times the workers may die before the run fails; -1: no limit."""
    spares: int = 0
    """More workers than are needed, loaded and waiting: one takes a dead one's place at once. Each holds resources."""
    checkpoint_every_steps: int | Literal["auto"] = "auto"
    """Most steps that a failure may cost which leaves no worker to go on from; `auto` keeps the cost of checkpoints
    under about 2% of the time, or, where it is known how often the run fails, loses the least time to checkpoints and
    failures together."""
    mtbf_h: float | None = None
    """Mean hours between failures of a node, for `auto`; by default what the run has seen, after three failures."""
    price: float | None = None
    """What a worker costs an hour, in any currency: the run's cost, and what failures lost of it, are in its report."""
    check_weights_every_steps: int = 1000
    """Compares the weights' hash over all workers after so many steps, and fails where one has others; 0: never."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints are kept, beside the best one."""
    resume: Literal["auto", "never"] = "auto"
    """`auto`: continue the run of this name. `never`: start a new attempt beside it, which loses nothing."""
    extend_from: str | None = None
    """Goes on with a finished run (its name, or folder) for more steps, under this name: weights, moments, place."""
    wait: float = 60.0
    """Seconds to wait for resources that the cluster can have but has not now."""
    hang_timeout_s: float = 30.0
    """A worker that makes no step for this many seconds, or 10 median steps if longer, is taken to hang."""
    storage_timeout_s: float = 600.0
    """Storage that a worker waits for, and that takes and gives nothing for this many seconds, is taken to hang. Once a
    stop is asked for, `hang_timeout_s` is enough."""
    trace_rows: bool = False
    """Writes the ids of the rows of every step to logs/rows/, to prove what a run consumed (local storage only)."""
    tracking_uri: str | None = None
    """MLflow server; by default SQLite in a local storage. `none` turns tracking off."""
    experiment: str | None = None
    """MLflow experiment that the run is in; by default the job's name. The registered model has the run's name."""
    tensorboard: bool = False
    """Writes event files for TensorBoard to the run's folder `tensorboard`."""
    profile: str | None = None
    """Steps, counted from 1, that the framework's profiler watches: `10-20`, or `10-12,100-102`. The result is the
    same; these steps take longer. Traces are in the run's folder `profile`, their operations in its report."""
    profile_ranks: str = "0"
    """The ranks whose steps it watches: `0`, or `0,1`."""

    def __post_init__(self) -> None:
        require(bool(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", self.name)), "run.name", repr(self.name),
                "use 1 to 63 letters, digits, '.', '_' and '-', beginning with a letter or digit")
        taken = self.name in (*NO_RUNS, INDEX_FILE, INDEX_RECORD) or self.name.startswith(DATABASE_FILE)  # its journal
        require(not taken, "run.name", self.name, "a storage has a thing of its own under that name: use another")
        require(bool(re.fullmatch(r"\d+(:\d+)?", self.workers)), "run.workers", self.workers, "use N or MIN:MAX")
        require(1 <= self.min_workers <= self.max_workers <= 65536, "run.workers", self.workers,
                "needs 1 <= MIN <= MAX <= 65536")
        require(self.num_shards is None or self.max_workers <= self.num_shards <= 65536, "run.num_shards",
                self.num_shards, f"must be at least the most workers ({self.max_workers}), and at most 65536")
        require(self.experiment != "", "run.experiment", "''", "name an experiment, or leave the option out")
        require(self.cpus_per_worker >= 1, "run.cpus_per_worker", self.cpus_per_worker, "must be at least 1")
        require(self.gpus_per_worker in (0, 1), "run.gpus_per_worker", self.gpus_per_worker, "must be 0 or 1")
        require(self.price is None or 0 <= self.price < 1e9, "run.price", self.price, "must be 0 or more for an hour")
        for name in ("spares", "seed", "wait", "check_weights_every_steps"):
            require(getattr(self, name) >= 0, f"run.{name}", getattr(self, name), "must be 0 or more")
        require(self.max_failures >= -1, "run.max_failures", self.max_failures, "must be -1 (no limit) or more")
        require(self.checkpoint_every_steps == "auto" or self.checkpoint_every_steps >= 1, "run.checkpoint_every_steps",
                self.checkpoint_every_steps, "must be `auto` or at least 1")
        require(self.mtbf_h is None or self.mtbf_h > 0, "run.mtbf_h", self.mtbf_h, "must be more than 0 hours")
        require(self.keep_checkpoints >= 1, "run.keep_checkpoints", self.keep_checkpoints, "must be at least 1")
        require(self.hang_timeout_s > 0, "run.hang_timeout_s", self.hang_timeout_s, "must be more than 0 seconds")
        require(self.storage_timeout_s > 0, "run.storage_timeout_s", self.storage_timeout_s, "must be more than 0 s")
        self._check_profile()

    def _check_profile(self) -> None:
        given = self.profile is None or bool(re.fullmatch(_RANGES, self.profile))
        require(given, "run.profile", self.profile, "write steps as 10-20, or as 10-12,100-102")
        ranges = [range(1), *self.profiled]
        in_order = all(len(each) and before.stop <= each.start for before, each in itertools.pairwise(ranges))
        require(in_order, "run.profile", self.profile, "steps are counted from 1, and each is named once, in order")
        require(sum(map(len, self.profiled)) <= _MOST_PROFILED, "run.profile", self.profile,
                f"traces of more than {_MOST_PROFILED:,} steps are too large to be looked at: name fewer")
        require(bool(re.fullmatch(r"\d+(,\d+)*", self.profile_ranks)), "run.profile_ranks", self.profile_ranks,
                "write ranks as 0, or as 0,1")
        require(max(self.profiled_ranks) < self.max_workers, "run.profile_ranks", self.profile_ranks,
                f"the ranks of {self.max_workers} workers are 0 to {self.max_workers - 1}")

    @property
    def on_resume(self) -> dict[str, OnResume]:
        return {each.name: "free" for each in dataclasses.fields(self) if each.name not in ("seed", "exact")}

    @property
    def min_workers(self) -> int:
        return int(self.workers.split(":")[0])

    @property
    def max_workers(self) -> int:
        return int(self.workers.split(":")[-1])

    @property
    def shards(self) -> int:
        """V, the number of canonical shards of a run that is created with this config."""
        return self.num_shards or self.max_workers

    @property
    def profiled(self) -> list[range]:
        """The steps that are profiled, counted from 1."""
        found = [each.partition("-") for each in (self.profile or "").split(",") if each]
        return [range(int(first), int(last or first) + 1) for first, _, last in found]

    @property
    def profiled_ranks(self) -> list[int]:
        return [int(rank) for rank in self.profile_ranks.split(",")]


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """How a model is judged."""

    metric: Literal["accuracy", "loss"] = "accuracy"
    """Which validation metric chooses the best checkpoint and stops early."""
    batch_size: int = 1024
    """Rows per forward pass, per worker."""
    top_k: int = 3
    """k of the top-k accuracy."""
    bootstrap_samples: int = 1000
    """Resamplings for the confidence interval of the macro-F1."""
    extras_budget: str = "60s"
    """How long it may take to make what the report shows beyond the metrics, such as robustness and explanations; what
    does not fit in is left out, and named."""
    on_resume: ClassVar[dict[str, OnResume]] = {"batch_size": "rounds", "extras_budget": "free"}

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, "eval.batch_size", self.batch_size, "must be at least 1")
        require(self.top_k >= 1, "eval.top_k", self.top_k, "must be at least 1")
        require(self.bootstrap_samples >= 100, "eval.bootstrap_samples", self.bootstrap_samples, "must be at least 100")
        require(seconds_in(self.extras_budget) is not None, "eval.extras_budget", self.extras_budget,
                "write 90s, 10m or 2h; 0s leaves all out")

    @property
    def extras_budget_s(self) -> float:
        return seconds_in(self.extras_budget) or 0.0


@dataclass(frozen=True, kw_only=True)
class Config:
    """The groups that every job has; a job adds its own."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self) -> None:
        refuse_secrets(to_dict(self))
        batch, shards = self.train.global_batch_size, self.run.shards
        nearest = max(shards, round(batch / shards) * shards)
        require(batch % shards == 0, "train.global_batch_size", batch,
                f"must be a multiple of the {'most workers' if self.run.num_shards is None else 'number of shards'} "
                f"({shards}): the nearest is {nearest}")

    @property
    def metric(self) -> str:
        """Which validation metric chooses the best checkpoint: `accuracy` or `loss`."""
        return self.eval.metric

    @property
    def differs_by_pass(self) -> str:
        """What makes a step another one where its rows are cut into other passes; "" where rounding alone does."""
        return "what this job's model may draw or normalise in a pass"

    def less_memory(self, *, anew: bool) -> list[str]:
        """Options that need less memory, beside fewer rows in a pass: with which a run goes on, or another begins."""
        return ["a smaller model"] if anew else []


def parse(config_type: type[C], arguments: Sequence[str], prog: str) -> C:
    """The config that a command line asks for: the recipe's values first, then the user's flags.

    Raises: ConfigError, with the nearest known flag where one is unknown; SystemExit(0) after --help.
    """
    recipe, flags = split_recipe(list(arguments))
    return parse_flags(config_type, [*(recipe_flags(recipe) if recipe else []), *flags], prog)


def answer_help(config_type: type[Config], prog: str, arguments: Sequence[str] | None = None) -> None:
    """Ends the process where its command line asks for help, before anything is imported that only a run needs."""
    given = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & {*given}:
        with contextlib.suppress(ConfigError):  # of a recipe: the command itself says so
            parse(config_type, given, prog)


def from_dict(config_type: type[C], values: Overrides) -> C:
    """The config of a nested dict as `to_dict` gives, through the same parser. Raises: ConfigError."""
    return parse_flags(config_type, flags_of("", values), "config")


def to_dict(config: Config) -> JsonObject:
    """Nested plain values, fit for YAML and JSON."""
    return dataclasses.asdict(config)


def to_yaml(config: Config) -> str:
    """A file that is a valid `--config`."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)
