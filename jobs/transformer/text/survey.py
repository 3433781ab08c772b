"""Pass 1 over text: how many rows there are and of which classes, from which every row's id and split follow.

Each piece is looked at by itself, and answers counts. The rows before a piece, and how many of each class those are,
say the ids and the splits of its own rows; so whoever has a `PieceRows` reads it as everybody else does.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from cluster.core.documents import JsonObject
from cluster.core.errors import DataError
from jobs.common.data.dataset import SPLITS, SplitName
from jobs.common.data.found.account import LeftOut
from jobs.common.data.found.bad_rows import BadRow, check_few
from jobs.common.data.pieces import Teller, for_each, in_pieces
from jobs.common.data.prepared import Say
from jobs.common.data.splits import (
    TEST,
    TRAIN,
    VALIDATION,
    Codes,
    Label,
    LabelCounts,
    RankSplit,
    Splits,
    classes_of,
    codes_of,
    count_labels,
    keyed_hash,
    renamed,
)
from jobs.transformer.config import TransformerConfig
from jobs.transformer.text.fragments import TextFragment, TextSource

RAY_BYTES = 256 << 20
"""Smaller sources are read here: to count the rows of so much takes no longer than to start tasks."""
_IDS_AT_ONCE = 1 << 20
Fragments = tuple[TextFragment, ...]
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PieceRows:
    """A piece, and what comes before it."""

    number: int
    fragments: Fragments
    first: int
    """The id of its first row: how many rows come before it."""
    classes_before: tuple[int, ...] = ()
    """Training rows of each class that come before it."""
    dropped: tuple[int, ...] = ()
    """Ids of its rows that are left out, as others have their content."""

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(fragment.size for fragment in self.fragments)


@dataclass(frozen=True)
class Rows:
    """The rows of a piece in order; each array has one value a row."""

    texts: list[str]
    ids: Ids
    splits: Splits
    codes: Codes | None
    continued: Ids
    """Ids of those that go on with a document,"""
    unfinished: Ids
    """and of those that do not end one."""
    describe: Callable[[int], str]
    """What to call the row of an index."""

    def of(self, split: SplitName) -> Ids:
        """Indices of a split's rows."""
        return np.flatnonzero(self.splits == SPLITS.index(split))


@dataclass(frozen=True)
class ByHash:
    """Documents are split by a hash of their ids: 64/16/20, but for what the source splits itself."""

    seed: int
    missing: tuple[int, ...]
    highest: int | None = None
    """Of the hash by which training documents are chosen; None: all are."""

    def of(self, ids: Ids, given: Splits) -> Splits:
        """given: the source's own, 0 where it has none."""
        splits, training = given.copy(), given == TRAIN
        place = keyed_hash(self.seed, ids) % np.uint64(100)
        for split, low, high in ((TEST, 80, 100), (VALIDATION, 64, 80)):
            if split in self.missing:
                splits[training & (place >= low) & (place < high)] = split
        if self.highest is not None:
            splits[(splits == TRAIN) & (keyed_hash(self.seed + 1, ids) > np.uint64(self.highest))] = -1
        return splits


@dataclass(frozen=True)
class ByClass:
    """Rows are split so that each class has its share in every split, but for what the source splits itself."""

    column: str
    values: tuple[Label, ...]
    """The classes in order."""
    ranks: RankSplit

    @property
    def names(self) -> tuple[str, ...]:
        return self.ranks.names


Rule = ByHash | ByClass


@dataclass(frozen=True)
class Survey:
    """What pass 1 found."""

    pieces: tuple[PieceRows, ...]
    rule: Rule
    num_rows: int
    empty: int
    """Rows that were left out as they hold no text."""
    skipped: tuple[BadRow, ...]
    """Rows that were left out as they cannot be read."""
    unwanted: Mapping[str, LeftOut]
    """Rows that were left out as they are not as the config wants them, by reason."""

    def without(self, dropped: Ids) -> "Survey":
        """dropped: ids of rows, sorted."""
        ends = [*(piece.first for piece in self.pieces[1:]), self.num_rows]
        inside = [dropped[np.searchsorted(dropped, piece.first):np.searchsorted(dropped, end)]
                  for piece, end in zip(self.pieces, ends, strict=True)]
        return replace(self, pieces=tuple(replace(piece, dropped=tuple(ids.tolist()))
                                          for piece, ids in zip(self.pieces, inside, strict=True)))

    @property
    def num_dropped(self) -> int:
        return sum(len(piece.dropped) for piece in self.pieces)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.rule.names if isinstance(self.rule, ByClass) else ()

    @property
    def size(self) -> int:
        """Bytes of the source."""
        return sum(piece.size for piece in self.pieces)


def survey(source: TextSource, config: TransformerConfig, *, use_ray: bool, say: Say | None) -> Survey:
    """Raises: DataError."""
    column = config.data.label_column if config.task == "classify" else None
    total = sum(fragment.size for fragment in source.fragments)
    pieces = in_pieces(source.fragments, lambda fragment: fragment.size, config.data.piece_bytes(total))
    sizes = [sum(fragment.size for fragment in piece) for piece in pieces]
    seen = for_each(pieces, functools.partial(_look, column), use_ray=use_ray and total > RAY_BYTES)
    answers = list(Teller(say, f"looking at {config.data.uri}", total).following(seen, sizes))
    empty = sum(answer["empty"] for answer in answers)
    rows = [sum(answer["rows"]) for answer in answers]
    skipped = tuple((where, why) for answer in answers for where, why in answer["skipped"])
    check_few(skipped, sum(rows) + len(skipped), config.data)
    unwanted = merged((why, LeftOut(*of)) for answer in answers for why, of in answer["unwanted"].items())
    if not sum(rows):
        whys = [f"all of its {empty} rows are empty"] if empty and not unwanted else [
            f"{of.count:,} {why}" for why, of in {"rows without text": LeftOut(empty), **unwanted}.items() if of.count]
        raise DataError(f"data {config.data.uri!r} holds no text{': ' * bool(whys)}{', '.join(whys)}")
    firsts = np.cumsum([0, *rows]).tolist()
    missing = tuple(s for s in (TEST, VALIDATION) if SPLITS[s] not in source.splits_given)
    if column is None:
        placed = tuple(PieceRows(number, piece, first)
                       for number, (piece, first) in enumerate(zip(pieces, firsts[:-1], strict=True)))
        rule: Rule = _by_hash(placed, [answer["rows"] for answer in answers], missing, config)
    else:
        rule, before = _by_class(pieces, answers, missing, config)
        placed = tuple(PieceRows(number, piece, first, classes) for number, (piece, first, classes)
                       in enumerate(zip(pieces, firsts[:-1], before, strict=True)))
    return Survey(placed, rule, sum(rows), empty, skipped, unwanted)


def merged(unwanted: Iterable[tuple[str, LeftOut]]) -> dict[str, LeftOut]:
    """Those of one reason together."""
    made: dict[str, LeftOut] = {}
    for why, of in unwanted:
        made[why] = made.get(why, LeftOut(0)).merged(of)
    return made


def _look(label_column: str | None, fragments: Fragments) -> JsonObject:
    """Runs in a task. Of each fragment its rows, and its labels: [value, rows, what to call the first]."""
    rows: list[int] = []
    labels: list[list[tuple[Label, int, str]]] = []
    skipped: list[BadRow] = []
    unwanted: list[tuple[str, LeftOut]] = []
    empty = 0
    for fragment in fragments:
        texts = fragment.read()
        skipped += texts.skipped
        unwanted += texts.unwanted.items()
        rows.append(len(texts.texts))
        empty += texts.empty
        if label_column is not None:
            counted = count_labels(fragment, texts.labels, label_column)
            labels.append([(value, count, counted.first[value]) for value, count in counted.rows.items()])
    return {"rows": rows, "empty": empty, "labels": labels, "skipped": skipped,
            "unwanted": {why: (of.count, of.first) for why, of in merged(unwanted).items()}}


def _by_class(pieces: Sequence[Fragments], answers: Sequence[JsonObject], missing: tuple[int, ...],
              config: TransformerConfig) -> tuple[ByClass, list[tuple[int, ...]]]:
    """The rule, and the training rows of each class before each piece."""
    column = config.data.label_column
    training, others = LabelCounts({}, {}), LabelCounts({}, {})
    in_pieces: list[Counter[Label]] = []
    for piece, answer in zip(pieces, answers, strict=True):
        in_pieces.append(Counter())
        for fragment, labels in zip(piece, answer["labels"], strict=True):
            of = training if fragment.split == "train" else others
            for value, count, first in labels:
                of.first.setdefault(value, first)
                if of is training:
                    in_pieces[-1][value] += count
    for value, first in others.first.items():
        if value not in training.first:
            raise DataError(f"{first}: label {value!r} in column {column!r} was never seen in training: correct it, or "
                            "add training rows of it")
    values = tuple(classes_of([training, others], column))
    counts = np.array([[of[value] for value in values] for of in in_pieces], np.int64).reshape(-1, len(values))
    names = renamed([str(value) for value in values], config.data.label_names)
    total: list[int] = counts.sum(axis=0).tolist()
    ranks = RankSplit(config.data.split_seed, missing, tuple(total), names, config.data.max_train_rows)
    before = np.cumsum(counts, axis=0) - counts
    return ByClass(column, values, ranks), [tuple(each) for each in before.tolist()]


def _by_hash(pieces: Sequence[PieceRows], rows: Sequence[Sequence[int]], missing: tuple[int, ...],
             config: TransformerConfig) -> ByHash:
    """Looks at ids alone, so many at a time. Raises: DataError where a split would have no document."""
    rule = ByHash(config.data.split_seed, missing)
    most, found = config.data.max_train_rows, np.zeros(len(SPLITS), bool)
    lowest = np.empty(0, np.uint64)
    for ids, given in _all_ids(pieces, rows):
        splits = rule.of(ids, given)
        found |= np.isin(np.arange(len(SPLITS)), splits)
        if most is not None:
            lowest = np.sort(np.concatenate([lowest, keyed_hash(rule.seed + 1, ids[splits == TRAIN])]))[: most + 1]
        elif found.all():
            break
    if not found.all():
        raise DataError(f"data {config.data.uri!r}: its {sum(map(sum, rows))} documents leave none for "
                        f"{SPLITS[int(np.argmin(found))]}: give --data.val-uri and --data.test-uri, or more documents")
    return rule if most is None or len(lowest) <= most else ByHash(rule.seed, missing, int(lowest[most - 1]))


def _all_ids(pieces: Sequence[PieceRows], rows: Sequence[Sequence[int]]) -> Iterator[tuple[Ids, Splits]]:
    for piece, counts in zip(pieces, rows, strict=True):
        first = piece.first
        for fragment, count in zip(piece.fragments, counts, strict=True):
            for start in range(first, first + count, _IDS_AT_ONCE):
                ids = np.arange(start, min(first + count, start + _IDS_AT_ONCE))
                yield ids, np.full(len(ids), SPLITS.index(fragment.split), np.int8)
            first += count


def read_piece(rule: Rule, piece: PieceRows) -> Rows:
    """The rows of a piece. Raises: DataError."""
    read = [fragment.read() for fragment in piece.fragments]
    counts = [len(part.texts) for part in read]
    ids = piece.first + np.arange(sum(counts))
    ends = np.cumsum(counts)
    given = np.repeat(np.array([SPLITS.index(fragment.split) for fragment in piece.fragments], np.int8), counts)
    if isinstance(rule, ByHash):
        splits, codes = rule.of(ids, given), None
    else:
        codes = np.concatenate([codes_of(fragment, part.labels, rule.values, rule.column)
                                for fragment, part in zip(piece.fragments, read, strict=True)])
        splits = given.copy()
        splits[given == TRAIN] = rule.ranks.of(codes[given == TRAIN], piece.classes_before)
    splits[np.array(piece.dropped, np.int64) - piece.first] = -1

    def describe(row: int) -> str:
        number = int(np.searchsorted(ends, row, "right"))
        return piece.fragments[number].describe(row - int(ends[number]) + counts[number])

    there = [(part, int(end)) for part, end in zip(read, ends, strict=True) if part.texts]
    return Rows([text for part in read for text in part.texts], ids, splits, codes,
                np.array([ids[end - len(part.texts)] for part, end in there if not part.begins], np.int64),
                np.array([ids[end - 1] for part, end in there if not part.ends], np.int64), describe)
