"""From a model and new data to a folder with an answer to each row: what is there already is not done again.

    find the rows ─► plan ─► (actors of the cluster, or this process) pieces ─► manifest
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import functools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cluster.core.documents import JsonObject
from cluster.core.errors import ConfigError, StoppedError
from cluster.core.signals import on_stop_signal
from cluster.core.storage import Store
from jobs.common.config import require
from jobs.common.data.csv_config import CsvDataConfig
from jobs.common.predicting.columns import GENERATES, InputColumns, kind_of
from jobs.common.predicting.model import FoundModel
from jobs.common.predicting.output import Output, Plan, Record
from jobs.common.predicting.source import NewData, find_rows
from jobs.common.predicting.work import NumberedPiece, Work, Worker, check_few
from jobs.common.predicting.writer import Writing
from jobs.common.runs.console import duration

Say = Callable[[str], None]
_SAY_S = 5.0
_MOST_TRIES = 4
"""Of a piece whose actor dies: it may be what kills it."""


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Who does the pieces: actors of a Ray cluster, or this process."""

    address: str | None = None
    """Of the cluster; by default RAY_ADDRESS, else this process does them."""
    workers: tuple[int, int] | None = None
    """The least and the most actors; by default one, and as many more as there is room for."""
    cpus: int | None = None
    """Of each, and the threads that a model computes with; by default 1, in this process all cores."""
    gpus: int = 0
    wait_s: float = 60.0
    """For resources that the cluster can have but has not now."""

    def __post_init__(self) -> None:
        require(self.cpus is None or self.cpus >= 1, "cpus-per-worker", self.cpus, "must be at least 1")
        require(self.gpus in (0, 1), "gpus-per-worker", self.gpus, "must be 0 or 1")
        if self.cluster is None and self.workers is not None:
            raise ConfigError("--workers: without a Ray cluster this process does all: pass --address (`local` starts "
                              "one), set RAY_ADDRESS, or leave --workers out")

    @property
    def cluster(self) -> str | None:
        """The cluster's address; None: this process."""
        return self.address or os.environ.get("RAY_ADDRESS")

    @property
    def threads(self) -> int:
        return self.cpus or (1 if self.cluster else os.cpu_count() or 1)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What is asked for."""

    model: FoundModel
    data: CsvDataConfig
    """Where the rows are, and how their files are written."""
    out: Store
    pool: Pool
    image_column: str | None = None
    text_column: str | None = None
    drop: tuple[str, ...] = ()
    top_k: int = 3
    batch_rows: int | None = None
    """By default it is measured."""
    most_failed: float = 0.01
    """The share of the rows that may be without an answer."""
    writing: Writing = field(default_factory=Writing)
    """How a model that writes does it."""
    overwrite: bool = False
    watches: bool = False
    """Whether features are counted, for drift."""
    needed: tuple[str, ...] = ()
    """Columns that must be there, too."""
    change: str = ""
    """Of each row, as `Changing` of predictor/predictor.py has them."""

    def __post_init__(self) -> None:
        require(self.top_k >= 1, "top-k", self.top_k, "must be at least 1")
        require(self.batch_rows is None or self.batch_rows >= 1, "batch-rows", self.batch_rows, "must be at least 1")
        require(0 <= self.most_failed < 1, "most-failed", self.most_failed, "must be at least 0 and below 1")

    @property
    def options(self) -> JsonObject:
        """What decides the answers beside model and data, by flag."""
        data = self.data
        return {"data.image-column": self.image_column, "data.text-column": self.text_column,
                "data.delimiter": data.delimiter, "data.quoting": data.quoting, "data.encoding": data.encoding,
                "drop": list(self.drop), "top-k": self.top_k, "piece-mb": data.piece_mb,
                "cpus-per-worker": self.pool.threads, "gpus-per-worker": self.pool.gpus,
                **({"drift": True} if self.watches else {}), **({"change": self.change} if self.change else {}),
                **({name.replace("_", "-"): value for name, value in asdict(self.writing).items()}
                   if self.model.artifact.manifest.description.task == GENERATES else {})}


def predict(asked: Prediction, say: Say) -> JsonObject:
    """Carries it out, or goes on with it. Returns the manifest of the folder. Raises: TrainyardError."""
    output = Output(asked.out)
    known, complete = output.find()
    data = find_rows(asked.data, kind_of(asked.model.artifact.manifest.description))
    work = _work(asked, output, data)
    if known is not None:
        known = _unless_other(asked, known, data) if complete or output.done() else None
    if known is not None and complete:
        say(f"{asked.out.location()} is complete already")
        return output.manifest()
    _heed_signals(asked)
    if asked.pool.cluster is None:
        return _carried_out(asked, data, work, known, say)
    import ray

    from cluster.capacity import Request, preflight
    from cluster.connect import connect, disconnect

    before = ray.is_initialized()
    connect(asked.pool.address)
    try:
        _heed_signals(asked)  # again: `ray.init` has taken them
        least = asked.pool.workers[0] if asked.pool.workers else 1
        preflight(Request(num_workers=least, cpus_per_worker=asked.pool.threads, gpus_per_worker=asked.pool.gpus),
                  asked.out, asked.pool.wait_s, say=say)
        return _carried_out(asked, data, work, known, say)
    finally:
        if not before:
            disconnect()


def _heed_signals(asked: Prediction) -> None:
    def stop(name: str) -> None:
        raise StoppedError(f"{name}: stopped; the pieces that are done stay in {asked.out.location()}, and the same "
                           "command goes on with the others")

    on_stop_signal(stop)


def _work(asked: Prediction, output: Output, data: NewData) -> Work:
    """Raises: DataError, ConfigError for columns that are not there."""
    inputs = InputColumns(asked.model.artifact.manifest.description, asked.image_column, asked.text_column)
    schema = next(data.pieces[0].rows(64)).columns.schema
    inputs.check(schema, data.uri)
    if missing := [name for name in (*asked.drop, *asked.needed) if name not in schema.names]:
        raise ConfigError(f"there is no column {missing[0]!r}: the data has {', '.join(schema.names)}")
    return Work(model=asked.model.reference, inputs=inputs, output=output, schema=schema,
                dropped=tuple({*asked.drop, *data.pictures}), top_k=asked.top_k, threads=asked.pool.threads,
                writing=asked.writing, most_failed=int(asked.most_failed * data.num_rows), watches=asked.watches,
                change=asked.change)


def _unless_other(asked: Prediction, known: Plan, data: NewData) -> Plan | None:
    """The plan of what is there, where it goes on; None where it is to be overwritten.
    Raises: ConfigError where it is of something else, and is not."""
    differing = known.differences(_plan(asked, data, asked.batch_rows or known.batch_rows))
    if asked.batch_rows not in (None, known.batch_rows):
        differing.append(f"--batch-rows {known.batch_rows}, not {asked.batch_rows}")
    if asked.overwrite:
        return None
    if differing:
        raise ConfigError(f"--out {asked.out.location()} has answers of {'; '.join(differing)}: pass --overwrite, or "
                          "another --out")
    return known


def _plan(asked: Prediction, data: NewData, batch_rows: int) -> Plan:
    return Plan(model=asked.model.artifact.digest, data=data.fingerprint, options=asked.options, batch_rows=batch_rows,
                pieces=len(data.pieces), rows=data.num_rows)


def _carried_out(asked: Prediction, data: NewData, work: Work, known: Plan | None, say: Say) -> JsonObject:
    output, worker = work.output, Worker(work)
    if known is None:
        output.clear()
        known = _plan(asked, data, asked.batch_rows or _measured(asked.pool, worker, data))
        output.begin(known)
    worker.work = work = replace(work, batch_rows=known.batch_rows)
    records = output.done()
    left = [NumberedPiece(number, piece) for number, piece in enumerate(data.pieces) if number not in records]
    if records:
        say(f"going on: {len(records):,} of {len(data.pieces):,} pieces are done")
    say(f"{data.num_rows:,} rows in {len(data.pieces):,} piece{'s' * (len(data.pieces) > 1)}, {known.batch_rows:,} at "
        f"a time, by {'actors of the Ray cluster' if asked.pool.cluster else 'this process'}")
    if data.unread:
        say(f"left out: {len(data.unread):,} files of another format ({data.unread[0]} …)")
    progress = _Progress(say, data.num_rows, sum(data.rows[number] for number in records))
    failed = [bad for each in records.values() for bad in each.failed]
    for number in _done(asked.pool, worker, left):
        record = output.record(number)
        assert record is not None, "a piece that is done has its record"
        records[number] = record
        failed += record.failed
        check_few(failed, work.most_failed)
        progress.add(data.rows[number])
    _check_whole(data, records)
    drift = _summed([each.drift for each in records.values() if each.drift])
    output.finish(known, records, {"model": asked.model.name, "data": data.uri, **({"drift": drift} if drift else {})})
    return output.manifest()


def _measured(pool: Pool, worker: Worker, data: NewData) -> int:
    if pool.cluster is None:
        return worker.measure(data.pieces[0])
    import ray

    kind: Any = ray.remote(num_cpus=pool.threads, num_gpus=pool.gpus)(Worker)
    actor = kind.remote(worker.work)
    try:
        return ray.get(actor.measure.remote(data.pieces[0]))
    finally:
        ray.kill(actor)


def _done(pool: Pool, worker: Worker, left: Sequence[NumberedPiece]) -> Iterator[int]:
    """The numbers of pieces, as they are done. Raises: TrainyardError."""
    if pool.cluster is None or not left:
        for piece in left:
            yield worker(piece)["number"]
        return
    from jobs.common.data.ray_map import map_with_actors

    worker.work.output.forget_tries()
    work = replace(worker.work, most_tries=_MOST_TRIES)
    for answer in map_with_actors(left, functools.partial(Worker, work), actors=pool.workers or (1, len(left)),
                                  cpus=pool.threads, gpus=pool.gpus):
        yield answer["number"]


def _check_whole(data: NewData, records: Mapping[int, Record]) -> None:
    """Raises: ConfigError for a file that was changed meanwhile."""
    for number, rows in enumerate(data.rows):
        if (found := records[number].rows + len(records[number].failed)) != rows:
            raise ConfigError(f"{data.pieces[number].name} had {rows:,} rows when it was counted, and {found:,} when "
                              "it was answered: it was changed meanwhile; pass --overwrite to begin again")


def _summed(counts: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, list[int]]:
    """By feature and bin."""
    names = {name: None for each in counts for name in each}
    return {name: [sum(bins) for bins in zip(*(each[name] for each in counts if name in each), strict=True)]
            for name in names}


class _Progress:
    """Says now and then how far it is."""

    def __init__(self, say: Say, total: int, before: int) -> None:
        self._say, self._total, self._before, self._done = say, total, before, before
        self._began = self._told = time.monotonic()

    def add(self, rows: int) -> None:
        self._done += rows
        now = time.monotonic()
        if now - self._told > _SAY_S and self._done < self._total:
            rate = (self._done - self._before) / (now - self._began)
            self._say(f"{self._done:,} of {self._total:,} rows, {rate:,.0f} rows/s, eta "
                      f"{duration((self._total - self._done) / rate)}")
            self._told = now
