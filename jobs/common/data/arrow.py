"""Between NumPy and Arrow without a copy and without pandas, which `pa.array` and `to_numpy` import (half a second)."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from jobs.common.arrays import Array

_NUMPY_NAMES = {"halffloat": "float16", "float": "float32", "double": "float64"}


class ArrowArray(Protocol):
    """What is used here of an array of Arrow's, which has no types of its own."""

    type: Any
    dictionary: "ArrowArray"
    indices: "ArrowArray"
    null_count: int
    offset: int

    def __len__(self) -> int: ...
    def __getitem__(self, row: int) -> Any: ...
    def buffers(self) -> list[Any]: ...
    def cast(self, kind: object) -> "ArrowArray": ...
    def unique(self) -> Any: ...
    def dictionary_encode(self) -> "ArrowArray": ...
    def field(self, name: str) -> "ArrowArray": ...
    def is_null(self) -> "ArrowArray": ...
    def slice(self, first: int, count: int) -> "ArrowArray": ...
    def to_numpy(self, zero_copy_only: bool) -> Array: ...
    def to_pylist(self) -> list[Any]: ...


class RecordBatch(Protocol):
    """The same of a record batch."""

    schema: object

    def column(self, name: str) -> ArrowArray: ...


def arrow_column(values: Array) -> ArrowArray:
    """A one-dimensional array of numbers, (n,), as an Arrow array."""
    values = np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])


def numpy_column(column: ArrowArray, dtype: str | None = None) -> Array:
    """An Arrow array of numbers, or of binary of a fixed size, without nulls: its values one after another, read-only.

    dtype: what the values are; by default as the Arrow type says. Binary of n bytes gives n / itemsize values a row.
    """
    width = column.type.bit_width // 8
    values = np.frombuffer(column.buffers()[1], np.uint8, len(column) * width, column.offset * width)
    return values.view(dtype or _NUMPY_NAMES.get(str(column.type), str(column.type)))


def buffers_of(column: ArrowArray) -> Array:
    """An Arrow array of bytes without nulls as an array of objects (n,): each row's as an Arrow buffer, not copied."""
    values = np.empty(len(column), object)
    for row in range(len(column)):
        values[row] = column[row].as_buffer()
    return values
