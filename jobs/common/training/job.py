"""What the common life cycle needs to know of a job, and what it hands to it when training has ended."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.core.errors import ConfigError
from cluster.core.storage import Store
from jobs.common.arrays import Array
from jobs.common.checkpoint.store import Checkpoint, Checkpoints
from jobs.common.config import Config
from jobs.common.data.dataset import Columns, Dataset, SplitName
from jobs.common.data.reader import Reader
from jobs.common.declared_metrics import Metric, classification
from jobs.common.extras import Extras
from jobs.common.training import predictions
from jobs.common.training.house import HOUSE
from jobs.common.training.predictions import Predictions


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What training has left: the job's functions below make of it what is handed over."""

    job: str
    """The name of the job, which the artifact's description states."""
    config: Any
    dataset: Dataset
    store: Store
    """The run's folder."""
    generation: str
    best: Checkpoint
    """The checkpoint that the model is."""
    extras: Extras = field(default_factory=Extras)
    """The budget for what the report shows beyond the metrics: `sections` asks `begins` before each thing."""

    @property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.store.child("checkpoints"))

    def predictions(self, name: str) -> Predictions:
        """What the workers wrote under a name: a split's, or a job's own."""
        return predictions.read(self.store, self.generation, name)

    def rows(self, split: SplitName, positions: Array) -> Columns:
        """Rows of a split."""
        reader = Reader.open(self.dataset, split, self.config.data)
        try:
            return reader.take(positions)
        finally:
            reader.close()


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """How good the model is."""

    metrics: Mapping[str, Mapping[str, float]]
    """By split: those that the job declares, and the ends of their intervals."""
    probe: Any
    """A few rows with the model's answers, for the artifact (`artifact.Probe`)."""
    evaluations: Mapping[str, Any] = field(default_factory=dict[str, object])
    """Of a classifier, by split (`evaluation.Evaluation`): what the report shows in full."""
    mistakes: Any = None
    """Of an image classifier, its worst (`Mistakes` of evaluation/metrics.py)."""
    reference: Any = None
    """What drift is measured from (`drift.Reference`), where it is."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job package, without its framework: `train` is loaded in the workers only."""

    package: str
    """The package that holds it, as Python imports it: `jobs.mlp`, or `my_package.churn` outside this repository."""
    config_type: type[Config]
    config_path: str
    """`module:name` of the config's class."""
    train: str
    """`module:name` of the function that trains in a worker, called with (TrainContext, config):
    it hands over to `fit`."""
    preload: Sequence[str] = ()
    """Modules that the local executor imports once for all its workers. None may start a thread when it is imported."""
    check: Callable[[Any], None]
    """Raises ConfigError for what the config alone cannot know: a package that is not installed."""
    prepare: Callable[..., Dataset]
    """(config, storage, use_ray=, say=) -> the prepared data."""
    judge: Callable[[TrainingResult], EvaluationResult]
    """Judges what the workers predicted with the best checkpoint. Raises: TrainingFailedError if that cannot be."""
    describe: Callable[[TrainingResult, EvaluationResult], Any]
    """The artifact's `Description`."""
    files: Callable[[TrainingResult], Mapping[str, Any]]
    """What the artifact holds, by path (`artifact.Content`): the weights, a tokenizer."""
    sections: Callable[[TrainingResult, EvaluationResult, Any], Sequence[Any]] | None = None
    """Of the job's own in the report (`report_page.Section`), from the artifact as it was written."""
    data_sections: Callable[[Any, Dataset], Sequence[Any]] | None = None
    """(config, prepared data) -> what data.html shows of this kind of data (`Section` of report/html.py)."""
    metrics: Callable[[Any], Sequence[Metric]] = lambda config: classification(config.eval.top_k)
    """config -> what its evaluations report, the most important first."""
    any_workers: bool = False
    """Whether its bits do not depend on the number of workers where `--run.exact any-workers` asks for that: it adds
    gradients up by shard, in the shards' order, and judges the rows of a part together."""

    @property
    def name(self) -> str:
        """What people, artifacts and metrics call it: `mlp` for `jobs.mlp`, and another package as it is."""
        return self.package.removeprefix(f"{HOUSE}.")


def require_any_workers(job: Job, config: Config) -> None:
    """Raises: ConfigError where it asks for bits that the job does not promise."""
    if config.run.exact == "any-workers" and not job.any_workers:
        raise ConfigError(f"--run.exact any-workers: {job.name} adds up what its workers have computed, not its shards "
                          "in their order, so that its bits depend on how many workers there are: leave the option out")


def require_package(module: str, extra: str) -> None:
    """Raises: ConfigError, naming the extra to install."""
    if importlib.util.find_spec(module) is None:
        raise ConfigError(f"this job needs the package {module}: pip install 'trainyard[{extra}]'")
