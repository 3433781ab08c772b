"""Judging a classifier of images: what `judge` finds of any classifier, its worst mistakes,
and what drift is measured from."""

from dataclasses import replace

import numpy as np

from jobs.common.artifact.drift_reference import Reference, answer_features
from jobs.common.evaluation.classification import judge, probe_rows
from jobs.common.evaluation.metrics import Mistakes, worst_mistakes
from jobs.common.training.job import EvaluationResult, TrainingResult
from jobs.common.training.predictions import Predictions
from jobs.common.vision.dataset import ImageFacts
from jobs.common.vision.features import image_features

REFERENCE_ROWS = 5000
_PART_BYTES = 32 << 20


def judge_images(trained: TrainingResult) -> EvaluationResult:
    """As `judge`, with the images that were wrong with the greatest confidence, and what drift is measured from."""
    first = np.arange(probe_rows(trained))
    verdict = judge(trained, {"image": trained.rows("test", first)["image"]}, first)
    test = trained.predictions("test")
    worst = worst_mistakes(test.probabilities, test.labels)
    said = test.probabilities[worst].argmax(1)
    mistakes = Mistakes(images=trained.rows("test", worst)["image"], labels=test.labels[worst], predictions=said,
                        confidences=test.probabilities[worst, said])
    return replace(verdict, mistakes=mistakes, reference=_image_reference(trained, test))


def _image_reference(trained: TrainingResult, test: Predictions) -> Reference | None:
    """Of at most 5,000 test rows, spread evenly over the split, read some at a time."""
    rows, mean = trained.dataset.splits["test"].num_rows, ImageFacts.of(trained.dataset).mean
    positions = np.unique(np.linspace(0, rows - 1, min(REFERENCE_ROWS, rows)).astype(np.int64))
    parts = np.array_split(positions, -(-len(positions) * trained.dataset.row_bytes // _PART_BYTES))
    found = [image_features(trained.rows("test", part)["image"], mean) for part in parts]
    columns = {name: np.concatenate([each[name] for each in found]) for name in found[0]}
    answered = test.probabilities[positions]
    return Reference.of({**columns, **answer_features({"probabilities": answered})}, answered.shape[1])
