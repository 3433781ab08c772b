"""A table's columns as a model takes them: numbers on one scale, categories as codes, dates as both.

    schema = TableSchema(fields)                  # of the prepared data, kept in the artifact
    encoded = schema.encode({"age": …, "city": …})

A number becomes (value - mean) / std of the training rows, and one that is missing 0; where the training rows have
missing ones, a second number says which. A category becomes a code from 1, and 0 where it is missing or was never seen
in training. A date becomes a number, its days since 1970, and two categories, its weekday and its month.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from cluster.core.documents import JsonObject
from jobs.common.arrays import Array
from jobs.common.artifact.tensor_spec import TensorSpec
from jobs.common.data.arrow import ArrowArray

pc: Any = pyarrow.compute  # its functions are made when it is imported
Kind = Literal["number", "category", "date"]
MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None")
"""Texts that stand for a missing value, as in CSV files of others."""
_DAY_US = 86_400_000_000


class UnreadableValueError(ValueError):
    """A value that its column cannot hold, at a row of those given."""

    def __init__(self, row: int, why: str) -> None:
        super().__init__(why)
        self.row = row


@dataclass(frozen=True)
class Field:
    """One input column."""

    name: str
    kind: Kind
    mean: float = 0.0
    """Of the training rows' numbers (of a date, its days), which are normalised by it and `std`."""
    std: float = 1.0
    values: tuple[str, ...] = ()
    """Of a category: those of the training rows, sorted; the first has code 1."""
    misses: bool = False
    """Whether a training row has no value: then a number says which rows have none."""

    @property
    def spec(self) -> TensorSpec:
        """How an endpoint takes it: a number as such; what may be missing, and all else, as texts (a date as ISO)."""
        number = self.kind == "number" and not self.misses
        return TensorSpec(name=self.name, datatype="FP64" if number else "BYTES", shape=(-1,))

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """How many codes each of its categories has, with 0."""
        return {"number": (), "category": (len(self.values) + 1,), "date": (8, 13)}[self.kind]

    @property
    def categories(self) -> tuple[str, ...]:
        """The names of the categories that it becomes."""
        return ({"number": (), "category": (self.name,),
                 "date": (f"{self.name} weekday", f"{self.name} month")}[self.kind])

    @property
    def numbers(self) -> tuple[str, ...]:
        """The names of the numbers that it becomes."""
        if self.kind == "category":
            return ()
        return (self.name, f"{self.name} is missing") if self.misses else (self.name,)


@dataclass(frozen=True)
class Encoded:
    """Rows as a model takes them. numbers: (rows, N) float32. categories: (rows, C) int32. unseen: (rows,) int32, how
    many of a row's values are missing, or texts that no training row has, where no training row misses one."""

    numbers: npt.NDArray[np.float32]
    categories: npt.NDArray[np.int32]
    unseen: npt.NDArray[np.int32]


@dataclass(frozen=True)
class TableSchema:
    """The input columns, in the order of the model's inputs."""

    fields: tuple[Field, ...]

    @staticmethod
    def of(stored: Sequence[JsonObject]) -> "TableSchema":
        """Of plain JSON values."""
        fields: list[JsonObject] = [{**each, "values": tuple(each["values"])} for each in stored]
        return TableSchema(tuple(Field(**each) for each in fields))

    @cached_property
    def numbers(self) -> tuple[str, ...]:
        return tuple(name for field in self.fields for name in field.numbers)

    @cached_property
    def cardinalities(self) -> tuple[int, ...]:
        return tuple(size for field in self.fields for size in field.cardinalities)

    def encode(self, columns: Mapping[str, ArrowArray]) -> Encoded:
        """columns: by name, (rows,) each. Raises: UnreadableValueError for a value that is not of its column's kind."""
        numbers: list[Array] = []
        categories: list[Array] = []
        unseen = np.zeros(len(columns[self.fields[0].name]), np.int32)
        for field in self.fields:
            column = columns[field.name]
            if field.kind == "category":
                codes = _codes(column, field)
                categories.append(codes)
                unseen += (codes == 0) & ~(is_missing(column) & field.misses)
                continue
            values = as_numbers(column, field.name) if field.kind == "number" else as_days(column, field.name)
            missing = np.isnan(values)
            numbers.append(np.where(missing, 0.0, (values - field.mean) / field.std))
            if field.misses:
                numbers.append(missing.astype(np.float64))
            else:
                unseen += missing
            if field.kind == "date":
                categories += _calendar(values)
        rows = len(unseen)
        return Encoded(np.stack(numbers, 1).astype(np.float32) if numbers else np.zeros((rows, 0), np.float32),
                       np.stack(categories, 1).astype(np.int32) if categories else np.zeros((rows, 0), np.int32),
                       unseen)


def is_missing(column: ArrowArray) -> npt.NDArray[np.bool_]:
    """(rows,): nulls, NaN, and texts that stand for nothing."""
    missing = column.is_null().to_numpy(zero_copy_only=False)
    if is_text(column.type):
        return missing | pc.is_in(column, value_set=pa.array(MISSING)).to_numpy(zero_copy_only=False)
    if pa.types.is_floating(column.type):
        return missing | pc.fill_null(pc.is_nan(column), True).to_numpy(zero_copy_only=False)
    return missing


def as_numbers(column: ArrowArray, name: str) -> npt.NDArray[np.float64]:
    """(rows,), NaN where there is none. Raises: UnreadableValueError for texts that are none, and infinite ones."""
    missing = is_missing(column)
    try:
        cast = _as_float(_texts_present(column, missing))
    except pa.ArrowNotImplementedError:
        raise UnreadableValueError(0, f"column {name!r} is of type {column.type}, which is no number") from None
    except pa.ArrowInvalid:
        row = _first_unreadable(column, missing, _as_float)
        raise UnreadableValueError(row, f"column {name!r} is {column[row].as_py()!r}, which is no number") from None
    values = cast.to_numpy(zero_copy_only=False).astype(np.float64)
    if (odd := np.isinf(values)).any():
        row = int(odd.argmax())
        raise UnreadableValueError(row, f"column {name!r} is {values[row]}: a number must be finite")
    return np.where(missing, np.nan, values)


def as_days(column: ArrowArray, name: str) -> npt.NDArray[np.float64]:
    """Days since 1970 (rows,), NaN where there is no date. Raises: UnreadableValueError for texts that are none."""
    missing = is_missing(column)
    try:
        cast = _as_time(_texts_present(column, missing))
    except pa.ArrowInvalid:
        row = _first_unreadable(column, missing, _as_time)
        raise UnreadableValueError(row, f"column {name!r} is {column[row].as_py()!r}, which is no date: write dates as "
                                        "2024-12-31, or 2024-12-31T23:59:59, all with a time zone or none") from None
    days = pc.cast(cast, pa.int64()).fill_null(0).to_numpy(zero_copy_only=False) / _DAY_US
    return np.where(missing, np.nan, days)


def as_texts(column: ArrowArray) -> ArrowArray:
    """A category's values as texts, null where there is none: whole numbers without a point."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    missing = is_missing(column)
    if pa.types.is_floating(column.type) or pa.types.is_decimal(column.type):
        values = pc.cast(column, pa.float64(), safe=False)
        whole = pc.and_(pc.equal(values, pc.floor(values)), pc.less(pc.abs(values), 2.0**62))
        column = pc.if_else(whole, pc.cast(pc.cast(values, pa.int64(), safe=False), pa.string()),
                            pc.cast(values, pa.string()))
    return _texts_present(pc.cast(column, pa.string()), missing)


def as_written(field: Field, column: ArrowArray, row: int) -> object:
    """A value of a column as an endpoint is asked about it: what it encodes to is what the column's encodes to."""
    if field.kind == "category":
        return as_texts(column.slice(row, 1))[0].as_py()
    if is_text(column.type) or (value := column[row].as_py()) is None:
        return column[row].as_py()
    return _as_time(column.slice(row, 1)).cast(pa.timestamp("us"))[0].as_py().isoformat() \
        if field.kind == "date" else float(value)


def is_text(kind: object) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _texts_present(column: ArrowArray, missing: npt.NDArray[np.bool_]) -> ArrowArray:
    """With nulls for what is missing."""
    return pc.if_else(pa.array(missing), None, column) if missing.any() else column


def _codes(column: ArrowArray, field: Field) -> npt.NDArray[np.int32]:
    texts = as_texts(column)
    if set(field.values) <= {"true", "false"}:
        texts = pc.utf8_lower(texts)  # Python writes True
    found = pc.index_in(texts, value_set=pa.array(field.values, pa.string()))
    return pc.fill_null(pc.add(found, 1), 0).to_numpy(zero_copy_only=False).astype(np.int32)


def _calendar(days: npt.NDArray[np.float64]) -> list[Array]:
    """Weekday (1 is Monday) and month (1 is January) of days since 1970; 0 where there is none."""
    missing = np.isnan(days)
    whole = np.where(missing, 0, np.floor(days)).astype(np.int64)
    months = whole.astype("datetime64[D]").astype("datetime64[M]").astype(np.int64) % 12 + 1
    return [np.where(missing, 0, (whole + 3) % 7 + 1), np.where(missing, 0, months)]


def _first_unreadable(column: ArrowArray, missing: npt.NDArray[np.bool_],
                      read: Callable[[ArrowArray], object]) -> int:
    """The first row whose value cannot be read alone; else the first with a value: each can, but not all together."""
    present = np.flatnonzero(~missing)
    for row in present:
        try:
            read(column.slice(int(row), 1))
        except pa.ArrowInvalid:
            return int(row)
    return int(present[0])


def _as_float(column: ArrowArray) -> Any:
    """Large whole numbers are rounded. Raises: pa.ArrowInvalid."""
    return pc.cast(column, pa.float64(), safe=False)


def _as_time(column: ArrowArray) -> Any:
    """Texts with a time zone come as UTC, and all of them have one, or none has. Raises: pa.ArrowInvalid."""
    try:
        return pc.cast(column, pa.timestamp("us"), safe=False)
    except pa.ArrowInvalid:
        if not is_text(column.type):
            raise
        return pc.cast(column, pa.timestamp("us", "UTC"), safe=False)
