"""From the columns of data to what a model takes, and from what it answers to columns.

Pictures, texts and cells become a model's inputs by the rules that its artifact keeps, as at the endpoint.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import pyarrow as pa

from cluster.core.errors import DataError, InputError
from jobs.common.arrays import Array
from jobs.common.artifact.manifest import Description
from jobs.common.artifact.tensor_spec import DTYPES, TensorSpec
from jobs.common.data.arrow import ArrowArray
from jobs.common.data.source import ImageSpec
from jobs.common.predicting.source import Kind
from jobs.common.tables.columns import as_texts, is_text
from jobs.common.vision.predictor import picture_rule
from jobs.common.vision.sources.encoded import is_encoded
from jobs.common.vision.sources.pixels import decode_column

Inputs = Mapping[str, Array]
GENERATES = "text-generation"


def kind_of(about: Description) -> Kind:
    """What a model takes."""
    if about.task == GENERATES:
        return "text"
    if len(about.inputs) == 1 and about.inputs[0].name == "image":
        return "image"
    return "text" if len(about.inputs) == 1 and about.inputs[0].name == "text" else "table"


@dataclass(frozen=True)
class InputColumns:
    """Which columns of the data a model takes."""

    about: Description
    image: str | None = None
    """The column with the picture; None: as it was called in training."""
    text: str | None = None
    """The same of the text, without the columns that were joined to it."""

    @property
    def names(self) -> Sequence[str]:
        kind, trained = kind_of(self.about), cast(Mapping[str, Any], self.about.config.get("data", {}))
        if kind == "image":
            return [self.image or trained.get("image_column", "image")]
        if kind == "text":
            return [self.text] if self.text else [trained.get("text_column", "text"),
                                                  *trained.get("text_columns_join", ())]
        return [spec.name for spec in self.about.inputs]

    def check(self, schema: Any, uri: str) -> None:
        """schema: Arrow's, of the data. Raises: DataError where it lacks one, or has another kind of it."""
        kind, present = kind_of(self.about), schema.names
        if not (missing := [name for name in self.names if name not in present]):
            for name in self.names if kind == "text" else ():
                _check_text(name, schema.field(name).type)
            return
        near = difflib.get_close_matches(missing[0], present, 1)
        remedy = (f"name it, as in --data.{kind}-column {near[0] if near else 'NAME'}" if kind != "table" else
                  f"rename {near[0]!r}" if near else "add it, or ask another model")
        raise DataError(f"data {uri!r} has no column {missing[0]!r}, which the model takes ({kind}; "
                        f"{self.about.task}): it has {', '.join(present)}; {remedy}")

    def take(self, batch: Any) -> tuple[Inputs, dict[int, str]]:
        """The inputs of the rows that have some, and why the others have none, by their places.

        batch: an Arrow record batch. Raises: DataError, which may be of some of the rows alone.
        """
        kind = kind_of(self.about)
        if kind == "image":
            return self._images(batch.column(self.names[0]))
        if kind == "text":
            return self._texts([batch.column(name) for name in self.names])
        return {spec.name: _values(batch.column(spec.name), spec) for spec in self.about.inputs}, {}

    def _images(self, column: ArrowArray) -> tuple[Inputs, dict[int, str]]:
        spec = self.about.inputs[0]
        wanted = replace(self._image, dtype="uint8") if is_encoded(column.type) else self._image
        found = decode_column(column, wanted, wanted.shape, self._rule, lambda row: "the image")
        there = np.array([row not in found.bad for row in range(len(column))])
        return ({spec.name: found.pixels[there].astype(DTYPES[spec.datatype], copy=False)},
                {row: why for row, (_, why) in found.bad.items()})

    @cached_property
    def _image(self) -> ImageSpec:
        height, width, channels = self.about.preprocessing["shape"]
        return ImageSpec((height, width, channels), "uint8" if self.about.inputs[0].datatype == "UINT8" else "float32")

    @cached_property
    def _rule(self) -> Any:
        return picture_rule(self.about)

    def _texts(self, columns: Sequence[ArrowArray]) -> tuple[Inputs, dict[int, str]]:
        values = [column.to_pylist() for column in columns]
        texts = [" ".join(part for part in row if part) for row in zip(*values, strict=True)]
        there = [place for place, text in enumerate(texts) if text.strip()]
        made = np.empty(len(there), object)
        made[:] = [texts[place] for place in there]
        return {"text": made}, {place: "holds no text" for place, text in enumerate(texts) if not text.strip()}


def _check_text(name: str, kind: Any) -> None:
    """kind: a column's type. Raises: DataError."""
    if not is_text(kind.value_type if pa.types.is_dictionary(kind) else kind):
        raise DataError(f"column {name!r} holds {kind}, not text: name another one with --data.text-column")


def _values(column: Any, spec: TensorSpec) -> Array:
    """A column as an input tensor. Raises: InputError."""
    if len(spec.shape) > 1:
        return _nested(column, spec)
    if spec.datatype == "BYTES":
        is_temporal = pa.types.is_temporal(column.type)
        texts = column.cast(pa.string()) if is_temporal else column if is_text(column.type) else as_texts(column)
        made = np.empty(len(column), object)
        made[:] = ["" if value is None else value for value in texts.to_pylist()]
        return made
    if is_text(column.type):  # the values of CSV and JSON
        made = np.empty(len(column), object)
        made[:] = ["" if value is None else value for value in column.to_pylist()]
        return made
    try:
        return column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False).astype(DTYPES[spec.datatype])
    except pa.ArrowException as error:
        raise InputError(f"column {spec.name!r} is {column.type}, not numbers ({error})") from error


def _nested(column: Any, spec: TensorSpec) -> Array:
    try:
        return np.array(column.to_pylist(), DTYPES[spec.datatype]).reshape(len(column), *spec.shape[1:])
    except (TypeError, ValueError) as error:
        raise InputError(f"column {spec.name!r} is not {spec.datatype} of shape {list(spec.shape[1:])}") from error


# ── answers ──
def answer_columns(outputs: Inputs, about: Description, top_k: int) -> dict[str, Any]:
    """What is added to the rows, by name, as Arrow arrays. outputs: a model's, by tensor."""
    if "probabilities" not in outputs or not about.labels:
        return {name: _column(values) for name, values in outputs.items()}
    probabilities = outputs["probabilities"]
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, : min(top_k, len(about.labels))]
    labels = pa.array(about.labels, pa.string())
    sorted_ = np.take_along_axis(probabilities, order, axis=1)
    others = {name: _column(values) for name, values in outputs.items() if name != "probabilities"}
    return {"predicted": labels.take(pa.array(order[:, 0])), "probability": pa.array(sorted_[:, 0]),
            "probabilities": _column(probabilities),
            "top_labels": _lists(labels.take(pa.array(order.ravel())), order.shape[1]),
            "top_probabilities": _lists(pa.array(sorted_.ravel()), order.shape[1]), **others}


def finite_rows(outputs: Inputs) -> Array:
    """(rows,): whether all numbers of a row's answer are finite."""
    rows = len(next(iter(outputs.values())))
    found = np.ones(rows, bool)
    for values in outputs.values():
        if values.dtype.kind == "f":
            found &= np.isfinite(values.reshape(rows, math.prod(values.shape[1:]))).all(axis=1)
    return found


def _column(values: Array) -> Any:
    """(rows,) or (rows, 1) as numbers, what is wider as lists of a fixed length."""
    if values.dtype == object:
        return pa.array(values.tolist(), pa.string())
    flat, width = pa.array(np.ascontiguousarray(values).reshape(-1)), math.prod(values.shape[1:])
    return flat if width == 1 else _lists(flat, width)


def _lists(values: Any, length: int) -> Any:
    return pa.FixedSizeListArray.from_arrays(values, length)
