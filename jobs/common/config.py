"""Contract 1: a job's configuration is frozen dataclasses, parsed by tyro from `--config FILE.yaml` and then flags.

The YAML's scalars become flags placed before the user's, so one parser checks everything. Each field has a type, a
default and a docstring with its unit; values are checked at construction, and a wrong one is a ConfigError that names
the field, the value and the remedy. A resolved config, saved beside a run, is a valid `--config`.
"""

import contextlib
import dataclasses
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeVar

import yaml

from cluster.core.documents import JsonObject
from cluster.core.errors import ConfigError
from jobs.common.command_line import (
    Overrides,
    flags_of,
    parse_flags,
    recipe_flags,
    refuse_secrets,
    split_recipe,
)

Layout = Literal["auto", "splits", "one"]
ClassFolder = Literal["auto", "outer", "inner"]
PREPARED_FOLDER, MODELS_FOLDER, COMPARISONS_FOLDER, GATES_FOLDER, USES_FOLDER = NO_RUNS = (
    "data", "mlartifacts", "comparisons", "gates", "uses")
DATABASE_FILE, INDEX_FILE, INDEX_RECORD = "mlflow.db", "index.html", "index.json"
"""What a storage has beside runs (with what its models were used for); others begin with `.`, as no run's name."""
_MANY_PIECES, _SMALL_PIECE = 16, 8e6

C = TypeVar("C", bound="Config")


def require(condition: bool, field_name: str, value: object, remedy: str) -> None:
    """Raises: ConfigError naming field, value and remedy, if the condition does not hold."""
    if not condition:
        raise ConfigError(f"--{field_name.replace('_', '-')} {value}: {remedy}")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where and how a run is carried out; nothing here but the seed changes what is computed."""

    name: str = "run"
    """The run's name. The same name in the same storage continues the run."""
    storage: str = "~/trainyard"
    """Folder, s3:// or gs:// that every node can write; a run lies in STORAGE/NAME."""
    workers: str = "1"
    """Number of workers: N, or MIN:MAX to grow and shrink with the cluster. The most is fixed when a run is created."""
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
    """Most steps that a failure may cost; `auto` keeps the cost of checkpoints under about 2% of the time, or, where it
    is known how often the run fails, loses the least time to checkpoints and failures together."""
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

    def __post_init__(self) -> None:
        require(bool(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", self.name)), "run.name", repr(self.name),
                "use 1 to 63 letters, digits, '.', '_' and '-', beginning with a letter or digit")
        taken = self.name in (*NO_RUNS, INDEX_FILE, INDEX_RECORD) or self.name.startswith(DATABASE_FILE)  # its journal
        require(not taken, "run.name", self.name, "a storage has a thing of its own under that name: use another")
        require(bool(re.fullmatch(r"\d+(:\d+)?", self.workers)), "run.workers", self.workers, "use N or MIN:MAX")
        require(1 <= self.min_workers <= self.max_workers <= 65536, "run.workers", self.workers,
                "needs 1 <= MIN <= MAX <= 65536")
        require(self.experiment != "", "run.experiment", "''", "name an experiment, or leave the option out")
        require(self.cpus_per_worker >= 1, "run.cpus_per_worker", self.cpus_per_worker, "must be at least 1")
        require(self.gpus_per_worker in (0, 1), "run.gpus_per_worker", self.gpus_per_worker, "must be 0 or 1")
        require(self.price is None or 0 <= self.price < 1e9, "run.price", self.price, "must be 0 or more for an hour")
        require(self.spares >= 0, "run.spares", self.spares, "must be 0 or more")
        require(self.seed >= 0, "run.seed", self.seed, "must be 0 or more")
        require(self.max_failures >= -1, "run.max_failures", self.max_failures, "must be -1 (no limit) or more")
        require(self.checkpoint_every_steps == "auto" or self.checkpoint_every_steps >= 1, "run.checkpoint_every_steps",
                self.checkpoint_every_steps, "must be `auto` or at least 1")
        require(self.mtbf_h is None or self.mtbf_h > 0, "run.mtbf_h", self.mtbf_h, "must be more than 0 hours")
        require(self.check_weights_every_steps >= 0, "run.check_weights_every_steps", self.check_weights_every_steps,
                "must be 0 (never) or more")
        require(self.keep_checkpoints >= 1, "run.keep_checkpoints", self.keep_checkpoints, "must be at least 1")
        require(self.wait >= 0, "run.wait", self.wait, "must be 0 or more seconds")
        require(self.hang_timeout_s > 0, "run.hang_timeout_s", self.hang_timeout_s, "must be more than 0 seconds")
        require(self.storage_timeout_s > 0, "run.storage_timeout_s", self.storage_timeout_s, "must be more than 0 s")

    @property
    def min_workers(self) -> int:
        return int(self.workers.split(":")[0])

    @property
    def max_workers(self) -> int:
        """V, the number of canonical shards of a run that is created with this config."""
        return int(self.workers.split(":")[-1])


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the data comes from, and how it is split and read."""

    uri: str = "digits"
    """`digits` (embedded), or a path or URI: see the job's README for the formats."""
    val_uri: str | None = None
    """Validation data, where the source has a split of its own; by default it is split off."""
    test_uri: str | None = None
    """Test data, where the source has a split of its own; by default it is split off."""
    label_column: str = "label"
    """Name of the column with the class."""
    label_names: str | None = None
    """What classes are called, by what the column has: `0=negative,1=positive`."""
    layout: Layout = "auto"
    """What it means that files or folders are named after splits: `splits` they are these, and others are left out;
    `one` nothing, all rows are split here; `auto` as `splits` if all are, refused if only some are."""
    duplicates: Literal["keep", "drop"] = "keep"
    """What becomes of rows with the content of an earlier one of their split."""
    leaks: Literal["report", "drop", "refuse"] = "report"
    """What becomes of rows whose content is in another split, too: `drop` takes them out of training, or validation."""
    bad_rows: Literal["refuse", "skip"] = "refuse"
    """What becomes of pictures, and of rows of text, that cannot be read: `skip` leaves them out and lists them."""
    bad_rows_most: float = 0.01
    """With `skip`: the largest share of the rows that may be left out so."""
    piece_mb: float = 64.0
    """Of a source's files, in 10^6 bytes: what one task prepares at most; of a small source a sixteenth, or 8 MB."""
    check: bool = False
    """Prepares the data, says what it found, keeps nothing of it, and begins no run."""
    split_seed: int = 0
    """Seeds the split into training, validation and test rows; nothing else does."""
    shuffle_window_rows: int = 65536
    """Rows of a shard that are shuffled together, which bounds a worker's memory."""
    cache_dir: str | None = None
    """Node-local folder for data in use; by default under the system's temporary folder."""
    cache_gb: float = 10.0
    """Most disk, in 10^9 bytes, that the node-local cache may take."""

    def __post_init__(self) -> None:
        require(bool(self.uri), "data.uri", repr(self.uri), "name a path, a URI or `digits`")
        require(self.split_seed >= 0, "data.split_seed", self.split_seed, "must be 0 or more")
        require(self.piece_mb > 0, "data.piece_mb", self.piece_mb, "must be more than 0")
        require(0 <= self.bad_rows_most < 1, "data.bad_rows_most", self.bad_rows_most, "must be at least 0 and below 1")
        require(self.shuffle_window_rows >= 1, "data.shuffle_window_rows", self.shuffle_window_rows,
                "must be at least 1")
        require(self.cache_gb > 0, "data.cache_gb", self.cache_gb, "must be more than 0")

    decisive_choices: ClassVar[tuple[str, ...]] = ("layout", "duplicates", "leaks", "bad_rows", "label_names")
    """Fields that decide what is prepared, where they are not as by default."""

    @property
    def choices(self) -> list[str]:
        """What was chosen of these, for the key of prepared data."""
        defaults = {each.name: each.default for each in dataclasses.fields(self)}
        chosen = {name: getattr(self, name) for name in self.decisive_choices}
        return [f"{name} {value}" for name, value in chosen.items() if value != defaults[name]]

    def piece_bytes(self, total: int) -> int:
        """Of a source of so many bytes, what a piece has at most: such that there is work for a cluster."""
        return max(1, int(min(self.piece_mb * 1e6, max(_SMALL_PIECE, total / _MANY_PIECES))))


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

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, "eval.batch_size", self.batch_size, "must be at least 1")
        require(self.top_k >= 1, "eval.top_k", self.top_k, "must be at least 1")
        require(self.bootstrap_samples >= 100, "eval.bootstrap_samples", self.bootstrap_samples, "must be at least 100")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, and in what batches."""

    epochs: int = 60
    """Passes over the training rows."""
    max_steps: int | None = None
    """Ends training after this many steps, if sooner."""
    global_batch_size: int = 60
    """Rows of one optimiser step over all workers; a multiple of the most workers."""
    max_rows_per_pass: int | None = None
    """Most rows in one forward pass: a larger micro-batch is cut, and its gradients accumulated."""
    early_stopping_epochs: int | None = None
    """Stops when the validation metric has not improved for this many epochs."""
    max_skipped_steps: int = 3
    """Steps in a row with a non-finite loss or gradient that are skipped before going back to a checkpoint."""

    def __post_init__(self) -> None:
        require(self.epochs >= 1, "train.epochs", self.epochs, "must be at least 1")
        require(self.max_steps is None or self.max_steps >= 1, "train.max_steps", self.max_steps, "must be at least 1")
        require(self.global_batch_size >= 1, "train.global_batch_size", self.global_batch_size, "must be at least 1")
        require(self.max_rows_per_pass is None or self.max_rows_per_pass >= 1, "train.max_rows_per_pass",
                self.max_rows_per_pass, "must be at least 1")
        require(self.early_stopping_epochs is None or self.early_stopping_epochs >= 1, "train.early_stopping_epochs",
                self.early_stopping_epochs, "must be at least 1")
        require(self.max_skipped_steps >= 1, "train.max_skipped_steps", self.max_skipped_steps, "must be at least 1")

    def total_steps(self, steps_per_epoch: int) -> int:
        """The steps of a whole run."""
        return min(self.epochs * steps_per_epoch, self.max_steps or 2**62)


@dataclass(frozen=True, kw_only=True)
class Config:
    """The groups that every job has; a job adds its own."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self) -> None:
        refuse_secrets(to_dict(self))
        batch, shards = self.train.global_batch_size, self.run.max_workers
        nearest = max(shards, round(batch / shards) * shards)
        require(batch % shards == 0, "train.global_batch_size", batch,
                f"must be a multiple of the most workers ({shards}): the nearest is {nearest}")

    @property
    def metric(self) -> str:
        """Which validation metric chooses the best checkpoint: `accuracy` or `loss`."""
        return self.eval.metric


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
