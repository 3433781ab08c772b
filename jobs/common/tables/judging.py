"""Judging a model of tables: of classes as any classifier, of numbers by their errors."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from cluster.core.errors import TrainingFailedError
from jobs.common.arrays import Array
from jobs.common.artifact.artifact import Probe
from jobs.common.artifact.drift_reference import Reference, answer_features
from jobs.common.data.dataset import SPLITS
from jobs.common.declared_metrics import Metric, Values, classification
from jobs.common.evaluation.classification import judge
from jobs.common.evaluation.own_metrics import with_own
from jobs.common.evaluation.regression import regression
from jobs.common.tables.config import TableConfig
from jobs.common.tables.info import TableInfo
from jobs.common.training.job import EvaluationResult, TrainingResult
from jobs.common.training.predictions import Predictions

REFERENCE_ROWS = 5000
NUMBERS = (Metric("rmse", "min", "RMSE", primary=True, while_training="rmse"),
           Metric("mae", "min", "mean absolute error", while_training="mae"),
           Metric("r2", "max", "R²", while_training="r2"),
           Metric("median_error", "min", "median absolute error"),
           Metric("coverage", "max", "share within 0.1 and 0.9 quantile"))
LOSS = Metric("loss", "min", "loss", while_training="loss")
"""What training lowers, of either kind of target."""


def metrics(config: TableConfig) -> Sequence[Metric]:
    """Of both kinds of target: which one it is the data says."""
    classes = [replace(each, while_training="") if each.name == "log_loss" else each
               for each in classification(config.eval.top_k)]
    return [*NUMBERS, *classes, *(config.own.metrics if config.own else ()), LOSS]


def judge_table(trained: TrainingResult) -> EvaluationResult:
    """Raises: TrainingFailedError if a prediction is not finite."""
    info = TableInfo.of(trained.dataset, trained.config.model)
    places = np.array(trained.dataset.details["_examples"]["places"])
    inputs = request(info, trained.dataset.details["_examples"]["rows"])
    if info.class_names:
        found = judge(trained, inputs, places)
        metrics = {split: {**values, "loss": values["log_loss"]} for split, values in found.metrics.items()}
        verdict = replace(found, metrics=metrics)
    else:
        verdict = _judge_numbers(trained, info, inputs, places)
    if own := trained.config.own:
        kept = {split: {name: value for name, value in values.items() if name != "loss" or not own.method("loss")}
                for split, values in verdict.metrics.items()}  # a loss of the whole model the workers alone can compute
        verdict = replace(verdict, metrics=with_own(trained, own, kept))
    test = trained.predictions("test")
    outputs = answers(info, test.probabilities[places], np.zeros(len(places), np.int32))
    return replace(verdict, probe=Probe(inputs=inputs, outputs=outputs), reference=_reference(trained, info, test))


def request(info: TableInfo, rows: Sequence[Mapping[str, object]]) -> dict[str, Array]:
    """Rows as an endpoint is asked about them: each column by its name."""
    def column(name: str, datatype: str) -> Array:
        values = [row[name] for row in rows]
        if datatype == "FP64":
            return np.array([float(str(value)) for value in values])
        made = np.empty(len(values), object)
        made[:] = ["" if value is None else str(value) for value in values]
        return made

    return {field.name: column(field.name, field.spec.datatype) for field in info.schema.fields}


def answers(info: TableInfo, predicted: Array, unseen: Array) -> dict[str, Array]:
    """What an endpoint answers, by tensor. predicted: (rows, outputs). unseen: (rows,)."""
    if info.class_names:
        return {"probabilities": predicted.astype(np.float32), "unseen_values": unseen}
    numbers = predicted.astype(np.float64)
    quantiles = len(info.quantiles)
    ends = {"low": numbers[:, 0::quantiles], "high": numbers[:, quantiles - 1 :: quantiles]} if quantiles > 1 else {}
    return {"prediction": info.middle(numbers), **ends, "unseen_values": unseen}


def _judge_numbers(trained: TrainingResult, info: TableInfo, inputs: Mapping[str, Array], places: Array) \
        -> EvaluationResult:
    predicted = {split: trained.predictions(split) for split in SPLITS[1:] if trained.dataset.splits[split].num_rows}
    for split, share in predicted.items():
        if bad := int((~np.isfinite(share.probabilities)).any(axis=1).sum()):
            raise TrainingFailedError(
                f"the model's predictions for {bad} of {len(share.labels)} {split} rows are not finite: look at the "
                "loss for signs of divergence (--optim.lr)")
    samples = trained.config.eval.bootstrap_samples
    metrics = {split: number_metrics(info, share, samples) for split, share in predicted.items()}
    return EvaluationResult(metrics=metrics, probe=None)


def number_metrics(info: TableInfo, share: Predictions, samples: int) -> Values:
    """The figures of a split; of several targets their means, and each one's RMSE by name."""
    middle = info.middle(share.probabilities)
    found = regression(share.labels, middle, samples)
    if len(info.targets) > 1:
        found |= {f"rmse_of_{target.name}": float(np.sqrt(np.mean((middle[:, i] - share.labels[:, i]) ** 2)))
                  for i, target in enumerate(info.targets)}
    if len(info.quantiles) > 1:
        low, high = share.probabilities[:, 0 :: len(info.quantiles)], share.probabilities[:, 2 :: len(info.quantiles)]
        found["coverage"] = float(((low <= share.labels) & (share.labels <= high)).mean())
    return {**found, "loss": lowered(info, share)}


def lowered(info: TableInfo, share: Predictions) -> float:
    """What training lowers: the mean squared error of normalised targets, or with several quantiles the pinball loss
    (Koenker & Bassett 1978)."""
    std = np.array([target.std for target in info.targets])
    each = share.probabilities.reshape(len(share.labels), len(info.targets), -1)
    errors = (share.labels[:, :, None] - each) / std[None, :, None]
    if len(info.quantiles) == 1:
        return float((errors**2).mean())
    levels = np.array(info.quantiles)
    return float(np.maximum(levels * errors, (levels - 1) * errors).mean())


def _reference(trained: TrainingResult, info: TableInfo, test: Predictions) -> Reference | None:
    """Of at most 5,000 test rows, spread evenly over the split."""
    rows = trained.dataset.splits["test"].num_rows
    positions = np.unique(np.linspace(0, rows - 1, min(REFERENCE_ROWS, rows)).astype(np.int64))
    numbers, categories = info.inputs(trained.rows("test", positions))
    answered = answers(info, test.probabilities[positions], np.zeros(len(positions), np.int32))
    return Reference.of({**column_features(info, numbers, categories), **answer_features(answered)},
                        len(info.class_names))


def column_features(info: TableInfo, numbers: Array, categories: Array) -> dict[str, Array]:
    """What drift is measured of: each number that the model takes, and each category's code."""
    coded = [name for field in info.schema.fields for name in field.categories]
    return ({f"column {name}": numbers[:, i] for i, name in enumerate(info.schema.numbers)}
            | {f"column {name}": categories[:, i] for i, name in enumerate(coded)})
