"""What finished runs have left that can be compared, with their test rows in one order."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cluster.core.documents import JsonObject
from cluster.core.errors import ConfigError
from cluster.core.storage import Store
from jobs.common.checkpoint.store import Checkpoints
from jobs.common.config import DataConfig
from jobs.common.data.counter_rng import IntArray
from jobs.common.data.dataset import Dataset
from jobs.common.data.prepared import find_by_fingerprint
from jobs.common.data.reader import Reader
from jobs.common.declared_metrics import CLASSIFICATION, Metric, Values
from jobs.common.evaluation.metrics import Evaluation, evaluate
from jobs.common.execution.run_state import RUN_FILE, RunState
from jobs.common.runs.run_folder import RESULT_FILE, newest_attempt, read_record
from jobs.common.training import predictions
from jobs.common.training.predictions import Predictions

Kind = Literal["classes", "numbers", "tokens"]
"""What is predicted of a row."""
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What a run has left that can be compared."""

    name: str
    config: JsonObject
    result: JsonObject
    history: Sequence[JsonObject]
    test: Predictions
    evaluation: Evaluation | None
    """Of a classifier."""
    fingerprint: str = ""
    """Of the data."""

    @property
    def kind(self) -> Kind:
        """By the predictions: numbers have labels that are numbers, tokens have only their count."""
        if self.evaluation is not None:
            return "classes"
        return "numbers" if self.test.labels.dtype.kind == "f" else "tokens"

    @property
    def declared(self) -> Sequence[Metric]:
        """What its job says of its figures; of a run that an older version made, a classifier's."""
        return [Metric(**each) for each in self.result.get("declared_metrics", ())] or CLASSIFICATION

    @property
    def figures(self) -> Values:
        """Of the test rows, by name."""
        return self.evaluation.scalars() if self.evaluation else self.result["metrics"]["test"]

    @property
    def dataset(self) -> Dataset | None:
        """The prepared data, where it is still in the storage: looked for only where rows are numbered otherwise."""
        return find_by_fingerprint(Store.open(self.config["run"]["storage"]), self.fingerprint)

    @property
    def right(self) -> NDArray[np.bool_]:
        """(rows,): which test rows it got right."""
        return self.test.probabilities.argmax(axis=1) == self.test.labels


def finished(run: str, storage: str) -> Finished:
    """The newest attempt of a run. Raises: ConfigError if it is none, or has not finished."""
    top = Store.open(run) if "/" in run else Store.open(storage).child(run)
    store = newest_attempt(top)
    record, result = read_record(store, RUN_FILE), read_record(store, RESULT_FILE)
    if not record:
        raise ConfigError(f"no run at {top.location()}: name one of the runs in --storage {storage}, or its folder")
    if result.get("status") != "done":
        raise ConfigError(f"run {run!r} is not done ({result.get('status', 'it has no result yet')}): let it finish "
                          "first")
    names = record["data"].get("classes")
    generation = Checkpoints(store.child("checkpoints")).current_generation()
    assert generation is not None, "a run that is done has a generation"
    test, how = predictions.read(store, generation, "test"), record["config"]["eval"]
    judged = evaluate(test.probabilities, test.labels, names, top_k=how["top_k"],
                      bootstrap_samples=how["bootstrap_samples"]) if names else None
    return Finished(name=record["name"], config=record["config"], result=result, history=RunState.open(store).history,
                    test=test, evaluation=judged, fingerprint=record["data"]["fingerprint"])


def aligned(runs: Sequence[Finished]) -> list[Finished]:
    """With their test rows in the order of the first run's.

    Raises: ConfigError if there is nothing to compare, or the test rows are not the same.
    """
    if len(runs) < 2:
        raise ConfigError("one run is nothing to compare: name two or more")
    first, *others = runs
    return [first, *(_aligned(first, other) for other in others)]


def _aligned(first: Finished, other: Finished) -> Finished:
    if first.kind != other.kind:
        raise ConfigError(f"run {first.name!r} predicts {first.kind}, {other.name!r} {other.kind}: compare runs that "
                          "do the same")
    a, b = first.test, other.test
    if np.array_equal(a.row_ids, b.row_ids) and np.array_equal(a.labels, b.labels):
        return other
    if (order := _same_rows(first, other)) is None:
        raise ConfigError(f"runs {first.name!r} and {other.name!r} were not tested on the same rows: train both with "
                          "the same --data.uri and --data.split-seed")
    moved = Predictions(a.row_ids, b.labels[order], b.probabilities[order])
    return replace(other, test=moved)


def _same_rows(first: Finished, other: Finished) -> IntArray | None:
    """The place in the other's predictions of each of the first's, by what is in the rows; None where that differs."""
    data = first.dataset, other.dataset
    if data[0] is None or data[1] is None or data[0].class_names != data[1].class_names:
        return None
    mine, theirs = _contents(data[0]), _contents(data[1])
    if sorted(mine) != sorted(theirs) or not len(mine) == len(first.test.labels) == len(other.test.labels):
        return None
    order = np.empty(len(mine), np.int64)
    order[sorted(range(len(mine)), key=mine.__getitem__)] = sorted(range(len(theirs)), key=theirs.__getitem__)
    return order


def _contents(dataset: Dataset) -> list[bytes]:
    """A hash of each test row, in the order of row ids: of all its columns but the id."""
    reader = Reader.open(dataset, "test", DataConfig())
    found: list[tuple[int, bytes]] = []
    try:
        for start in range(0, reader.num_rows, _ROWS_AT_ONCE):
            rows = reader.rows(start, min(start + _ROWS_AT_ONCE, reader.num_rows))
            columns = [np.ascontiguousarray(rows[name]) for name in sorted(rows) if name != "row_id"]
            found += [(int(row_id), hashlib.sha256(b"".join(column[i].tobytes() for column in columns)).digest())
                      for i, row_id in enumerate(rows["row_id"])]
    finally:
        reader.close()
    return [digest for _, digest in sorted(found)]
