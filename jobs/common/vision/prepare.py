"""Contract 2, writing: raw images become Parquet blocks once, validated, split, fingerprinted and kept in storage.

    dataset = prepare(config.data, Store.open(config.run.storage), use_ray=True)

Pass 1 reads labels only and assigns the splits; pass 2 decodes fragments and writes blocks, a piece a task (pieces.py).
What this process holds is five bytes a row. Where it all lies, and how it is committed, is in prepared.py.
"""

import functools
import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from cluster.core.documents import JsonObject
from cluster.core.errors import DataError
from cluster.core.storage import Store
from jobs.common import picture
from jobs.common.data.arrow import ArrowArray
from jobs.common.data.blocks import FILES, Moments
from jobs.common.data.dataset import SPLITS, Column, Columns, Dataset, SplitName
from jobs.common.data.found.account import DROPPED, Account, LeftOut
from jobs.common.data.found.bad_rows import BadRow, check_few, list_skipped, refuse
from jobs.common.data.found.repeats import content_hashes, digests_of, find_repeats, forget, row_sums, write_hashes
from jobs.common.data.found.split_names import Unread
from jobs.common.data.pieces import Teller, Writing, for_each, in_pieces, joined, older_fingerprint, unfinished
from jobs.common.data.prepared import Say, Writers, find_or_build, fingerprint_of, key_of
from jobs.common.data.source import Fragment, Images, ImageSpec, Source
from jobs.common.data.splits import assign, encode_labels, renamed
from jobs.common.picture_rule import PictureRule
from jobs.common.vision.config import ImageDataConfig
from jobs.common.vision.dataset import find_source

FORMAT_VERSION = 3
OLDER_VERSION = 2
"""Of prepared images that are used where they lie: it was written in one piece, and knew no rule for pictures."""
RAY_BYTES = 256 << 20
"""Of pixels; fewer are decoded in this process, sooner than tasks would have started."""
_THREADS = 4
Uris = dict[SplitName, str | None]
Codes = npt.NDArray[np.int32]
Splits = npt.NDArray[np.int8]


@dataclass(frozen=True)
class Plan:
    """What pass 1 found out: the fragments in the order of their rows, and each row's class and split."""

    fragments: list[Fragment]
    codes: Codes
    splits: Splits
    class_names: tuple[str, ...]
    spec: ImageSpec
    files: int
    unread: list[Unread]

    def pieces(self, most: int) -> "list[Piece]":
        """most: bytes of one."""
        made: list[Piece] = []
        first = 0
        for number, fragments in enumerate(in_pieces(self.fragments, self.size, most)):
            rows = slice(first, first + sum(fragment.num_rows for fragment in fragments))
            made.append(Piece(number, fragments, first, self.codes[rows], self.splits[rows]))
            first = rows.stop
        return made

    def size(self, fragment: Fragment) -> int:
        """Bytes of its images."""
        return fragment.num_rows * self.spec.row_bytes


@dataclass(frozen=True)
class Piece:
    """What one task decodes and writes."""

    number: int
    fragments: tuple[Fragment, ...]
    first: int
    """The id of its first row."""
    codes: Codes
    splits: Splits


def prepare(config: ImageDataConfig, storage: Store, *, use_ray: bool, say: Say | None = None) -> Dataset:
    """The prepared images of a config: those that are there, or else built now.

    use_ray: decode with Ray Data on the connected cluster (a small source is decoded here all the same).
    say: hears what is going on, a line at a time.
    Raises: DataError; StorageError, StorageFullError if the storage cannot be written. Nothing is left half-written.
    """
    sources: dict[SplitName, Source] = {
        split: find_source(uri, config) for split, uri in _uris(config).items() if uri is not None}

    def build(store: Store, blocks: str) -> Dataset:
        return _build(_plan(sources, config, say), config, store, blocks, use_ray, say)

    pictures = any(source.pictures for source in sources.values())
    older = [_key(sources, config, OLDER_VERSION, pictures=False)] if config.picture == PictureRule() else []
    found = find_or_build(storage, _key(sources, config, FORMAT_VERSION, pictures=pictures), build, older)
    if say and pictures and "picture" not in found.details:
        say(f"{config.uri} was prepared by an older Trainyard, which took no heed of how pictures are to be turned and "
            f"of what is transparent: delete {found.store.location()} to have it prepared again")
    return found


def _uris(config: ImageDataConfig) -> Uris:
    return {"train": config.uri, "validation": config.val_uri, "test": config.test_uri}


def _key(sources: dict[SplitName, Source], config: ImageDataConfig, version: int, *, pictures: bool) -> str:
    """Everything that decides the content, short of reading it."""
    listing = {split: source.listing for split, source in sources.items()}
    options = [config.label_column, config.image_column, config.image_shape, config.split_seed, version]
    rule = [picture.VERSION, config.picture.to_dict()] if pictures else []
    contents = [source.contents() for source in sources.values()] if version > OLDER_VERSION else []
    return key_of(listing, [*options, *rule, *config.choices, *contents])


def _plan(sources: dict[SplitName, Source], config: ImageDataConfig, say: Say | None) -> Plan:
    """Pass 1: labels and row counts."""
    parts, unread = _parts(sources, _uris(config))
    fragments = [fragment for _, fragment in parts]
    with ThreadPoolExecutor(_THREADS) as pool:
        labels = list(pool.map(_labels, fragments))
    rows = [fragment.num_rows for fragment in fragments]
    for fragment, column, expected in zip(fragments, labels, rows, strict=True):
        if len(column) != expected:
            raise DataError(f"{len(column)} labels for the {expected} images that begin at {fragment.describe(0)}: "
                            "there must be one for each")
    codes, names = encode_labels(fragments, labels, config.label_column)
    splits = assign(codes, names, [split for split, _ in parts], rows, config.split_seed)
    spec = fragments[0].spec()
    if not spec.encoded and (config.resize or config.channels):
        asked = "resize" if config.resize else "channels"
        raise DataError(f"--data.{asked} is for picture files (PNG, JPEG, …), and the images of {config.uri} are "
                        f"numbers ({spec}): leave it out, and store them as they are to be")
    if say:
        say(f"preparing {len(codes):,} rows of {config.uri}")
    files = sum(len(source.listing) for source in sources.values() if config.uri != "digits")
    return Plan(fragments, codes, splits, renamed(names, config.label_names), spec, files, unread)


def _labels(fragment: Fragment) -> ArrowArray:
    return fragment.labels()


def _parts(sources: dict[SplitName, Source], uris: Uris) -> tuple[list[tuple[SplitName, Fragment]], list[Unread]]:
    """(split, fragment) in the order of rows.
    A URI given for a split is used as it is, whatever it is called inside."""
    each = {split: source.fragments() for split, source in sources.items()}
    found = dict(each["train"].by_split)
    for split in SPLITS[1:]:
        if split in each:
            given = each[split].by_split
            found[split] = given.get(split) or [fragment for part in given.values() for fragment in part]
    for split, fragments in found.items():
        if not any(fragment.num_rows for fragment in fragments):
            raise DataError(f"data {uris[split] or uris['train']!r} holds no rows for {split}: give one that has some")
    return ([(split, fragment) for split in SPLITS for fragment in found.get(split, ()) if fragment.num_rows],
            [of.unread for of in each.values()])


# ── pass 2 ──
def _build(plan: Plan, config: ImageDataConfig, store: Store, blocks: str, use_ray: bool, say: Say | None) -> Dataset:
    if config.keep == "encoded" and not plan.spec.encoded:
        raise DataError(f"--data.keep encoded is for picture files (PNG, JPEG, …), and the images of {config.uri} are "
                        f"numbers ({plan.spec}): leave it out")
    columns = (Column("image", plan.spec.dtype, plan.spec.shape, encoded=config.keep == "encoded"),
               Column("label", "int32"), Column("row_id", "int64"))
    pieces = plan.pieces(config.piece_bytes(sum(map(plan.size, plan.fragments))))
    sizes = [sum(map(plan.size, piece.fragments)) for piece in pieces]
    use_ray = use_ray and sum(sizes) > RAY_BYTES
    about: JsonObject = {"shape": plan.spec.shape, "dtype": plan.spec.dtype, "class_names": plan.class_names}
    rows = hashlib.sha256(plan.codes.tobytes() + plan.splits.tobytes()).hexdigest()
    earlier = unfinished(store, blocks, [about, sizes, rows], say)
    writing = Writing(store, blocks, columns, len(plan.class_names), earlier, _moments,
                      hashed=len(pieces) == 1)  # the older fingerprint is of one piece alone
    written = for_each(pieces, Task(plan.spec, writing), use_ray=use_ray)
    answers, bad = list[JsonObject](), list[BadRow]()
    teller = Teller(say, f"preparing {config.uri}", sum(sizes))
    with closing(written):
        for answer in teller.following(written, sizes):
            answers.append(answer)
            bad += [(where, why) for where, why in answer["about"]["bad"]]
            if config.bad_rows == "refuse":
                refuse(bad)  # and the tasks end, before what they wrote is taken away
    check_few(bad, len(plan.codes), config)
    repeats, dropped = find_repeats(config, store, blocks, len(pieces), len(plan.codes), use_ray=use_ray)
    if len(dropped):
        forget(store, blocks)
        kept = plan.splits.copy()
        kept[dropped] = -1
        return _build(replace(plan, splits=kept), config, store, blocks, use_ray, say)
    splits, _ = joined(answers)
    abouts = [answer["about"] for answer in answers]
    of_blocks = (Moments.from_json(part) for answer in answers for part in answer["moments"])
    moments = functools.reduce(Moments.merged, of_blocks)
    digests = digests_of([about["sums"] for about in abouts])
    details = {"shape": list(plan.spec.shape), "dtype": plan.spec.dtype, "mean": [_digits(m) for m in moments.mean],
               "std": [_digits(s) for s in moments.std],
               **({"picture": config.picture.to_dict()} if plan.spec.encoded else {}),
               **older_fingerprint(about, answers),
               **Account.of(plan.files, plan.unread, {DROPPED: LeftOut(int((plan.splits < 0).sum())),
                                                      **list_skipped(bad, store, blocks)}, repeats).details}
    return Dataset(store=store, blocks=blocks, fingerprint=fingerprint_of(about, digests), splits=splits,
                   columns=columns, class_names=plan.class_names, details=details)


def _digits(value: float) -> float:
    """To 12 digits: the rest depends on how the rows are cut into pieces."""
    return float(f"{value:.12g}")


@dataclass(frozen=True)
class Task:
    """All that a piece is made with."""

    spec: ImageSpec
    writing: Writing

    def __call__(self, piece: Piece) -> JsonObject:
        """Writes a piece, without the rows that cannot be read. Answers with these, `bad`, and with `sums`: of each
        split that of the hashes of its rows."""
        return self.writing.piece(piece.number, lambda writers: self._fill(piece, writers))

    def _fill(self, piece: Piece, writers: Writers) -> JsonObject:
        hashes: list[bytes] = []
        bad: list[BadRow] = []
        done, ids, splits = 0, piece.first + np.arange(len(piece.codes)), piece.splits.copy()
        for images in _ahead(images for fragment in piece.fragments for images in fragment.decode(self.spec)):
            rows = slice(done, done + len(images.pixels))
            done = rows.stop
            if done > len(ids):
                break
            columns: Columns = {"image": images.pixels, "label": piece.codes[rows], "row_id": ids[rows]}
            if self.writing.columns[0].encoded:
                columns[FILES] = np.array(images.files, object)
            hashes.append(content_hashes(image.data for image in images.pixels))
            bad += [of for row, of in images.bad.items() if splits[rows][row] >= 0]
            splits[rows][list(images.bad)] = -1
            for split, writer in writers.items():
                chosen = np.flatnonzero(splits[rows] == SPLITS.index(split))
                writer.append(columns, None if len(chosen) == len(images.pixels) else chosen)
        if done != len(ids):
            raise DataError(f"{len(ids):,} rows were announced from {piece.fragments[0].describe(0)} on, {done:,} "
                            "could be read: the data changed meanwhile; run it again")
        every = b"".join(hashes)
        write_hashes(self.writing.store, self.writing.blocks, piece.number, every, splits, piece.codes, ids)
        return {"sums": row_sums(every, splits, piece.codes.astype(np.int64), ids), "bad": bad}


def _moments(block: Columns) -> Moments:
    return Moments.of(block["image"])


def _ahead(batches: Iterator[Images]) -> Iterator[Images]:
    """The next batch is decoded while this one is written."""
    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(next, batches, None)
        while (images := future.result()) is not None:
            future = thread.submit(next, batches, None)
            yield images
