"""Judging a classifier, whatever it classifies: from the workers' predictions to metrics, probe and summary."""

from collections.abc import Mapping

import numpy as np

from cluster.core.errors import TrainingFailedError
from jobs.common.arrays import Array
from jobs.common.artifact.artifact import Probe
from jobs.common.data.counter_rng import IntArray
from jobs.common.data.dataset import SPLITS
from jobs.common.evaluation.metrics import Evaluation, evaluate
from jobs.common.training.job import EvaluationResult, TrainingResult
from jobs.common.training.predictions import Predictions

PROBE_ROWS = 4


def judge(trained: TrainingResult, probe_inputs: Mapping[str, Array], probed: IntArray) -> EvaluationResult:
    """probe_inputs: some test rows as the artifact's input tensors. probed: their positions in the split.

    Raises: TrainingFailedError if a prediction is not finite.
    """
    predicted = {split: trained.predictions(split) for split in SPLITS[1:] if trained.dataset.splits[split].num_rows}
    require_finite(predicted)
    judged = {split: judge_split(trained, p) for split, p in predicted.items()}
    probe = Probe(inputs=probe_inputs, outputs={"probabilities": predicted["test"].probabilities[probed]})
    return EvaluationResult(metrics={split: e.scalars() for split, e in judged.items()}, probe=probe,
                            evaluations=judged)


def probe_rows(trained: TrainingResult) -> int:
    return min(PROBE_ROWS, trained.dataset.splits["test"].num_rows)


def judge_split(trained: TrainingResult, predicted: Predictions) -> Evaluation:
    how = trained.config.eval
    return evaluate(predicted.probabilities, predicted.labels, trained.dataset.class_names, top_k=how.top_k,
                    bootstrap_samples=how.bootstrap_samples)


def require_finite(predicted: Mapping[str, Predictions]) -> None:
    """Raises: TrainingFailedError, naming how many rows of which split."""
    for split, share in predicted.items():
        if bad := int((~np.isfinite(share.probabilities)).any(axis=1).sum()):
            raise TrainingFailedError(
                f"the model's predictions for {bad} of {len(share.labels)} {split} rows are not finite: look at these "
                "rows for extreme values, or at the loss for signs of divergence (--optim.lr)"
            )
