"""Contract 2, writing: raw data becomes Parquet blocks once, validated, split, fingerprinted and kept in storage.

    dataset = prepare(config.data, Store.open(config.run.storage), use_ray=True)

A prepared set lies in <storage>/data/<key>/, where the key is of the sources' listing and of every option that matters: so
it is found again at once. Pass 1 reads labels only and assigns the splits; pass 2 decodes fragments (under Ray Data, or
here) and writes blocks into a folder of its own. Writing `dataset.json` commits it; after an error nothing stays behind.
"""

import contextlib
import hashlib
import json
import time
import uuid
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.errors import DataError
from cluster.storage import Store
from jobs.common.blocks import SplitWriter
from jobs.common.dataset import INDEX_FILE, SPLITS, Dataset, Split, SplitName
from jobs.common.images import ImageDataConfig, find_source
from jobs.common.sources.source import Fragment, ImageSpec, Source
from jobs.common.splits import assign, encode_labels

FORMAT_VERSION = 1
RAY_BYTES = 16 << 20
"""Smaller sources are decoded here: starting Ray Data's tasks takes seconds."""
_THREADS = 4
_STALE_S = 24 * 3600.0
Say = Callable[[str], None]
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
    """The prepared data set for a config: the one that is there, or else built now.

    use_ray: decode with Ray Data on the connected cluster (a small source is decoded here all the same).
    say: hears what is going on, a line at a time.
    Raises: DataError; StorageError, StorageFullError if the storage cannot be written. Nothing is left half-written.
    """
    sources = _sources(config)
    store = Store.open(storage.location(f"data/{_key(sources, config)}"))
    with contextlib.suppress(FileNotFoundError):
        return Dataset.load(store)
    plan = _plan(sources, config, say)
    blocks = f"blocks-{uuid.uuid4().hex[:12]}"
    try:
        return _build(plan, store, blocks, use_ray, say)
    except BaseException:
        with contextlib.suppress(OSError):  # a storage that fails is the cause already
            _remove(store, blocks)
        raise


def _sources(config: ImageDataConfig) -> dict[SplitName, Source]:
    return {split: find_source(uri, config) for split, uri in _uris(config).items() if uri is not None}


def _uris(config: ImageDataConfig) -> Uris:
    return {"train": config.uri, "validation": config.val_uri, "test": config.test_uri}


def _key(sources: dict[SplitName, Source], config: ImageDataConfig) -> str:
    """Everything that decides the content, short of reading it."""
    listing = {split: source.listing for split, source in sources.items()}
    options = [config.label_column, config.image_column, config.image_shape, config.split_seed, FORMAT_VERSION]
    return hashlib.sha256(json.dumps([listing, options]).encode()).hexdigest()[:20]


def _plan(sources: dict[SplitName, Source], config: ImageDataConfig, say: Say | None) -> Plan:
    """Pass 1: labels and row counts."""
    parts = _parts(sources, _uris(config))
    fragments = [fragment for _, fragment in parts]
    with ThreadPoolExecutor(_THREADS) as pool:
        labels: list[Any] = list(pool.map(_labels, fragments))
    rows = [fragment.num_rows for fragment in fragments]
    for fragment, column, expected in zip(fragments, labels, rows, strict=True):
        if len(column) != expected:
            raise DataError(f"{len(column)} labels for the {expected} images that begin at {fragment.describe(0)}: there "
                            "must be one for each")
    codes, names = encode_labels(fragments, labels, config.label_column)
    splits = assign(codes, names, [split for split, _ in parts], rows, config.split_seed)
    if say:
        say(f"preparing {len(codes):,} rows of {config.uri}")
    source_bytes = sum(size for source in sources.values() for _, size, _ in source.listing)
    return Plan(fragments, codes, splits, names, fragments[0].spec(), source_bytes)


def _labels(fragment: Fragment) -> Any:
    return fragment.labels()


def _parts(sources: dict[SplitName, Source], uris: Uris) -> list[tuple[SplitName, Fragment]]:
    """(split, fragment) in the order of rows. A URI given for a split is used as it is, whatever it is called inside."""
    found = sources["train"].fragments()
    for split in SPLITS[1:]:
        if split in sources:
            given = sources[split].fragments()
            found[split] = given.get(split) or [fragment for part in given.values() for fragment in part]
    for split, fragments in found.items():
        if not any(fragment.num_rows for fragment in fragments):
            raise DataError(f"data {uris[split] or uris['train']!r} holds no rows for {split}: give one that has some")
    return [(split, fragment) for split in SPLITS for fragment in found.get(split, ()) if fragment.num_rows]


def _build(plan: Plan, store: Store, blocks: str, use_ray: bool, say: Say | None) -> Dataset:
    """Pass 2, and the commit."""
    with ThreadPoolExecutor(_THREADS) as pool:
        writers = [SplitWriter(store, f"{blocks}/{name}", plan.spec, len(plan.class_names), pool) for name in SPLITS]
        try:
            _write(plan, writers, use_ray, say)
            splits: dict[SplitName, Split] = {name: writer.finish() for name, writer in zip(SPLITS, writers, strict=True)}
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    moments = writers[0].moments
    assert moments is not None
    dataset = Dataset(
        store=store, blocks=blocks, fingerprint=_fingerprint(plan, writers), splits=splits, class_names=plan.class_names,
        shape=plan.spec.shape, dtype=plan.spec.dtype, mean=tuple(float(m) for m in moments.mean), std=moments.std,
    )
    return _commit(dataset, store)


def _write(plan: Plan, writers: list[SplitWriter], use_ray: bool, say: Say | None) -> None:
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
        raise DataError(f"{total:,} rows were announced, {row:,} could be read: the data changed meanwhile; run it again")


def _append(plan: Plan, writers: list[SplitWriter], images: npt.NDArray[Any], first: int) -> None:
    """Each image to the writer of its split."""
    rows = slice(first, first + len(images))
    columns = {"image": images, "label": plan.codes[rows], "row_id": np.arange(first, first + len(images))}
    for split, writer in enumerate(writers):
        chosen = plan.splits[rows] == split
        if chosen.all():
            writer.append(columns)
        elif chosen.any():
            writer.append({name: column[chosen] for name, column in columns.items()})


def _decoded(plan: Plan, use_ray: bool) -> Generator[npt.NDArray[Any]]:
    """Images of all rows in order, (n, H, W, C) at a time."""
    if use_ray and len(plan.fragments) > 1 and plan.source_bytes > RAY_BYTES:
        from jobs.common.decode import decode_with_ray

        yield from decode_with_ray(plan.fragments, plan.spec)
        return
    with ThreadPoolExecutor(1) as ahead:  # the next batch is decoded while this one is written
        batches = (images for fragment in plan.fragments for images in fragment.decode(plan.spec))
        future = ahead.submit(next, batches, None)
        while (images := future.result()) is not None:
            future = ahead.submit(next, batches, None)
            yield images


def _fingerprint(plan: Plan, writers: list[SplitWriter]) -> str:
    schema = {"shape": plan.spec.shape, "dtype": plan.spec.dtype, "class_names": plan.class_names}
    content = {name: writer.digest() for name, writer in zip(SPLITS, writers, strict=True)}
    return hashlib.sha256(json.dumps([schema, content], sort_keys=True).encode()).hexdigest()


def _commit(dataset: Dataset, store: Store) -> Dataset:
    """Of two that prepared the same data at once, the later takes what the earlier made."""
    with contextlib.suppress(FileNotFoundError):
        earlier = Dataset.load(store)
        _remove(store, dataset.blocks)
        return earlier
    store.write_text(INDEX_FILE, dataset.to_json())
    _sweep(store, dataset.blocks)
    return dataset


def _remove(store: Store, blocks: str) -> None:
    """A folder of blocks, and on a file system the folders above it if they are empty."""
    store.delete_folder(blocks)
    if store.is_local:
        with contextlib.suppress(OSError):
            store.local_path().rmdir()
            store.local_path().parent.rmdir()


def _sweep(store: Store, keep: str) -> None:
    """What a killed process left a day ago or more; never what another one is writing now."""
    for folder in store.folders():
        written = _last_written(store, folder)
        if folder != keep and written is not None and time.time() - written > _STALE_S:
            store.delete_folder(folder)


def _last_written(store: Store, folder: str) -> float | None:
    """When anything in a folder was last written, unfinished files and the folder itself too where there are any."""
    if not store.is_local:
        return max((file.mtime for file in store.files(folder)), default=None)
    path, times = store.local_path(folder), list[float]()
    for entry in (path, *path.rglob("*")):
        with contextlib.suppress(FileNotFoundError):  # another process writes there
            times.append(entry.stat().st_mtime)
    return max(times, default=None)
