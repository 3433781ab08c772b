"""A finished model in a program of yours: `trainyard.load`, then `.predict(rows)`."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.core.errors import InputError
from jobs.common.arrays import Array
from jobs.common.artifact.artifact import Artifact
from jobs.common.predicting.columns import InputColumns, Inputs, answer_columns, kind_of
from jobs.common.predicting.writer import BATCH_ROWS, Writer
from jobs.common.predictor.predictor import Answering

_ROWS_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A verified model that answers as the endpoint does. One thread at a time may ask it."""

    artifact: Artifact
    predictor: Answering

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes, in the order of probabilities; empty where there are none."""
        return self.artifact.manifest.description.labels

    def predict(self, rows: object, *, top_k: int = 3) -> dict[str, Array]:
        """The answers by the names of the columns that `trainyard predict` writes, each (rows, …).

        rows: a table (Arrow's, or a data frame), a dictionary of columns, or a list of dictionaries, with the columns
        that the model takes. Of images also an array (rows, height, width, channels), or a list of files' bytes or
        paths; of texts a list of str. Raises: DataError, naming the first row that the model cannot answer.
        """
        about = self.artifact.manifest.description
        given = self._inputs(rows)
        count = len(next(iter(given.values())))
        if not count:
            raise InputError("there are no rows to predict: give one or more")
        at_once = BATCH_ROWS if isinstance(self.predictor, Writer) else _ROWS_AT_ONCE
        parts = [self.predictor.encode(self.predictor.predict(self.predictor.decode(
            {name: values[start : start + at_once] for name, values in given.items()})))
            for start in range(0, count, at_once)]
        outputs = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return {name: _numpy(column) for name, column in answer_columns(outputs, about, top_k).items()}

    def _inputs(self, rows: Any) -> Inputs:
        about = self.artifact.manifest.description
        if isinstance(rows, np.ndarray):
            rows = {about.inputs[0].name if kind_of(about) != "text" else "text": rows}
        if isinstance(rows, Mapping) and any(getattr(values, "ndim", 1) > 1 for values in rows.values()):
            return self._tensors(rows)
        try:
            table = self._table(rows)
        except (pa.ArrowException, OSError, TypeError) as error:
            raise InputError(f"rows of {type(rows).__name__} are not what this model takes ({error}): give a table, or "
                             f"a dictionary of columns, with {', '.join(InputColumns(about).names)}") from error
        columns = InputColumns(about)
        columns.check(table.schema, "rows")
        (batch,) = table.combine_chunks().to_batches() or [pa.RecordBatch.from_pylist([], schema=table.schema)]
        inputs, bad = columns.take(batch)
        for row, why in sorted(bad.items()):
            raise InputError(f"row {row} {why}")
        return inputs

    def _tensors(self, given: Mapping[str, Array]) -> Inputs:
        """Arrays as the model takes them. Raises: InputError."""
        specs = self.artifact.manifest.description.inputs
        if sorted(given) != sorted(spec.name for spec in specs):
            raise InputError(f"the model takes {', '.join(spec.name for spec in specs)}: got {', '.join(given)}")
        try:
            for spec in specs:
                spec.check(given[spec.name])
        except ValueError as error:
            raise InputError(f"{error}; -1 stands for any number of rows") from None
        return given

    def _table(self, rows: Any) -> Any:
        """An Arrow table of what a caller has. Raises: as Arrow does, OSError."""
        if isinstance(rows, pa.Table):
            return rows
        if isinstance(rows, pa.RecordBatch):
            return pa.Table.from_batches([rows])
        if isinstance(rows, Mapping):
            return pa.table({name: pa.array(values) for name, values in rows.items()})
        if hasattr(rows, "__arrow_c_stream__") or hasattr(rows, "iloc"):
            return pa.table(rows) if hasattr(rows, "__arrow_c_stream__") else pa.Table.from_pandas(rows)
        if not isinstance(rows, Sequence) or isinstance(rows, str | bytes):
            raise TypeError("they are no rows")
        if all(isinstance(row, Mapping) for row in rows):
            return pa.Table.from_pylist([*rows])
        about = self.artifact.manifest.description
        name = InputColumns(about).names[0]
        if kind_of(about) == "image":
            return pa.table({name: pa.array([_file(row) for row in rows], pa.binary())})
        return pa.table({name: pa.array(rows)})


def _file(row: object) -> bytes:
    """Raises: OSError, TypeError."""
    if isinstance(row, str | Path):
        return Path(row).read_bytes()
    if not isinstance(row, bytes):
        raise TypeError(f"an image is the bytes of a file, or its path, not {type(row).__name__}")
    return row


def _numpy(column: Any) -> Array:
    if not pa.types.is_fixed_size_list(column.type):
        return column.to_numpy(zero_copy_only=False)
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
