"""Contract 2, of tables: from files to prepared blocks, in three passes over them, a batch of rows at a time.

    look     which columns there are and of what kind; the targets, which say how rows are split
    measure  of the training rows alone: mean and deviation of numbers, the values of categories
    write    every row as the model takes it

A column is of numbers or dates if all its values are, else of categories. Nothing of a validation or test row gets into
what the model is told: a category that only those have counts as never seen, and the run says how many rows have one.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.core.documents import JsonObject
from cluster.core.errors import DataError
from cluster.core.storage import Store
from jobs.common.data.dataset import SPLITS, Column, Dataset, Split, SplitName
from jobs.common.data.found.account import DROPPED, Account, LeftOut
from jobs.common.data.found.repeats import Hashes, Ids, Repeats, forget
from jobs.common.data.prepared import Say, Writers, content_fingerprint, find_or_build, key_of, split_writers
from jobs.common.data.splits import assign
from jobs.common.tables.columns import (
    Field,
    TableSchema,
    UnreadableValueError,
    as_days,
    as_numbers,
    as_texts,
    as_written,
    is_missing,
)
from jobs.common.tables.config import TableDataConfig
from jobs.common.tables.kinds import Sighting
from jobs.common.tables.rows import Rows, Table
from jobs.common.tables.sources import Found, Part, find_table
from jobs.common.tables.targets import Targets, find_targets

FORMAT_VERSION = 1
MOST_CATEGORIES = 10_000
LEAST_ROWS = 10
EXAMPLES = 4
"""Test rows that are kept as they were written: what an endpoint checks itself against, and shows."""

Sources = dict[SplitName, Found]


def prepare(config: TableDataConfig, storage: Store, *, say: Say) -> Dataset:
    """The prepared table of a config: the one that is there, or else built now.

    Its columns: `numbers` (N,) float32, `categories` (C,) int32, each where there are any; `label`, or `target` (T,)
    float64; `row_id`. Raises: DataError, naming the row; StorageError.
    """
    found: Sources = {split: find_table(uri, config) for split, uri in _uris(config).items() if uri is not None}
    listing = {split: each.listing for split, each in found.items()}
    options = [config.label_column, config.predict, config.ignore, config.categories, config.split_seed, FORMAT_VERSION,
               *config.choices]

    def build(store: Store, blocks: str) -> Dataset:
        made, repeats, dropped = _build(Table(_parts(found), config), store, blocks, say)
        files = sum(size > 0 for each in found.values() for _, size, _ in each.listing)
        account = Account.of(files, [each.unread for each in found.values()],
                             {DROPPED: LeftOut(dropped)}, repeats)
        return replace(made, details=made.details | account.details)

    contents = {split: list(each.contents) for split, each in found.items()}
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


# ── look ──
def _look(table: Table) -> tuple[dict[str, Sighting], Targets, list[int]]:
    """The kinds of the input columns, the targets, and the rows of each part."""
    kinds = {name: Sighting(name, as_category=name in table.categories) for name in table.inputs}
    targets: dict[str, list[tuple[Rows, Any]]] = {name: [] for name in table.targets}
    counts: dict[int, int] = {id(part): 0 for _, part in table.parts}
    for rows in table.rows():
        for name, kind in kinds.items():
            kind.see(rows.column(name), rows.describe)
        for name, seen in targets.items():
            seen.append((replace(rows, columns=None), rows.column(name)))  # not the whole batch, of a large table
        counts[id(rows.part)] += rows.columns.num_rows
    return kinds, find_targets(targets, table.config), [counts[id(part)] for _, part in table.parts]


# ── measure ──
def _measure(table: Table, kinds: dict[str, Sighting], splits: npt.NDArray[np.int8]) -> TableSchema:
    """The input columns as the training rows have them."""
    fields = {name: Field(name, kind.kind) for name, kind in kinds.items()}
    sums = {name: np.zeros(3) for name in fields}
    shifts: dict[str, float] = {}
    seen: dict[str, set[str]] = {name: set() for name in fields}
    for rows in table.rows():
        training = splits[rows.first : rows.first + rows.columns.num_rows] == 0
        for name, field in fields.items():
            column = rows.column(name).filter(pa.array(training))
            if field.kind == "category":
                seen[name] |= set(as_texts(column).unique().drop_null().to_pylist())
                _check_few(name, seen[name], kinds[name])
            else:
                values = (as_numbers if field.kind == "number" else as_days)(column, name)
                values = values[~np.isnan(values)]
                shift = shifts.setdefault(name, float(values[0])) if len(values) else 0.0
                values = values - shift
                with np.errstate(over="ignore"):
                    sums[name] += (len(values), values.sum(), (values**2).sum())
            fields[name] = replace(fields[name], misses=fields[name].misses or bool(is_missing(column).any()))
    return TableSchema(tuple(
        replace(field, values=tuple(sorted(seen[field.name]))) if field.kind == "category"
        else _scaled(field, sums[field.name], shifts.get(field.name, 0.0)) for field in fields.values()))


def _scaled(field: Field, sums: npt.NDArray[np.float64], shift: float) -> Field:
    count, total, squares = (float(each) for each in sums)
    if not count:
        raise DataError(f"column {field.name!r} has no value in any training row: leave it out with --data.ignore "
                        f"{field.name}")
    with np.errstate(over="ignore", invalid="ignore"):
        variance = float(squares / count - np.square(np.float64(total / count)))
    if not np.isfinite(variance):
        raise DataError(f"column {field.name!r} has values too large to be normalised, around {shift:.3g}: mend them, "
                        f"or leave it out with --data.ignore {field.name}")
    return replace(field, mean=_digits(shift + total / count), std=_digits(max(0.0, variance) ** 0.5) or 1.0)


def _digits(value: float) -> float:
    """To 12 digits: the rest depends on how the rows are cut into files."""
    return float(f"{value:.12g}")


def _check_few(name: str, values: set[str], kind: Sighting) -> None:
    if len(values) > MOST_CATEGORIES:
        raise DataError(f"column {name!r} holds more than {MOST_CATEGORIES:,} different texts{kind.because}: leave it "
                        f"out with --data.ignore {name}, or mend its values")


# ── write ──
def _build(table: Table, store: Store, blocks: str, say: Say,
           dropped: Ids | None = None) -> tuple[Dataset, Repeats, int]:
    """dropped: ids of rows that are left out. Returns how many those are, too."""
    kinds, targets, counts = _look(table)
    total = sum(counts)
    if total < LEAST_ROWS:
        raise DataError(f"data {table.config.uri!r} has {total} rows: {LEAST_ROWS} or more are needed to train, choose "
                        "and test")
    codes = targets.values if targets.class_names else np.zeros(total, np.int32)
    splits = assign(codes, targets.class_names or ("any",), [split for split, _ in table.parts], counts,
                    table.config.split_seed)
    if dropped is not None:
        splits[dropped] = -1
    scales = _target_scales(targets, splits, table.targets)
    schema = _measure(table, kinds, splits)
    say(f"preparing {total:,} rows of {table.config.uri}: {_said(table, targets)} from "
        + ", ".join(f"{sum(f.kind == kind for f in schema.fields)} {words}" for kind, words in
                    (("number", "numbers"), ("category", "categories"), ("date", "dates"))
                    if any(f.kind == kind for f in schema.fields)))
    columns = _columns(schema, targets)
    details: JsonObject = {"_fields": [asdict(field) for field in schema.fields], "targets": scales}
    hashes = Hashes(store, blocks)
    with split_writers(store, blocks, columns, len(targets.class_names)) as writers:
        details["_examples"] = _write(table, schema, targets, splits, writers, hashes, say)
        made: dict[SplitName, Split] = {name: writer.finish() for name, writer in writers.items()}
    repeats, more = hashes.repeats(table.config)
    if len(more):
        forget(store, blocks)
        return _build(table, store, blocks, say, more)
    about = {"details": details, "class_names": targets.class_names}
    dataset = Dataset(store=store, blocks=blocks, fingerprint=content_fingerprint(about, writers), splits=made,
                      columns=columns, class_names=targets.class_names, details=details)
    return dataset, repeats, 0 if dropped is None else len(dropped)


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


def _said(table: Table, targets: Targets) -> str:
    what = f"{len(targets.class_names)} classes" if targets.class_names else "a number"
    return " and ".join(f"{name} ({what})" for name in table.targets)


def _columns(schema: TableSchema, targets: Targets) -> tuple[Column, ...]:
    inputs = (Column("numbers", "float32", (len(schema.numbers),)),
              Column("categories", "int32", (len(schema.cardinalities),)))
    target = (Column("label", "int32") if targets.class_names
              else Column("target", "float64", (targets.values.shape[1],)))
    return (*(column for column in inputs if column.shape[0]), target, Column("row_id", "int64"))


def _write(table: Table, schema: TableSchema, targets: Targets, splits: npt.NDArray[np.int8], writers: Writers,
           hashes: Hashes, say: Say) -> JsonObject:
    """Returns the first test rows of which every value is known, as they were written: by column, and their places in
    the split."""
    examples: list[JsonObject] = []
    places: list[int] = []
    unseen = tested = 0
    for rows in table.rows():
        place = slice(rows.first, rows.first + rows.columns.num_rows)
        try:
            encoded = schema.encode({name: rows.column(name) for name in table.inputs})
        except UnreadableValueError as error:  # it was well when it was looked at
            raise DataError(f"{rows.describe(error.row)}: {error}: the data changed meanwhile; run it again") from None
        made = {"numbers": encoded.numbers, "categories": encoded.categories,
                "label" if targets.class_names else "target": targets.values[place],
                "row_id": np.arange(place.start, place.stop)}
        of = splits[place]
        inputs = np.concatenate([made[name].view(np.uint8) for name in ("numbers", "categories")], axis=1)
        hashes.add(map(bytes, inputs), of, made.get("label"), made["row_id"])
        unseen += int(((of > 0) & (encoded.unseen > 0)).sum())
        for code, (_, writer) in enumerate(writers.items()):
            writer.append({column.name: made[column.name][of == code] for column in writer.columns})
        test = np.flatnonzero(of == 2)
        for place in np.flatnonzero(encoded.unseen[test] == 0)[: EXAMPLES - len(examples)]:
            row = int(test[place])
            examples.append({field.name: as_written(field, rows.column(field.name), row) for field in schema.fields})
            places.append(tested + int(place))
        tested += len(test)
    if unseen:
        say(f"{unseen:,} validation and test rows have a missing value or a category that no training row has: it "
            "counts as unknown")
    if not examples:
        raise DataError("every test row lacks a value that all training rows have, or has a category that none has: "
                        "test on rows like those that are trained on")
    return {"rows": examples, "places": places}
