"""Answers about rows of a table, by named columns, whatever computes them: all but `load` of a job's predictor."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.core.errors import InputError
from jobs.common.arrays import Array
from jobs.common.artifact.artifact import Artifact
from jobs.common.predictor.onnx_model import OnnxModel
from jobs.common.tables.columns import UnreadableValueError
from jobs.common.tables.info import TableInfo
from jobs.common.tables.judging import answers, column_features


class TablePredictor:
    """Answers by an artifact's ONNX graph. Rows are (B, N + C + 1): numbers, codes, and how many values are unseen."""

    def __init__(self, info: TableInfo, model: OnnxModel) -> None:
        self._info, self._model = info, model

    def decode(self, inputs: Mapping[str, Array]) -> Array:
        """Raises: InputError, naming column and value."""
        try:
            made = self._info.schema.encode({name: _column(values, name) for name, values in inputs.items()})
        except UnreadableValueError as error:
            raise InputError(f"row {error.row}: {error}") from None
        return np.concatenate([made.numbers, made.categories, made.unseen[:, None]], axis=1).astype(np.float64)

    def predict(self, rows: Array) -> Array:
        """(B, outputs + 1): the last column is that of the rows."""
        return np.concatenate([self._model.predict(rows), rows[:, -1:]], axis=1)

    def encode(self, predicted: Array) -> Mapping[str, Array]:
        return answers(self._info, predicted[:, :-1], predicted[:, -1].astype(np.int32))

    def features(self, rows: Array) -> dict[str, Array]:
        numbers = self._info.num_numbers
        return column_features(self._info, rows[:, :numbers].astype(np.float32), rows[:, numbers:-1])


def info_of(artifact: Artifact, model: Any) -> TableInfo:
    """model: the config's group of this name."""
    about = artifact.manifest.description
    return TableInfo.described(about.preprocessing["fields"], about.preprocessing["targets"], about.labels, model)


def graph_inputs(info: TableInfo, rows: Array) -> dict[str, Array]:
    """Of an ONNX graph by name, from rows as `decode` gives them."""
    numbers, categories, _ = np.split(rows, [info.num_numbers, info.num_numbers + len(info.cardinalities)], axis=1)
    return {"numbers": numbers, "categories": categories}


def _column(values: Array, name: str) -> Any:
    """Numbers, or texts, of which an empty one stands for a value that is missing."""
    if values.dtype != object:
        return pa.array(values)
    try:
        texts = [(value if isinstance(value, str) else bytes(value).decode()).strip() for value in values]
    except UnicodeDecodeError:
        raise InputError(f"input {name!r} holds a text that is no UTF-8") from None
    return pa.array(texts, pa.string())
