"""Between NumPy and Arrow without a copy and without pandas, which `pa.array` and `to_numpy` import (half a second)."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from typing import Any

import numpy as np
import pyarrow as pa

from jobs.common.arrays import Array

_NUMPY_NAMES = {"halffloat": "float16", "float": "float32", "double": "float64"}


def arrow_column(values: Array) -> Any:
    """A one-dimensional array of numbers, (n,), as an Arrow array."""
    values = np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])


def numpy_column(column: Any, dtype: Any = None) -> Array:
    """An Arrow array of numbers, or of binary of a fixed size, without nulls: its values one after another, read-only.

    dtype: what the values are; by default as the Arrow type says. Binary of n bytes gives n / itemsize values a row.
    """
    width = column.type.bit_width // 8
    values = np.frombuffer(column.buffers()[1], np.uint8, len(column) * width, column.offset * width)
    return values.view(dtype or _NUMPY_NAMES.get(str(column.type), str(column.type)))
