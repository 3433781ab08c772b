"""What data.html shows of a table: its columns, targets, some rows, values unlike the others, and rows nearly the same.

All of it is of at most a few thousand rows, as the model takes them: in their own units again.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Iterator

import numpy as np

from jobs.common.arrays import Array
from jobs.common.data.dataset import Dataset
from jobs.common.data.found.near_duplicates import nearest_pairs
from jobs.common.data.found.row_sample import RowSample
from jobs.common.report import html
from jobs.common.report.data_report import class_of, cut, histogram, table
from jobs.common.report.html import Section
from jobs.common.tables.columns import Field
from jobs.common.tables.config import TableConfig
from jobs.common.tables.info import TableInfo

MOST_COLUMNS, SHOWN_ROWS, ODD_ROWS = 30, 5, 10
FAR = 4.0
"""Deviations from the mean: what is further is odd."""
_COMPARED_NUMBERS, _COMPARED_CATEGORIES = 256, 32


class Cells:
    """The values of a sample's rows, column by column."""

    def __init__(self, dataset: Dataset, sample: RowSample) -> None:
        info = TableInfo.of(dataset, None)
        self.fields = info.schema.fields
        self.numbers, self.categories = info.inputs(sample.columns)
        self._places: dict[str, tuple[int, int]] = {}
        number = category = 0
        for field in self.fields:
            self._places[field.name] = number, category
            number, category = number + len(field.numbers), category + len(field.cardinalities)

    def scaled(self, field: Field) -> Array:
        """(rows,): of a number or date its deviations from the mean, NaN where it is missing."""
        place, _ = self._places[field.name]
        values = self.numbers[:, place].astype(np.float64)
        return np.where(self.numbers[:, place + 1] > 0, np.nan, values) if field.misses else values

    def values(self, field: Field) -> Array:
        """(rows,): numbers in their own units; dates as days since 1970."""
        return self.scaled(field) * field.std + field.mean

    def codes(self, field: Field) -> Array:
        """(rows,): of a category; 0 is missing or unknown."""
        return self.categories[:, self._places[field.name][1]]

    def missing(self, field: Field) -> Array:
        return self.codes(field) == 0 if field.kind == "category" else np.isnan(self.scaled(field))

    def text(self, field: Field, row: int) -> str:
        """A value for people."""
        if self.missing(field)[row]:
            return "–"
        if field.kind == "category":
            return cut(field.values[int(self.codes(field)[row]) - 1], 60)
        return _text(field, float(self.values(field)[row]))


def table_data_sections(config: TableConfig, dataset: Dataset) -> list[Section]:
    sample = RowSample.of(dataset, config.data)
    cells = Cells(dataset, sample)
    return [_columns(cells, dataset, sample), *_targets(dataset, sample), _rows(cells, dataset, sample),
            _odd(cells, dataset, sample), _near_duplicates(cells, dataset, sample)]


def _text(field: Field, value: float) -> str:
    if field.kind == "date" and abs(value) < 2_000_000:
        return str(np.datetime64(round(value * 86400), "s")).replace("T00:00:00", "").replace("T", " ")
    return _number(value if abs(value) > 1e-6 * field.std else 0.0)


def _number(value: float) -> str:
    return f"{value:,.5g}"


def _columns(cells: Cells, dataset: Dataset, sample: RowSample) -> Section:
    shown = cells.fields[:MOST_COLUMNS]
    more = f" The first {MOST_COLUMNS} of {len(cells.fields)}." if len(shown) < len(cells.fields) else ""
    training = sample.of_split("train")
    return html.section(
        "Columns", f"Mean, deviation and the number of values are of all training rows, the rest of {len(training):,} "
        f"of them.{more}", ["column", "kind", "missing", "mean", "deviation", "least", "greatest", "values",
                            "most frequent"], [_column(cells, field, training) for field in shown])


def _column(cells: Cells, field: Field, rows: Array) -> tuple[object, ...]:
    missing = cells.missing(field)[rows]
    share = f"{missing.mean():.1%}" if len(rows) else "–"
    if field.kind == "category":
        codes, counts = np.unique(cells.codes(field)[rows][~missing], return_counts=True)
        most = int(counts.argmax()) if len(counts) else 0
        often = f"{cut(field.values[codes[most] - 1], 40)} ({counts[most] / len(rows):.0%})" if len(counts) else "–"
        return field.name, field.kind, share, "", "", "", "", f"{len(field.values):,}", often
    known = cells.values(field)[rows][~missing]
    ends = (_text(field, float(known.min())), _text(field, float(known.max()))) if len(known) else ("–", "–")
    deviation = f"{_number(field.std)} days" if field.kind == "date" else _number(field.std)
    return field.name, field.kind, share, _text(field, field.mean), deviation, *ends, "", ""


def _targets(dataset: Dataset, sample: RowSample) -> Iterator[Section]:
    """Of numbers; classes have a section of their own."""
    targets = TableInfo.of(dataset, None).targets
    if targets:
        charts = [(target.name, histogram(f"{target.name} by split", {
            name: sample.columns["target"][sample.of_split(name), place].tolist() for name in dataset.splits},
            target.name)) for place, target in enumerate(targets[:4])]
        yield html.figures("Targets", f"Of {sample.counted(dataset)}.", charts)


def _answer(dataset: Dataset, sample: RowSample, row: int) -> str:
    """A row's class, or the numbers that are to be predicted."""
    if dataset.class_names:
        return cut(class_of(dataset, sample, row), 40)
    return ", ".join(_number(float(value)) for value in sample.columns["target"][row])


def _target_heading(dataset: Dataset) -> str:
    return ", ".join(target.name for target in TableInfo.of(dataset, None).targets) or "class"


def _rows(cells: Cells, dataset: Dataset, sample: RowSample) -> Section:
    shown = cells.fields[:MOST_COLUMNS]
    rows = [int(row) for name in dataset.splits for row in sample.of_split(name)[:SHOWN_ROWS]]
    return table("Rows", "The first of each split: – is missing, or a category that no training row has.",
                 ["row", _target_heading(dataset), *(field.name for field in shown)],
                 [(sample.name(row), _answer(dataset, sample, row), *(cells.text(field, row) for field in shown))
                  for row in rows])


def odd_values(cells: Cells) -> list[tuple[int, Field, float]]:
    """Row, column and how many deviations from the mean, the furthest first; of each row only its oddest value."""
    fields = [field for field in cells.fields if field.kind != "category"]
    if not fields or not len(cells.numbers):
        return []
    distances = np.stack([np.nan_to_num(np.abs(cells.scaled(field))) for field in fields])
    worst = distances.argmax(axis=0)
    furthest = distances.max(axis=0)
    order = [row for row in np.argsort(-furthest, kind="stable")[:ODD_ROWS].tolist() if furthest[row] > FAR]
    return [(row, fields[worst[row]], float(furthest[row])) for row in order]


def _odd(cells: Cells, dataset: Dataset, sample: RowSample) -> Section:
    intro = (f"Of {sample.counted(dataset)}: those with a value more than {FAR:g} standard deviations from the mean of "
             "the training rows.")
    return table("Odd rows", intro, ["row", "column", "value", "deviations from the mean", "mean",
                                     _target_heading(dataset)],
                 [(sample.name(row), field.name, cells.text(field, row), f"{far:.1f}", _text(field, field.mean),
                   _answer(dataset, sample, row)) for row, field, far in odd_values(cells)])


def _near_duplicates(cells: Cells, dataset: Dataset, sample: RowSample) -> Section:
    numbers = cells.numbers[:, :_COMPARED_NUMBERS]
    categories = cells.categories[:, :_COMPARED_CATEGORIES]
    contents = [number.tobytes() + category.tobytes()
                for number, category in zip(cells.numbers, cells.categories, strict=True)]
    found = nearest_pairs(numbers, contents, categories)
    intro = (f"Pairs that are nearest to each other but not the same, of {sample.counted(dataset)}: a pair in two "
             "splits makes scores too good. Their distance is a share of the usual one between two rows.")
    return table("Near-duplicates", intro, ["rows", "distance", _target_heading(dataset), "columns that differ most"],
                 [(f"{sample.name(pair.first)}, and {sample.name(pair.second)}", f"{pair.value:.1%}",
                   " and ".join(_answer(dataset, sample, row) for row in pair[:2]),
                   _differences(cells, pair.first, pair.second)) for pair in found])


def _differences(cells: Cells, first: int, second: int, most: int = 3) -> str:
    def apart(field: Field) -> float:
        if field.kind == "category":
            return float(cells.codes(field)[first] != cells.codes(field)[second])
        return float(np.nan_to_num(abs(cells.scaled(field)[first] - cells.scaled(field)[second]), nan=1.0))

    differing = [field for field in cells.fields[:_COMPARED_NUMBERS] if apart(field) > 0]
    far = sorted(differing, key=lambda field: -apart(field))
    return "; ".join(f"{field.name} {cells.text(field, first)} and {cells.text(field, second)}"
                     for field in far[:most]) + " …" * (len(far) > most)
