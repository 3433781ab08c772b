"""Contract 2, of tables: from files to prepared blocks, in three passes over them, in tasks wherever there is room.

    look     which columns there are and of what kind; the targets, which say how rows are split
    measure  of the training rows alone: mean and deviation of numbers, the values of categories
    write    every row as the model takes it

A column is of numbers or dates if all its values are, else of categories. Nothing of a validation or test row gets into
what the model is told: a category that only those have counts as never seen, and the run says how many rows have one.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import functools
import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from cluster.core.documents import JsonObject
from cluster.core.errors import DataError
from cluster.core.storage import Store
from jobs.common.data.dataset import SPLITS, Column, Dataset, SplitName
from jobs.common.data.found.account import DROPPED, Account, LeftOut
from jobs.common.data.found.repeats import (
    Repeats,
    content_hashes,
    digests_of,
    find_repeats,
    forget,
    row_sums,
    write_hashes,
)
from jobs.common.data.pieces import Teller, Writing, for_each, in_pieces, joined, older_fingerprint, unfinished
from jobs.common.data.prepared import Say, Writers, find_or_build, fingerprint_of, key_of
from jobs.common.data.splits import assign
from jobs.common.tables.columns import TableSchema, UnreadableValueError, as_written
from jobs.common.tables.config import TableDataConfig
from jobs.common.tables.looking import Group, Kinds, found, look, measure, schema_of
from jobs.common.tables.rows import Heading
from jobs.common.tables.sources import Found, Part, find_table
from jobs.common.tables.targets import Targets

FORMAT_VERSION = 1
LEAST_ROWS = 10
EXAMPLES = 4
"""Test rows that are kept as they were written: what an endpoint checks itself against, and shows."""
RAY_BYTES = 64 << 20
"""Of files that one process has read sooner than tasks are started."""

Sources = dict[SplitName, Found]


def prepare(config: TableDataConfig, storage: Store, *, use_ray: bool = False, say: Say) -> Dataset:
    """The prepared table of a config: the one that is there, or else built now.

    Its columns: `numbers` (N,) float32, `categories` (C,) int32, each where there are any; `label`, or `target` (T,)
    float64; `row_id`. use_ray: in tasks of the connected cluster, a small table here all the same.
    Raises: DataError, naming the row; StorageError.
    """
    sources: Sources = {split: find_table(uri, config) for split, uri in _uris(config).items() if uri is not None}
    listing = {split: each.listing for split, each in sources.items()}
    options = [config.label_column, config.predict, config.ignore, config.categories, config.split_seed, FORMAT_VERSION,
               *config.choices]

    def build(store: Store, blocks: str) -> Dataset:
        return _Building(config, sources, store, blocks, use_ray, say).build()

    contents = {split: list(each.contents) for split, each in sources.items()}
    return find_or_build(storage, key_of("table", listing, options, contents), build,
                         [key_of("table", listing, options)])


def _uris(config: TableDataConfig) -> dict[SplitName, str | None]:
    return {"train": config.uri, "validation": config.val_uri, "test": config.test_uri}


def _parts(found: Sources) -> list[tuple[SplitName, Part]]:
    """In the order of rows. A URI given for a split is used as it is, whatever its files are called."""
    parts = found["train"].parts
    for split in SPLITS[1:]:
        if split in found:
            given = found[split].parts
            parts[split] = given.get(split) or [part for group in given.values() for part in group]
    return [(split, part) for split in SPLITS for part in parts.get(split, ())]


class _Building:
    """A table on its way into blocks."""

    def __init__(self, config: TableDataConfig, sources: Sources, store: Store, blocks: str, use_ray: bool,
                 say: Say) -> None:
        self._config, self._sources, self._store, self._blocks, self._say = config, sources, store, blocks, say
        parts = _parts(sources)
        sizes = [part.size for _, part in parts]
        self._use_ray = use_ray and sum(sizes) > RAY_BYTES
        self._splits: list[SplitName] = [split for split, _ in parts]
        self._heading = Heading.of([part for _, part in parts], config)
        self._pieces = in_pieces([part for _, part in parts], lambda part: part.size, config.piece_bytes(sum(sizes)))
        self._sizes = [sum(part.size for part in piece) for piece in self._pieces]

    def build(self) -> Dataset:
        looked = for_each(self._pieces, functools.partial(look, self._heading), use_ray=self._use_ray)
        kinds, targets, counts = found(self._heading, self._pieces, looked)
        return self._build(kinds, targets, self._split(targets, counts), [sum(rows) for rows in counts])

    def _build(self, kinds: Kinds, targets: Targets, splits: npt.NDArray[np.int8], counts: Sequence[int]) -> Dataset:
        """counts: rows of each piece. Rows of split -1 are left out."""
        scales = _target_scales(targets, splits, self._heading.targets)
        groups = self._groups(targets, splits, counts)
        schema = schema_of(kinds, for_each(groups, functools.partial(measure, self._heading, kinds),
                                           use_ray=self._use_ray))
        self._say(f"preparing {len(splits):,} rows of {self._config.uri}: {_said(self._heading, targets)} from "
                  + ", ".join(f"{sum(f.kind == kind for f in schema.fields)} {words}" for kind, words in
                              (("number", "numbers"), ("category", "categories"), ("date", "dates"))
                              if any(f.kind == kind for f in schema.fields)))
        details: JsonObject = {"_fields": [asdict(field) for field in schema.fields], "targets": scales}
        answers = self._write(groups, schema, targets, details)
        repeats, more = find_repeats(self._config, self._store, self._blocks, len(groups), len(splits),
                                     use_ray=self._use_ray)
        if len(more):
            forget(self._store, self._blocks)
            kept = splits.copy()
            kept[more] = -1
            return self._build(kinds, targets, kept, counts)
        return self._finished(answers, schema, targets, details, repeats, int((splits < 0).sum()))

    def _split(self, targets: Targets, counts: Sequence[Sequence[int]]) -> npt.NDArray[np.int8]:
        rows = list(itertools.chain.from_iterable(counts))
        if sum(rows) < LEAST_ROWS:
            raise DataError(f"data {self._config.uri!r} has {sum(rows)} rows: {LEAST_ROWS} or more are needed to "
                            "train, choose and test")
        codes = targets.values if targets.class_names else np.zeros(sum(rows), np.int32)
        return assign(codes, targets.class_names or ("any",), self._splits, rows, self._config.split_seed)

    def _groups(self, targets: Targets, splits: npt.NDArray[np.int8], counts: Sequence[int]) -> list[Group]:
        firsts = itertools.accumulate(counts, initial=0)
        return [Group(number, parts, first, splits[first : first + rows], targets.values[first : first + rows])
                for number, (parts, first, rows) in enumerate(zip(self._pieces, firsts, counts, strict=False))]

    def _write(self, groups: Sequence[Group], schema: TableSchema, targets: Targets,
               details: JsonObject) -> list[JsonObject]:
        columns = _columns(schema, targets)
        plan = [details, targets.class_names, self._sizes, [len(group.splits) for group in groups],
                self._config.split_seed]
        writing = Writing(self._store, self._blocks, columns, len(targets.class_names),
                          unfinished(self._store, self._blocks, plan, self._say),
                          hashed=len(groups) == 1)  # the older fingerprint is of one piece alone
        written = for_each(groups, Task(self._heading, schema, writing), use_ray=self._use_ray)
        teller = Teller(self._say, f"preparing {self._config.uri}", sum(self._sizes))
        return list(teller.following(written, self._sizes))

    def _finished(self, answers: Sequence[JsonObject], schema: TableSchema, targets: Targets, details: JsonObject,
                  repeats: Repeats, dropped: int) -> Dataset:
        abouts: list[JsonObject] = [answer["about"] for answer in answers]
        if unseen := sum(about["unseen"] for about in abouts):
            self._say(f"{unseen:,} validation and test rows have a missing value or a category that no training row "
                      "has: it counts as unknown")
        splits, _ = joined(answers)
        about: JsonObject = {"details": details | {"_examples": _examples(abouts, [
            answer["rows"]["test"] for answer in answers])}, "class_names": targets.class_names}
        files = sum(size > 0 for each in self._sources.values() for _, size, _ in each.listing)
        account = Account.of(files, [each.unread for each in self._sources.values()],
                             {DROPPED: LeftOut(dropped)}, repeats)
        fingerprint = fingerprint_of(about, digests_of([each["sums"] for each in abouts]))
        return Dataset(store=self._store, blocks=self._blocks, fingerprint=fingerprint, splits=splits,
                       columns=_columns(schema, targets), class_names=targets.class_names,
                       details=about["details"] | older_fingerprint(about, answers) | account.details)


def _examples(abouts: Sequence[JsonObject], tested: Sequence[int]) -> JsonObject:
    """The first test rows of which every value is known, as they were written: by column, and their places in the
    split. tested: test rows of each piece."""
    firsts = itertools.accumulate(tested, initial=0)
    rows = [(example, first + place) for about, first in zip(abouts, firsts, strict=False)
            for example, place in zip(about["examples"], about["places"], strict=True)][:EXAMPLES]
    if not rows:
        raise DataError("every test row lacks a value that all training rows have, or has a category that none has: "
                        "test on rows like those that are trained on")
    return {"rows": [example for example, _ in rows], "places": [place for _, place in rows]}


def _target_scales(targets: Targets, splits: npt.NDArray[np.int8], wanted: Sequence[str]) -> list[JsonObject]:
    """Name, mean and deviation of each number that is predicted, over the training rows."""
    if targets.class_names:
        return []
    training = targets.values[splits == 0]
    mean, std = training.mean(axis=0), training.std(axis=0)
    for name, deviation, value in zip(wanted, std, mean, strict=True):
        if not deviation > 1e-12 * abs(value):
            raise DataError(f"the target column {name!r} is {value:g} in every training row: there is nothing to "
                            "predict; name another with --data.label-column")
    return [{"name": name, "mean": float(m), "std": float(s)} for name, m, s in zip(wanted, mean, std, strict=True)]


def _said(heading: Heading, targets: Targets) -> str:
    what = f"{len(targets.class_names)} classes" if targets.class_names else "a number"
    return " and ".join(f"{name} ({what})" for name in heading.targets)


def _columns(schema: TableSchema, targets: Targets) -> tuple[Column, ...]:
    inputs = (Column("numbers", "float32", (len(schema.numbers),)),
              Column("categories", "int32", (len(schema.cardinalities),)))
    target = (Column("label", "int32") if targets.class_names
              else Column("target", "float64", (targets.values.shape[1],)))
    return (*(column for column in inputs if column.shape[0]), target, Column("row_id", "int64"))


@dataclass(frozen=True)
class Task:
    """All that a group of parts is written with."""

    heading: Heading
    schema: TableSchema
    writing: Writing

    def __call__(self, group: Group) -> JsonObject:
        """Writes it. Answers with how many validation and test rows have a value that is `unseen`, and with some test
        rows as they were written, and their places among its own."""
        return self.writing.piece(group.number, lambda writers: self._fill(group, writers))

    def _fill(self, group: Group, writers: Writers) -> JsonObject:
        examples: list[JsonObject] = []
        places: list[int] = []
        hashes: list[bytes] = []
        ids, target = group.first + np.arange(len(group.splits)), "label" if self.writing.num_classes else "target"
        unseen = tested = done = 0
        for rows in self.heading.rows(group.parts):
            place = slice(done, done + rows.columns.num_rows)
            done = place.stop
            if done > len(ids):
                break
            try:
                encoded = self.schema.encode({name: rows.column(name) for name in self.heading.inputs})
            except UnreadableValueError as error:  # it was well when it was looked at
                raise DataError(f"{rows.describe(error.row)}: {error}: the data changed meanwhile; run it again"
                                ) from None
            made = {"numbers": encoded.numbers, "categories": encoded.categories, target: group.targets[place],
                    "row_id": ids[place]}
            of = group.splits[place]
            inputs = np.concatenate([made[name].view(np.uint8) for name in ("numbers", "categories")], axis=1)
            hashes.append(content_hashes(map(bytes, inputs)))
            unseen += int(((of > 0) & (encoded.unseen > 0)).sum())
            for code, (_, writer) in enumerate(writers.items()):
                writer.append({column.name: made[column.name][of == code] for column in writer.columns})
            test = np.flatnonzero(of == SPLITS.index("test"))
            for known in np.flatnonzero(encoded.unseen[test] == 0)[: EXAMPLES - len(examples)].tolist():
                examples.append({field.name: as_written(field, rows.column(field.name), int(test[known]))
                                 for field in self.schema.fields})
                places.append(tested + known)
            tested += len(test)
        if done != len(ids):
            raise DataError(f"{group.parts[0].describe(0)} and what follows had {len(ids):,} rows, and now has "
                            f"{done:,}: the data changed meanwhile; run it again")
        every, targets = b"".join(hashes), group.targets
        labels = targets if self.writing.num_classes else None
        write_hashes(self.writing.store, self.writing.blocks, group.number, every, group.splits, labels, ids)
        numbers = targets.astype(np.int64) if self.writing.num_classes else targets
        return {"examples": examples, "places": places, "unseen": unseen,
                "sums": row_sums(every, group.splits, numbers, ids)}
