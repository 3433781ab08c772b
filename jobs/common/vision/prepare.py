"""Contract 2, writing: raw images become Parquet blocks once, validated, split, fingerprinted and kept in storage.

    dataset = prepare(config.data, Store.open(config.run.storage), use_ray=True)

Pass 1 reads labels only and assigns the splits; pass 2 decodes fragments (under Ray Data, or here) and writes blocks.
Where it all lies, and how it is committed, is in prepared.py.
"""

import contextlib
import functools
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cluster.core.errors import DataError
from cluster.core.storage import Store
from jobs.common.arrays import Array
from jobs.common.data.arrow import ArrowArray
from jobs.common.data.blocks import Moments
from jobs.common.data.dataset import SPLITS, Column, Columns, Dataset, Split, SplitName
from jobs.common.data.prepared import Say, Writers, content_fingerprint, find_or_build, key_of, split_writers
from jobs.common.data.source import Fragment, ImageSpec, Source
from jobs.common.data.splits import assign, encode_labels
from jobs.common.vision import picture
from jobs.common.vision.config import ImageDataConfig
from jobs.common.vision.dataset import find_source
from jobs.common.vision.picture_rule import PictureRule

FORMAT_VERSION = 2
RAY_BYTES = 16 << 20
"""Smaller sources are decoded here: starting Ray Data's tasks takes seconds."""
_THREADS = 4
Uris = dict[SplitName, str | None]


@dataclass(frozen=True)
class Plan:
    """What pass 1 found out: the fragments in the order of their rows, and each row's class and split."""

    fragments: list[Fragment]
    codes: npt.NDArray[np.int32]
    splits: npt.NDArray[np.int8]
    class_names: tuple[str, ...]
    spec: ImageSpec
    source_bytes: int


def prepare(config: ImageDataConfig, storage: Store, *, use_ray: bool, say: Say | None = None) -> Dataset:
    """The prepared images of a config: those that are there, or else built now.

    use_ray: decode with Ray Data on the connected cluster (a small source is decoded here all the same).
    say: hears what is going on, a line at a time.
    Raises: DataError; StorageError, StorageFullError if the storage cannot be written. Nothing is left half-written.
    """
    sources = _sources(config, say)

    def build(store: Store, blocks: str) -> Dataset:
        return _build(_plan(sources, config, say), store, blocks, use_ray, config.picture, say)

    return find_or_build(storage, _key(sources, config), build)


def _sources(config: ImageDataConfig, say: Say | None) -> dict[SplitName, Source]:
    return {split: find_source(uri, config, say) for split, uri in _uris(config).items() if uri is not None}


def _uris(config: ImageDataConfig) -> Uris:
    return {"train": config.uri, "validation": config.val_uri, "test": config.test_uri}


def _key(sources: dict[SplitName, Source], config: ImageDataConfig) -> str:
    """Everything that decides the content, short of reading it."""
    listing = {split: source.listing for split, source in sources.items()}
    options = [config.label_column, config.image_column, config.image_shape, config.split_seed, FORMAT_VERSION]
    rule = [picture.VERSION, config.picture.to_dict()] if any(source.pictures for source in sources.values()) else []
    return key_of(listing, [*options, *rule])


def _plan(sources: dict[SplitName, Source], config: ImageDataConfig, say: Say | None) -> Plan:
    """Pass 1: labels and row counts."""
    parts = _parts(sources, _uris(config))
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
    source_bytes = sum(size for source in sources.values() for _, size, _ in source.listing)
    return Plan(fragments, codes, splits, names, spec, source_bytes)


def _labels(fragment: Fragment) -> ArrowArray:
    return fragment.labels()


def _parts(sources: dict[SplitName, Source], uris: Uris) -> list[tuple[SplitName, Fragment]]:
    """(split, fragment) in the order of rows.
    A URI given for a split is used as it is, whatever it is called inside."""
    found = sources["train"].fragments()
    for split in SPLITS[1:]:
        if split in sources:
            given = sources[split].fragments()
            found[split] = given.get(split) or [fragment for part in given.values() for fragment in part]
    for split, fragments in found.items():
        if not any(fragment.num_rows for fragment in fragments):
            raise DataError(f"data {uris[split] or uris['train']!r} holds no rows for {split}: give one that has some")
    return [(split, fragment) for split in SPLITS for fragment in found.get(split, ()) if fragment.num_rows]


def _build(plan: Plan, store: Store, blocks: str, use_ray: bool, rule: PictureRule,
           say: Say | None) -> Dataset:
    """Pass 2."""
    columns = (Column("image", plan.spec.dtype, plan.spec.shape), Column("label", "int32"), Column("row_id", "int64"))
    with split_writers(store, blocks, columns, len(plan.class_names), _moments) as writers:
        _write(plan, writers, use_ray, say)
        splits: dict[SplitName, Split] = {name: writer.finish() for name, writer in writers.items()}
    moments = functools.reduce(Moments.merged, writers["train"].measured)
    details = {"shape": list(plan.spec.shape), "dtype": plan.spec.dtype, "mean": [float(m) for m in moments.mean],
               "std": list(moments.std), **({"picture": rule.to_dict()} if plan.spec.encoded else {})}
    about = {"shape": plan.spec.shape, "dtype": plan.spec.dtype, "class_names": plan.class_names}
    return Dataset(store=store, blocks=blocks, fingerprint=content_fingerprint(about, writers), splits=splits,
                   columns=columns,
                   class_names=plan.class_names, details=details)


def _moments(block: Columns) -> Moments:
    return Moments.of(block["image"])


def _write(plan: Plan, writers: Writers, use_ray: bool, say: Say | None) -> None:
    row, total, told = 0, len(plan.codes), time.monotonic()
    with contextlib.closing(_decoded(plan, use_ray)) as batches:
        for images in batches:
            if row + len(images) <= total:
                _append(plan, writers, images, row)
            row += len(images)
            if say and time.monotonic() - told > 5:
                say(f"preparing: {row:,} of {total:,} rows")
                told = time.monotonic()
    if row != total:
        raise DataError(f"{total:,} rows were announced, {row:,} could be read: the data changed meanwhile; run it "
                        "again")


def _append(plan: Plan, writers: Writers, images: Array, first: int) -> None:
    """Each image to the writer of its split."""
    rows = slice(first, first + len(images))
    columns = {"image": images, "label": plan.codes[rows], "row_id": np.arange(first, first + len(images))}
    for split, writer in writers.items():
        chosen = plan.splits[rows] == SPLITS.index(split)
        if chosen.all():
            writer.append(columns)
        elif chosen.any():
            writer.append({name: column[chosen] for name, column in columns.items()})


def _decoded(plan: Plan, use_ray: bool) -> Generator[Array]:
    """Images of all rows in order, (n, H, W, C) at a time."""
    if use_ray and len(plan.fragments) > 1 and plan.source_bytes > RAY_BYTES:
        from jobs.common.data.ray_map import decode_with_ray

        yield from decode_with_ray(plan.fragments, plan.spec)
        return
    with ThreadPoolExecutor(1) as ahead:  # the next batch is decoded while this one is written
        batches = (images for fragment in plan.fragments for images in fragment.decode(plan.spec))
        future = ahead.submit(next, batches, None)
        while (images := future.result()) is not None:
            future = ahead.submit(next, batches, None)
            yield images
