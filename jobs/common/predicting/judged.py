"""How good a model's answers are where the data says what is right: its figures, of all rows and of slices, and drift.

    judged = Judged.of(model, output, label_column)     # from the folder of answers that predict has written
    judged.metrics["accuracy"]; judged.slices("country"); judged.drift
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import pyarrow as pa

from cluster.core.errors import DataError
from jobs.common.arrays import Array
from jobs.common.artifact.manifest import Description
from jobs.common.declared_metrics import Metric, Values, classification, present
from jobs.common.evaluation.metrics import Evaluation, evaluate
from jobs.common.evaluation.regression import regression
from jobs.common.paired import Pair, paired_classes, paired_numbers
from jobs.common.predicting.model import FoundModel
from jobs.common.predicting.output import Output
from jobs.common.tables.columns import as_numbers, as_texts, is_text
from jobs.common.tables.judging import NUMBERS
from jobs.common.training.predictions import Predictions

MOST_VALUES, _PARTS, _FEWEST = 20, 4, 2
_SHOWN = 5


@dataclass(frozen=True)
class Slice:
    """Rows that have the same value in a column."""

    value: str
    rows: int
    figures: Values


@dataclass(frozen=True, kw_only=True)
class Drift:
    """Of one feature, from the model's own test rows: the population stability index (artifact/drift_reference.py)."""

    feature: str
    psi: float
    noise: float
    """What it is in the mean if nothing has changed."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A model's answers, and what is right."""

    model: FoundModel
    table: Any
    """The rows with their answers, an Arrow table."""
    true: Array
    """The codes of the classes (rows,), or the numbers (rows, targets)."""
    top_k: int
    bootstrap_samples: int
    counts: Mapping[str, Sequence[int]]
    """Rows by the bins of each feature of the model's reference."""

    @staticmethod
    def of(model: FoundModel, output: Output, label_column: str | None, *, top_k: int,
           bootstrap_samples: int) -> "Judged":
        """label_column: by default as in training. Raises: DataError for labels that are missing or unknown."""
        table = pa.concat_tables(output.tables())
        about = model.artifact.manifest.description
        true = _codes(table, about, label_column) if about.labels else _numbers(table, about, label_column)
        return Judged(model=model, table=table, true=true, top_k=top_k, bootstrap_samples=bootstrap_samples,
                      counts=output.manifest().get("drift") or {})

    @property
    def about(self) -> Description:
        return self.model.artifact.manifest.description

    @property
    def declared(self) -> Sequence[Metric]:
        return classification(self.top_k) if self.about.labels else NUMBERS

    @cached_property
    def predicted(self) -> Array:
        """Probabilities (rows, classes), or numbers (rows, targets)."""
        return _wide(self.table.column("probabilities" if self.about.labels else "prediction"))

    @cached_property
    def evaluation(self) -> Evaluation | None:
        """Of classes."""
        return self._evaluation(np.arange(len(self.true))) if self.about.labels else None

    @cached_property
    def metrics(self) -> Values:
        return self._figures(np.arange(len(self.true)))

    def slices(self, column: str) -> list[Slice]:
        """The figures of rows by what they have in a column: its most frequent values, or numbers in four parts."""
        values = _groups(self.table.column(column).combine_chunks())
        found = [(value, np.flatnonzero(values == value)) for value in dict.fromkeys(values.tolist())]
        found.sort(key=lambda each: -len(each[1]))
        return [Slice(value, len(rows), self._figures(rows)) for value, rows in found[:MOST_VALUES]
                if len(rows) >= _FEWEST]

    @property
    def drift(self) -> list[Drift]:
        """Of each feature, the largest first; none where the model has no reference."""
        reference = self.model.artifact.reference()
        if reference is None:
            return []
        found = [Drift(feature=name, psi=histogram.psi(np.array(self.counts[name])),
                       noise=histogram.noise(sum(self.counts[name])))
                 for name, histogram in reference.features.items() if name in self.counts]
        return sorted(found, key=lambda each: -each.psi)

    @property
    def when_trained(self) -> Values:
        """The figures of its test rows then."""
        return self.about.metrics.get("test", {})

    def against(self, other: "Judged") -> Pair:
        """The test of whether the other one is really better or worse on the same rows. Raises: DataError."""
        if self.about.labels != other.about.labels or not np.array_equal(self.true, other.true):
            raise DataError(f"{self.model.name} and {other.model.name} cannot be compared: they have other classes, or "
                            "not the same rows an answer")
        names = self.model.name, other.model.name
        if self.about.labels:
            return paired_classes(*names, (self.right, other.right))
        rows = np.arange(len(self.true))
        return paired_numbers(*names, (Predictions(rows, self.true, self.predicted),
                                       Predictions(rows, other.true, other.predicted)))

    @property
    def right(self) -> Array:
        """(rows,): which it got right."""
        return self.predicted.argmax(1) == self.true

    def _evaluation(self, rows: Array) -> Evaluation:
        return evaluate(self.predicted[rows], self.true[rows], self.about.labels, top_k=self.top_k,
                        bootstrap_samples=self.bootstrap_samples)

    def _figures(self, rows: Array) -> Values:
        if self.about.labels:
            return self._evaluation(rows).scalars()
        true, table = self.true[rows], self.table
        found = regression(true, self.predicted[rows], self.bootstrap_samples)
        if "low" in table.column_names:
            low, high = _wide(table.column("low"))[rows], _wide(table.column("high"))[rows]
            found["coverage"] = float(((low <= true) & (true <= high)).mean())
        return found


def main_metric(judged: Judged) -> Metric:
    """The one that says how good the model is."""
    return next(metric for metric in present(judged.declared, judged.metrics) if metric.primary)


def _codes(table: Any, about: Description, column: str | None) -> Array:
    """(rows,). The classes as training named them; of pictures in folders, the folder's."""
    trained = cast(Mapping[str, Any], about.config.get("data", {}))
    name = column or trained.get("label_column", "label")
    if name in table.column_names:
        values = as_texts(table.column(name).combine_chunks()).to_pylist()
    elif column is None and "cls" in table.column_names:
        name, values = "cls", table.column("cls").to_pylist()
    elif column is None and "path" in table.column_names:
        name, values = "path", [path.rpartition("/")[0].rpartition("/")[2] for path in table.column("path").to_pylist()]
    else:
        raise DataError(f"the data has no column {name!r} that says what is right: it has "
                        f"{', '.join(table.column_names)}; name it with --data.label-column")
    pairs = [pair.partition("=") for pair in str(trained.get("label_names") or "").split(",")]
    new = {old.strip(): name.strip() for old, equals, name in pairs if equals}
    places = {label: code for code, label in enumerate(about.labels)}
    named = [new.get(value, value) for value in values]
    if strange := sorted({str(value) for value in named if value not in places}):
        raise DataError(f"column {name!r} has {', '.join(map(repr, strange[:_SHOWN]))}"
                        f"{' …' * (len(strange) > _SHOWN)}, and the model tells {', '.join(about.labels[:_SHOWN])}"
                        f"{' …' * (len(about.labels) > _SHOWN)} apart: correct these rows, leave them out, or name "
                        "another --data.label-column")
    return np.array([places[str(value)] for value in named], np.int64)


def _numbers(table: Any, about: Description, column: str | None) -> Array:
    """(rows, targets)."""
    wanted = [column] if column else [target["name"] for target in about.preprocessing.get("targets", ())]
    if not wanted:
        raise DataError(f"a model of the task {about.task} cannot be evaluated on rows: it gives neither classes nor "
                        "numbers; its report has its loss")
    if missing := [name for name in wanted if name not in table.column_names]:
        raise DataError(f"the data has no column {missing[0]!r} that says what is right: it has "
                        f"{', '.join(table.column_names)}; name it with --data.label-column")
    try:
        found = np.stack([as_numbers(table.column(name).combine_chunks(), name) for name in wanted], axis=1)
    except ValueError as error:
        raise DataError(f"what is right must be a number: {error}") from error
    if missing_rows := int(np.isnan(found).any(axis=1).sum()):
        raise DataError(f"{missing_rows:,} rows have no value in {', '.join(wanted)}: leave them out, or fill it in")
    return found


def _groups(column: Any) -> Array:
    """Which group each row is in, in words."""
    if not is_text(column.type) and (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        numbers = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
        if len(np.unique(numbers[~np.isnan(numbers)])) > MOST_VALUES:
            ends = np.nanquantile(numbers, np.arange(1, _PARTS) / _PARTS)
            between = [f"{low:g} to {high:g}" for low, high in itertools.pairwise(ends.tolist())]
            names = [f"at most {ends[0]:g}", *between, f"above {ends[-1]:g}"]
            found = np.array(names, object)[np.searchsorted(ends, numbers, side="left").clip(max=_PARTS - 1)]
            return np.where(np.isnan(numbers), "no value", found)
    made = np.empty(len(column), object)
    made[:] = ["no value" if value is None else value for value in as_texts(column).to_pylist()]
    return made


def _wide(column: Any) -> Array:
    """(rows, values) of numbers or of lists of a fixed length."""
    whole = column.combine_chunks()
    values = whole.flatten() if pa.types.is_fixed_size_list(whole.type) else whole
    return values.to_numpy(zero_copy_only=False).reshape(len(whole), -1)
