"""What is predicted of a table's rows: numbers, or a class. Which of them, the config says or else the values do."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.core.errors import DataError
from jobs.common.arrays import Array
from jobs.common.data.splits import encode_labels, renamed
from jobs.common.tables.columns import UnreadableValueError, as_numbers, as_texts, is_text, pc
from jobs.common.tables.config import TableDataConfig
from jobs.common.tables.rows import Rows

MOST_WHOLE_CLASSES = 20
Seen = Sequence[tuple[Rows, Any]]
"""A column, a batch of rows after another."""


@dataclass(frozen=True)
class Targets:
    """What is predicted. Of numbers `values` is (rows, targets) float64, of classes (rows,) codes."""

    values: Array
    class_names: tuple[str, ...] = ()


def find_targets(found: Mapping[str, Seen], config: TableDataConfig) -> Targets:
    """found: the target columns by name. Raises: DataError, naming the row."""
    wanted = ({name: config.predict if config.predict != "auto" else _guess(name, columns)
               for name, columns in found.items()})
    if set(wanted.values()) == {"number"}:
        values = [np.concatenate([_numbers(rows, column, name) for rows, column in columns])
                  for name, columns in found.items()]
        return Targets(np.stack(values, axis=1))
    if len(found) > 1:
        raise DataError(f"--data.label-column {config.label_column}: several targets must all be numbers: name one "
                        "class, and train a run for each")
    [(name, columns)] = found.items()
    codes, classes = encode_labels([rows for rows, _ in columns], [_labels(column) for _, column in columns], name)
    return Targets(codes, renamed(classes, config.label_names))


def _guess(name: str, columns: Seen) -> str:
    """Texts that are no numbers are classes; so are whole numbers from 0 to 19 at most, with none left out."""
    parts: list[Array] = []
    for rows, column in columns:
        try:
            parts.append(as_numbers(column, name))
        except UnreadableValueError as error:
            if parts or _mostly_numbers(column):
                raise DataError(f"{rows.describe(error.row)}: the target's {error}, as others are: mend it, or pass "
                                "--data.predict class if it stands for classes") from None
            return "class"
    values = np.concatenate(parts)
    distinct = np.unique(values[~np.isnan(values)])
    whole = 2 <= len(distinct) <= MOST_WHOLE_CLASSES and np.array_equal(distinct, np.arange(len(distinct)))
    return "class" if whole else "number"


def _mostly_numbers(column: Any) -> bool:
    """Whether most of a column's texts are numbers with a fraction: then one that is none is a slip."""
    if not is_text(column.type):
        return False
    fractions = pc.match_substring_regex(column, r"^[+-]?\d+\.\d+([eE][+-]?\d+)?$")
    return 2 * (pc.sum(fractions).as_py() or 0) > len(column)


def _labels(column: Any) -> Any:
    """Texts as texts but for those that are whole numbers, as `encode_labels` takes them; missing ones as null."""
    if not is_text(column.type):
        return column
    texts = as_texts(column)
    try:
        return texts.cast(pa.int64())
    except pa.ArrowInvalid:
        return texts


def _numbers(rows: Rows, column: Any, name: str) -> npt.NDArray[np.float64]:
    try:
        values = as_numbers(column, name)
    except UnreadableValueError as error:
        raise DataError(f"{rows.describe(error.row)}: the target's {error}: mend it, or pass --data.predict class if "
                        "it stands for classes") from None
    if (missing := np.isnan(values)).any():
        raise DataError(f"{rows.describe(int(missing.argmax()))}: the target column {name!r} has no value: remove the "
                        "row, or fill it in")
    return values
