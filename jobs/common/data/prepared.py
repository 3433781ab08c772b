"""Where prepared data lies and how it comes there: found by its key, or built once and committed by one write.

A prepared set lies in <storage>/data/<key>/, where the key is of the sources' listing and of every option that matters:
so it is found again at once. It is built into a folder of its own; writing `dataset.json` commits it;
after an error nothing stays. Where the process was stopped or killed, the pieces that were done stay for a day, and
whoever prepares the same takes them over (pieces.py).
"""

import contextlib
import hashlib
import json
import logging
import time
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from cluster.core.errors import DataError, StoppedError, TrainyardError
from cluster.core.storage import Store
from jobs.common.config import PREPARED_FOLDER
from jobs.common.data.blocks import Measure, SplitWriter
from jobs.common.data.dataset import INDEX_FILE, SPLITS, Column, Dataset, SplitName

_log = logging.getLogger(__name__)
_THREADS = 4
_STALE_S = 24 * 3600.0
DONE_FOLDER, PLAN_FILE = "done", "plan"
"""In a folder of blocks, until the set is committed: what each piece answered, and what decides their content."""
Say = Callable[[str], None]
Writers = Mapping[SplitName, SplitWriter]


def key_of(*options: object) -> str:
    """The key of plain JSON values: everything that decides the content, short of reading it."""
    return hashlib.sha256(json.dumps(options).encode()).hexdigest()[:20]


def find_or_build(storage: Store, key: str, build: Callable[[Store, str], Dataset],
                  older_keys: Sequence[str] = ()) -> Dataset:
    """The set of this key, as it lies in storage or as `build` makes it: (the set's folder,
    where in it its blocks go) -> set. older_keys: what an earlier Trainyard kept it by; what is there is used.

    Raises: what `build` raises; StorageError, StorageFullError if the storage cannot be written.
    Nothing is left half-written.
    """
    for known in (key, *older_keys):
        if (found := _earlier(_folder(storage, known))) is not None:
            return found
    store = _folder(storage, key)
    blocks = f"blocks-{uuid.uuid4().hex[:12]}"
    try:
        dataset = _commit(build(store, blocks), store)
    except (StoppedError, KeyboardInterrupt):
        raise
    except BaseException:
        with contextlib.suppress(OSError):  # a storage that fails is the cause already
            _remove(store, blocks)
        raise
    with contextlib.suppress(OSError, TrainyardError):  # what is committed stands, whatever becomes of leftovers
        store.delete_folder(f"{dataset.blocks}/{DONE_FOLDER}")
        store.delete(f"{dataset.blocks}/{PLAN_FILE}")
        _sweep(store, dataset.blocks)
    return dataset


def find_by_fingerprint(storage: Store, fingerprint: str) -> Dataset | None:
    """The prepared set of a run's data, where it is still in the storage."""
    with contextlib.suppress(TrainyardError, OSError):
        for key in storage.child(PREPARED_FOLDER).folders():
            with contextlib.suppress(FileNotFoundError, DataError):
                found = Dataset.load(storage.child(f"{PREPARED_FOLDER}/{key}"))
                if found.has(fingerprint):
                    return found
    return None


def _folder(storage: Store, key: str) -> Store:
    return Store.open(storage.location(f"{PREPARED_FOLDER}/{key}"))


@contextlib.contextmanager
def split_writers(store: Store, blocks: str, columns: Sequence[Column], num_classes: int,
                  measure: Measure | None = None, below: str = "", *, hashed: bool = True) -> Generator[Writers]:
    """A writer for each split, perhaps of a piece's folder `below` it; after an error none of them goes on in the
    background."""
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            yield {name: SplitWriter(store, f"{blocks}/{name}{below}", columns, num_classes, pool, measure,
                                    hashed=hashed)
                   for name in SPLITS}
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def content_fingerprint(about: Mapping[str, object], writers: Writers) -> str:
    """Of a set: what describes it, and every row of each split."""
    return fingerprint_of(about, {name: writer.digest() for name, writer in writers.items()})


def fingerprint_of(about: Mapping[str, object], digests: Mapping[SplitName, object]) -> str:
    """The same, of what the digests of each split's rows are."""
    return hashlib.sha256(json.dumps([about, digests], sort_keys=True).encode()).hexdigest()


def _earlier(store: Store) -> Dataset | None:
    """The set that is there already.
    One whose description is damaged, or was made by an older version, is made again."""
    try:
        return Dataset.load(store)
    except FileNotFoundError:
        return None
    except DataError as error:
        _log.warning("%s", error)
        return None


def _commit(dataset: Dataset, store: Store) -> Dataset:
    """Of two that prepared the same data at once, the later takes what the earlier made."""
    if (earlier := _earlier(store)) is not None:
        _remove(store, dataset.blocks)
        return earlier
    store.write_text(INDEX_FILE, dataset.to_json())
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
