"""One piece of the data: its rows are read, decoded and answered, batch by batch, and written in one go.

    rows ─► decode ─► predict ─► encode ─► columns beside the rows' own
      └ the next batch meanwhile, in a thread

A row that cannot be decoded, or that the model fails with, has no answer, and leaves those of others be: they are asked
in halves, down to the one row. What comes out depends on the piece and the size of batches alone.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

from cluster.core.documents import JsonObject
from cluster.core.errors import DataError, TrainingFailedError
from jobs.common.arrays import Array
from jobs.common.artifact.artifact import Artifact
from jobs.common.artifact.drift_reference import Reference, answer_features
from jobs.common.predicting.columns import InputColumns, Inputs, answer_columns, finite_rows
from jobs.common.predicting.model import ModelReference
from jobs.common.predicting.output import Output
from jobs.common.predicting.rows import BadRow, Piece, Rows
from jobs.common.predicting.writer import BATCH_ROWS, Writer, Writing
from jobs.common.predictor.loading import use_threads
from jobs.common.predictor.predictor import Changing, Predictor, Watched

MOST_BATCH_ROWS, _MOST_BATCH_BYTES = 4096, 256 << 20
_TIMED_S, _LONGEST_S, _ENOUGH = 0.1, 0.5, 1.05
_SHOWN = 3
S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is done with each piece. It can be pickled."""

    model: ModelReference
    inputs: InputColumns
    output: Output
    schema: Any
    """Of the data's columns, an Arrow schema."""
    dropped: tuple[str, ...]
    """Columns that are not kept."""
    top_k: int
    threads: int
    most_failed: int
    """Rows that may fail at most."""
    batch_rows: int = 0
    """That go through the model together."""
    writing: Writing = field(default_factory=Writing)
    """How a model that writes does it."""
    watches: bool = False
    """Whether features are counted, from which drift follows."""
    change: str = ""
    """Of each row, before it is asked about: one of those that the predictor knows."""
    most_tries: int | None = None
    """How often a piece may be begun, where whoever does it may die and another one begins it again."""


@dataclass(frozen=True)
class NumberedPiece:
    """A piece, and its place among all."""

    number: int
    piece: Piece


class Decoded(NamedTuple):
    """Rows as the model takes them, None where there are none, with their places in the batch; and why others are none
    of them, by place."""

    rows: Array | None
    places: Array
    bad: dict[int, str]


@dataclass
class _Found:
    """Of a piece, so far."""

    tables: list[Any] = field(default_factory=list[Any])
    failed: list[BadRow] = field(default_factory=list[BadRow])
    drift: dict[str, Array] = field(default_factory=dict[str, Array])


@dataclass
class Worker:
    """Has the model, from the first piece on. Raises: ArtifactError, DataError."""

    work: Work

    @cached_property
    def _loaded(self) -> tuple[Artifact, Predictor | Writer]:
        use_threads(self.work.threads)
        return self.work.model.load(self.work.writing)

    @cached_property
    def _no_outputs(self) -> Inputs:
        artifact, predictor = self._loaded
        if isinstance(predictor, Writer):
            return predictor.encode(predictor.predict(np.empty(0, object)))
        return {name: values[:0] for name, values in artifact.probe().outputs.items()}

    @cached_property
    def _reference(self) -> Reference | None:
        artifact, predictor = self._loaded
        return artifact.reference() if self.work.watches and isinstance(predictor, Watched) else None

    def measure(self, piece: Piece) -> int:
        """How many rows are best asked together: by the first rows of a piece, and the clock."""
        predictor = self._loaded[1]
        if isinstance(predictor, Writer):
            return BATCH_ROWS
        decoded = (self._decoded(each.columns, each.numbers).rows for each in piece.rows(64))
        if (rows := next((each for each in decoded if each is not None), None)) is None:
            return 64
        rates: dict[int, float] = {}
        size, most = 8, min(MOST_BATCH_ROWS, max(8, _MOST_BATCH_BYTES // max(1, rows[:1].nbytes)))
        while size <= most and (found := _rate(predictor, np.resize(rows, (size, *rows.shape[1:])))):
            rates[size] = found
            if size / found > _LONGEST_S:
                break
            size *= 2
        return min((each for each, rate in rates.items() if rate * _ENOUGH >= max(rates.values())), default=1)

    def __call__(self, piece: NumberedPiece) -> JsonObject:
        """Writes the answers of a piece, unless they are there. Returns its record."""
        output = self.work.output
        if (record := output.record(piece.number)) is None:
            self._check_tries(piece)
            found = self._answered(piece.piece)
            failed = [(*piece.piece.call(number), reason) for number, reason in sorted(found.failed)]
            drift = {name: tuple(counts.tolist()) for name, counts in found.drift.items()}
            record = output.write(piece.number, pa.concat_tables(found.tables), failed, drift or None)
        return {"number": piece.number, **asdict(record)}

    def _check_tries(self, piece: NumberedPiece) -> None:
        """Raises: TrainingFailedError for a piece that goes on killing whoever is at it."""
        if self.work.most_tries is not None and self.work.output.tried(piece.number) > self.work.most_tries:
            raise TrainingFailedError(f"{self.work.most_tries} actors died with the same rows of {piece.piece.name}: "
                                      "give them more memory, or pass fewer --batch-rows or a smaller --piece-mb; the "
                                      "same command goes on")

    # ── of a piece ──
    def _answered(self, piece: Piece) -> _Found:
        found = _Found()
        for rows, decoded in ahead(piece.rows(self.work.batch_rows), self._decoding):
            outputs, places = self._outputs(decoded)
            good = finite_rows(outputs)
            for place in places[~good].tolist():
                decoded.bad[place] = "has an answer that is not finite"
            outputs, places = {name: values[good] for name, values in outputs.items()}, places[good]
            found.tables.append(self._table(rows, outputs, places))
            found.failed += [*rows.bad, *((int(rows.numbers[place]), why) for place, why in decoded.bad.items())]
            check_few([(*piece.call(number), why) for number, why in found.failed], self.work.most_failed)
            self._count(decoded.rows, outputs, found)
        return found

    def _decoding(self, rows: Rows) -> Decoded:
        return self._decoded(_of_schema(rows.columns, self.work.schema), rows.numbers)

    def _decoded(self, batch: Any, numbers: Array) -> Decoded:
        if not batch.num_rows:
            return Decoded(None, np.empty(0, np.int64), {})
        try:
            inputs, bad = self.work.inputs.take(batch)
            places = np.array([place for place in range(batch.num_rows) if place not in bad], np.int64)
            predictor = self._loaded[1]
            if self.work.change and len(places):
                assert isinstance(predictor, Changing), "who asks for a change knows that there is one"
                inputs = predictor.change(self.work.change, inputs, numbers[places])
            return Decoded(predictor.decode(inputs) if len(places) else None, places, dict(bad))
        except DataError as error:
            if batch.num_rows == 1:
                return Decoded(None, np.empty(0, np.int64), {0: str(error).removeprefix("row 0: ")})
        half = batch.num_rows // 2
        first = self._decoded(batch.slice(0, half), numbers[:half])
        second = self._decoded(batch.slice(half), numbers[half:])
        there = [each.rows for each in (first, second) if each.rows is not None]
        return Decoded(np.concatenate(there) if there else None, np.concatenate([first.places, second.places + half]),
                       first.bad | {place + half: why for place, why in second.bad.items()})

    def _outputs(self, decoded: Decoded) -> tuple[Inputs, Array]:
        """The answers, and of which places they are; those that the model fails with become bad ones."""
        if decoded.rows is None:
            return self._no_outputs, decoded.places
        found, failed = _asked(self._loaded[1], decoded.rows)
        decoded.bad.update({int(decoded.places[place]): why for place, why in failed.items()})
        return found or self._no_outputs, np.delete(decoded.places, list(failed))

    def _table(self, rows: Rows, outputs: Inputs, places: Array) -> Any:
        """The rows that have an answer, with it."""
        about = self._loaded[0].manifest.description
        batch = pa.Table.from_batches([_of_schema(rows.columns, self.work.schema)]).drop_columns(
            list(self.work.dropped))
        kept = batch if len(places) == batch.num_rows else batch.take(pa.array(places))
        answers = answer_columns(outputs, about, self.work.top_k)
        if taken := sorted(set(answers) & set(kept.column_names)):
            raise DataError(f"the data has a column {taken[0]!r}, as the answers do: pass --drop {','.join(taken)}, or "
                            "rename it")
        for name, values in answers.items():
            kept = kept.append_column(name, values)
        return kept

    def _count(self, rows: Array | None, outputs: Inputs, found: _Found) -> None:
        """Adds inputs and answers to the bins of the model's reference."""
        predictor = self._loaded[1]
        if self._reference is None or rows is None or not isinstance(predictor, Watched):
            return
        columns = predictor.features(rows) | answer_features(outputs)
        for name, histogram in self._reference.features.items():
            if name in columns:
                counts = np.bincount(histogram.places(columns[name]), minlength=len(histogram.counts))
                found.drift[name] = found.drift.get(name, np.zeros_like(counts)) + counts


def ahead(items: Iterable[S], work: Callable[[S], T]) -> Iterator[tuple[S, T]]:
    """Each item with what `work` makes of it, in order; a thread is at the next one meanwhile."""
    with ThreadPoolExecutor(1) as thread:
        coming = None
        for item in items:
            begun = item, thread.submit(work, item)
            if coming is not None:
                yield coming[0], coming[1].result()
            coming = begun
        if coming is not None:
            yield coming[0], coming[1].result()


def check_few(failed: Sequence[tuple[str, int, str]], most: int) -> None:
    """Raises: DataError where more rows fail than may."""
    if len(failed) > most:
        first = "".join(f"\n  row {number} of {file} {why}" for file, number, why in sorted(failed)[:_SHOWN])
        raise DataError(f"{len(failed):,} rows have no answer so far, more than the {most:,} that --most-failed "
                        f"allows: mend them, or allow more{first}")


def _asked(predictor: Predictor | Writer, rows: Array) -> tuple[Inputs, dict[int, str]]:
    """The answers of all rows but those that the model fails with, and why, by place."""
    try:
        return predictor.encode(predictor.predict(rows)), {}
    except Exception as error:  # noqa: BLE001  (one row that a model fails with is not to end what is done for millions)
        if len(rows) == 1:
            return {}, {0: f"makes the model fail ({type(error).__name__}: {' '.join(str(error).split())[:200]})"}
    half = len(rows) // 2
    (first, bad), (second, others) = _asked(predictor, rows[:half]), _asked(predictor, rows[half:])
    bad |= {place + half: why for place, why in others.items()}
    parts = [each for each in (first, second) if each]
    return {name: np.concatenate([each[name] for each in parts]) for name in (parts[0] if parts else ())}, bad


def _rate(predictor: Predictor, rows: Array) -> float:
    """Rows a second, of the best of some calls; 0 where the model fails with so many."""
    try:
        predictor.predict(rows)
        times: list[float] = []
        while sum(times) < _TIMED_S or len(times) < 2:
            began = time.perf_counter()
            predictor.predict(rows)
            times.append(time.perf_counter() - began)
        return len(rows) / min(times)
    except Exception:  # noqa: BLE001  (no room for so many, most often; each piece says what else it is)
        return 0.0


def _of_schema(batch: Any, schema: Any) -> Any:
    """Raises: DataError for a batch of other columns."""
    if batch.schema.equals(schema):
        return batch
    if strange := sorted(set(batch.schema.names) ^ set(schema.names)):
        raise DataError(f"not all files of the data have the same columns ({', '.join(strange[:5])}): name those that "
                        "have")
    try:
        return batch.select(schema.names).cast(schema)
    except pa.ArrowException as error:
        raise DataError(f"not all files of the data have the same types of columns ({error}): name those that "
                        "have") from error
