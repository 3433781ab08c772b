"""Figures that a user's class declares: functions of true values and predictions, over all rows of a split."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from cluster.core.errors import ConfigError
from jobs.common.arrays import Array
from jobs.common.declared_metrics import Values
from jobs.common.own_code import OwnModel, called
from jobs.common.training.context import TrainContext
from jobs.common.training.job import TrainingResult
from jobs.common.training.predictions import Predictions
from jobs.common.training.trainable import Answers


def own_figures(context: TrainContext, own: OwnModel, key: str, answers: Callable[[], Iterable[Answers]]) \
        -> dict[str, float]:
    """By name, the same on every worker: each gathers what all have predicted, since such figures cannot be added up.

    key: another one for each call in a generation. answers: of this worker's share. Raises: ConfigError, PeerLostError.
    """
    if not own.metric_functions:
        return {}
    shares: Sequence[list[Answers]] = context.all_gather(f"own metrics {key}", list(answers()))
    return figures_of(own, Predictions.joined([answers for share in shares for answers in share]))


def figures_of(own: OwnModel, share: Predictions) -> dict[str, float]:
    """Of all rows of a split; NaN, too. Raises: ConfigError for what a function raises, or gives that is no number."""
    order = np.argsort(share.row_ids, kind="stable")
    true, predicted = _flat(share.labels[order]), _flat(share.probabilities[order])
    found: dict[str, float] = {}
    for name, function in own.metric_functions.items():
        value = called(f"--model.build {own.name}: metric {name}", function, true, predicted)
        try:
            found[name] = float(value)
        except (TypeError, ValueError):
            raise ConfigError(f"--model.build {own.name}: metric {name} gives {type(value).__name__}: it must give a "
                              "number") from None
    return found


def with_own(trained: TrainingResult, own: OwnModel, metrics: Mapping[str, Values]) -> dict[str, Values]:
    """The figures of each split with those that a user's class declares, but for what is not finite: a manifest holds
    no NaN. Raises: ConfigError."""
    found = {split: figures_of(own, trained.predictions(split)) for split in metrics}
    return {split: {**values, **{name: value for name, value in found[split].items() if math.isfinite(value)}}
            for split, values in metrics.items()}


def _flat(values: Array) -> Array:
    """(rows,) of (rows, 1): functions of others expect it."""
    return values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
