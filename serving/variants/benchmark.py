"""How good a model is on the very rows that it was tested on, and how quick:
its prepared data is known by its fingerprint."""

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from cluster.core.errors import ArtifactError, DataError, TrainyardError
from cluster.core.storage import Store
from jobs.common.arrays import Array
from jobs.common.artifact.artifact import Artifact, Probe
from jobs.common.config import PREPARED_FOLDER, Config, from_dict
from jobs.common.data.dataset import Dataset
from jobs.common.data.prepared import Say
from jobs.common.data.reader import Reader
from jobs.common.evaluation.metrics import evaluate
from jobs.common.predictor.predictor import Predictor
from jobs.common.training.find_job import find_job
from jobs.common.training.job import Job
from serving.model.replica import answers

BATCH_ROWS = 64
"""Of a full batch, as `python -m serving up` forms them."""
_FEWEST_TURNS = 5
_SAME = 0.01
"""How far a parent's metrics may be from those that its manifest states: other hardware,
or bfloat16 where it was judged."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """metrics: of the test split, as training gives them. probabilities: (rows, classes)."""

    metrics: Mapping[str, float]
    probabilities: Array


@dataclass(frozen=True, kw_only=True)
class Data:
    """The data that an artifact's model was trained and tested on."""

    dataset: Dataset
    config: Config
    column: str
    """What the predictor takes."""

    @staticmethod
    def of(artifact: Artifact, column: str, storage: Store, elsewhere: Mapping[str, str], say: Say) -> "Data":
        """The data as it is in the storage, or else prepared again by the manifest's config and its job,
        which is imported.

        elsewhere: fields of the config's `data` that are no longer right, such as its `uri`.
        Raises: DataError if it cannot be had, or is not the same.
        """
        about = artifact.manifest.description
        job = find_job(about.job)
        config = from_dict(job.config_type, about.config)
        config = replace(config, data=replace(config.data, **elsewhere))
        wanted = str(about.data["fingerprint"])
        dataset = _found(wanted, [storage, Store.open(config.run.storage)]) or _prepared(job, config, storage, say)
        if not dataset.has(wanted):
            raise DataError(f"data {config.data.uri!r} is not what {artifact.uri} was trained on (fingerprint "
                            f"{dataset.fingerprint[:12]}, not {wanted[:12]}), so nothing can be said of its test rows: "
                            "pass --data.uri with where that data is now")
        return Data(dataset=dataset, config=config, column=column)

    def training_rows(self, count: int) -> Array:
        """At most so many, spread evenly over the split."""
        total = self.dataset.splits["train"].num_rows
        with closing(Reader.open(self.dataset, "train", self.config.data)) as reader:
            return reader.take(np.linspace(0, total - 1, min(count, total)).astype(np.int64))[self.column]

    def judge(self, predictor: Predictor) -> Judged:
        """On every test row, once."""
        labels: list[Array] = []
        found: list[Array] = []
        with closing(Reader.open(self.dataset, "test", self.config.data)) as reader:
            for start in range(0, reader.num_rows, BATCH_ROWS):
                rows = reader.rows(start, min(start + BATCH_ROWS, reader.num_rows))
                labels.append(rows["label"])
                found.append(predictor.predict(rows[self.column]))
        probabilities, how = np.concatenate(found), self.config.eval
        evaluation = evaluate(probabilities, np.concatenate(labels), self.dataset.class_names, top_k=how.top_k,
                              bootstrap_samples=how.bootstrap_samples)
        return Judged(metrics=evaluation.scalars(), probabilities=probabilities)


def check_reproduced(artifact: Artifact, judged: Judged) -> None:
    """Raises: ArtifactError if a model is not as good as its manifest says, on the same rows."""
    stated = artifact.manifest.description.metrics["test"]
    far = [f"{name} {judged.metrics[name]:.4f}, not {value:.4f}" for name, value in stated.items()
           if name in judged.metrics and abs(judged.metrics[name] - value) > _SAME * max(1.0, abs(value))]
    if far:
        raise ArtifactError(f"artifact {artifact.uri} does not do on its test rows what its manifest says "
                            f"({'; '.join(far)}): nothing can be compared with it; use the library versions that it "
                            "was made with, or train again")


def latencies(predictors: Mapping[str, Predictor], probe: Probe, seconds: float) -> dict[str, dict[int, float]]:
    """By model and number of rows, the median milliseconds from tensors to tensors.

    By turns, so that whatever else the machine does hits all alike. seconds: spent on each model and size.
    """
    found: dict[str, dict[int, float]] = {name: {} for name in predictors}
    for rows in (1, BATCH_ROWS):
        inputs = {name: np.resize(values, (rows, *values.shape[1:])) for name, values in probe.inputs.items()}
        taken: dict[str, list[float]] = {name: [] for name in predictors}
        until, turns = time.perf_counter() + seconds * len(predictors), 0
        while turns <= _FEWEST_TURNS or time.perf_counter() < until:
            for name, predictor in predictors.items():
                answers(predictor, [inputs])  # brings its weights back into the processor's caches
                began = time.perf_counter()
                answers(predictor, [inputs])
                taken[name].append(time.perf_counter() - began)
            turns += 1
        for name, times in taken.items():
            found[name][rows] = round(1000 * median(times[1:]), 4)
    return found


def _found(fingerprint: str, storages: Sequence[Store]) -> Dataset | None:
    for storage in storages:
        for key in storage.child("data").folders():
            try:
                dataset = Dataset.load(storage.child(f"{PREPARED_FOLDER}/{key}"))
            except (FileNotFoundError, DataError):
                continue
            if dataset.has(fingerprint):
                return dataset
    return None


def _prepared(job: Job, config: Config, storage: Store, say: Say) -> Dataset:
    try:
        job.check(config)
        return job.prepare(config, storage, use_ray=False, say=say)
    except TrainyardError as error:
        raise DataError(f"the data that the model was tested on cannot be had again: {error}. It was "
                        f"{config.data.uri!r}: pass --data.uri with where it is now, or --storage of the run, where it "
                        "lies prepared") from error
