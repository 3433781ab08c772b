"""The first two passes over a table, each of some of its parts: which columns there are, and how they are normalised.

What a pass answers is plain JSON values, so that it may run anywhere; `found` and `schema_of` put the answers together.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.core.documents import JsonObject
from cluster.core.errors import DataError
from jobs.common.tables.columns import Field, TableSchema, as_days, as_numbers, as_texts, is_missing
from jobs.common.tables.kinds import Sighting
from jobs.common.tables.rows import Heading, Rows
from jobs.common.tables.sources import Part
from jobs.common.tables.targets import Targets, find_targets

MOST_CATEGORIES = 10_000
Kinds = Mapping[str, Sighting]


# ── which columns ──
def look(heading: Heading, parts: Sequence[Part]) -> JsonObject:
    """Answers with the kinds of the input columns, the rows of each part, and the target columns. Raises: DataError."""
    kinds = _kinds(heading)
    counts, batches = [0] * len(parts), list[Any]()
    for rows in heading.rows(parts):
        for name, kind in kinds.items():
            kind.see(rows.column(name), rows.describe)
        number = next(number for number, part in enumerate(parts) if part is rows.part)
        batches.append([number, _packed(rows.columns.select(heading.targets))])
        counts[number] += rows.columns.num_rows
    return {"kinds": {name: kind.to_json() for name, kind in kinds.items()}, "rows": counts, "targets": batches}


def found(heading: Heading, groups: Sequence[Sequence[Part]],
          answers: Iterable[JsonObject]) -> tuple[Kinds, Targets, list[list[int]]]:
    """The kinds, the targets, and the rows of each part, of what `look` answered for each group of parts."""
    kinds = _kinds(heading)
    columns: dict[str, list[tuple[Rows, Any]]] = {name: [] for name in heading.targets}
    counts: list[list[int]] = []
    for parts, answer in zip(groups, answers, strict=True):
        for name, kind in kinds.items():
            kind.add(answer["kinds"][name])
        done = [0] * len(parts)
        for number, packed in answer["targets"]:
            batch = _unpacked(packed)
            for name, seen in columns.items():
                seen.append((Rows(parts[number], done[number], 0, None), batch.column(name)))
            done[number] += batch.num_rows
        counts.append(answer["rows"])
    return kinds, find_targets(columns, heading.config), counts


def _kinds(heading: Heading) -> dict[str, Sighting]:
    return {name: Sighting(name, as_category=name in heading.categories) for name in heading.inputs}


def _packed(batch: Any) -> str:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    return base64.b64encode(sink.getvalue()).decode()


def _unpacked(packed: str) -> Any:
    with pa.ipc.open_stream(base64.b64decode(packed)) as stream:
        return stream.read_next_batch()


# ── how they are normalised ──
@dataclass(frozen=True)
class Group:
    """Successive parts, which a task reads."""

    number: int
    parts: tuple[Part, ...]
    first: int
    """The id of its first row."""
    splits: npt.NDArray[np.int8]
    targets: npt.NDArray[Any]
    """Of each row: its class, or (rows, T) numbers."""


def measure(heading: Heading, kinds: Kinds, group: Group) -> JsonObject:
    """Answers, for each input column of the training rows: whether values are missing, and of a category its values,
    of numbers and dates how many there are, their mean, and the sum of squared distances from it. Raises: DataError."""
    sums = {name: np.zeros(3) for name in kinds}
    shifts: dict[str, float] = {}
    seen: dict[str, set[str]] = {name: set() for name in kinds}
    misses = dict.fromkeys(kinds, False)
    for rows in heading.rows(group.parts):
        training = pa.array(group.splits[rows.first : rows.first + rows.columns.num_rows] == 0)
        for name, kind in kinds.items():
            column = rows.column(name).filter(training)
            misses[name] |= bool(is_missing(column).any())
            if kind.kind == "category":
                seen[name] |= set(as_texts(column).unique().drop_null().to_pylist())
                _check_few(name, seen[name], kind)
                continue
            values = (as_numbers if kind.kind == "number" else as_days)(column, name)
            values = values[~np.isnan(values)]
            shift = shifts.setdefault(name, float(values[0])) if len(values) else 0.0
            values = values - shift
            with np.errstate(over="ignore"):
                sums[name] += (len(values), values.sum(), (values**2).sum())
    return {name: {"misses": misses[name], "values": sorted(seen[name]),
                   "moments": _moments(name, sums[name], shifts.get(name, 0.0))} for name in kinds}


def schema_of(kinds: Kinds, answers: Iterable[JsonObject]) -> TableSchema:
    """The input columns as the training rows have them, of what `measure` answered for each group.
    Raises: DataError."""
    moments = dict.fromkeys(kinds, (0.0, 0.0, 0.0))
    seen: dict[str, set[str]] = {name: set() for name in kinds}
    misses = dict.fromkeys(kinds, False)
    for answer in answers:
        for name, kind in kinds.items():
            of = answer[name]
            misses[name] |= of["misses"]
            seen[name] |= set(of["values"])
            _check_few(name, seen[name], kind)
            moments[name] = _merged(moments[name], of["moments"])
    return TableSchema(tuple(
        Field(name, kind.kind, misses=misses[name], values=tuple(sorted(seen[name]))) if kind.kind == "category"
        else _scaled(Field(name, kind.kind, misses=misses[name]), *moments[name]) for name, kind in kinds.items()))


def _moments(name: str, sums: npt.NDArray[np.float64], shift: float) -> tuple[float, float, float]:
    count, total, squares = (float(each) for each in sums)
    if not count:
        return 0.0, 0.0, 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        variance = float(squares / count - np.square(np.float64(total / count)))
    if not np.isfinite(variance):
        raise DataError(f"column {name!r} has values too large to be normalised, around {shift:.3g}: mend them, or "
                        f"leave it out with --data.ignore {name}")
    return count, shift + total / count, max(0.0, variance) * count


def _merged(one: Sequence[float], other: Sequence[float]) -> tuple[float, float, float]:
    """Count, mean and squares of both together (Chan et al. 1979)."""
    if not one[0] or not other[0]:
        count, mean, squares = one if one[0] else other
        return count, mean, squares
    count, apart = one[0] + other[0], other[1] - one[1]
    return (count, one[1] + apart * (other[0] / count),
            one[2] + other[2] + apart * apart * (one[0] * other[0] / count))


def _scaled(field: Field, count: float, mean: float, squares: float) -> Field:
    if not count:
        raise DataError(f"column {field.name!r} has no value in any training row: leave it out with --data.ignore "
                        f"{field.name}")
    return Field(field.name, field.kind, mean=digits(mean), std=digits((squares / count) ** 0.5) or 1.0,
                 misses=field.misses)


def digits(value: float) -> float:
    """To 12 digits: the rest depends on how the rows are cut into files."""
    return float(f"{value:.12g}")


def _check_few(name: str, values: set[str], kind: Sighting) -> None:
    if len(values) > MOST_CATEGORIES:
        raise DataError(f"column {name!r} holds more than {MOST_CATEGORIES:,} different texts{kind.because}: leave it "
                        f"out with --data.ignore {name}, or mend its values")
