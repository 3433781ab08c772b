"""Which runs may go, so that a storage has room: asked for by name, age, number or size; and their end."""

import itertools
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from cluster.core.errors import ConfigError, DataError, RunConflictError, StorageError
from cluster.core.storage import Store
from jobs.common.config import PREPARED_FOLDER
from jobs.common.data.dataset import Dataset
from jobs.common.registry.registry import CHAMPION
from jobs.common.runs.overview import Entry, Overview, is_running
from jobs.common.runs.run_folder import read_record
from jobs.common.runs.run_lock import locked

_DAY_S = 24 * 3600.0


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What may stay: a run goes if one of these says so. None says nothing."""

    older_than_s: float | None = None
    """Since anything of it was written."""
    keep: int | None = None
    """The newest runs and searches of each job."""
    to_size: int | None = None
    """Bytes of all that stay; the oldest go first."""
    statuses: Sequence[str] = ()
    """Only these may go at all; none named: any."""


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A prepared set that no run needs any more."""

    key: str
    size: int


def why_kept(entry: Entry) -> str:
    """Why a run must not go; empty where it may."""
    champions = [f"models:/{version.name}@{CHAMPION}" for version in entry.versions if CHAMPION in version.aliases]
    if champions:
        return f"it made {' and '.join(champions)}"
    return "it is running" if entry.status == "running" else ""


def chosen(found: Overview, limits: Limits, now: float) -> list[Entry]:
    """Those that go, the oldest first. now: seconds since 1970."""
    may = [entry for entry in sorted(found.entries, key=lambda entry: entry.touched)
           if not why_kept(entry) and (not limits.statuses or entry.status in limits.statuses)]
    go = {entry.name for entry in may if limits.older_than_s is not None and now - entry.touched > limits.older_than_s}
    if limits.keep is not None:
        by_job = sorted(found.entries, key=lambda entry: (entry.job, -entry.touched))
        stay = {entry.name for _, of_job in itertools.groupby(by_job, key=lambda entry: entry.job)
                for entry in itertools.islice(of_job, limits.keep)}
        go |= {entry.name for entry in may if entry.name not in stay}
    if limits.to_size is not None:
        left = sum(entry.size for entry in found.entries if entry.name not in go)
        for entry in may:
            if left > limits.to_size and entry.name not in go:
                go.add(entry.name)
                left -= entry.size
    return [entry for entry in may if entry.name in go]


def named(found: Overview, names: Sequence[str]) -> list[Entry]:
    """The runs of these names. Raises: ConfigError, where one is not there or must stay."""
    entries = [found.entry(name) for name in dict.fromkeys(names)]
    for entry in entries:
        if why := why_kept(entry):
            raise ConfigError(f"run {entry.name!r} stays, since {why}: stop it, or promote another version, first")
    return entries


def unused_data(found: Overview, going: Iterable[Entry], now: float) -> list[DataSet]:
    """Prepared data that no run but those that go has trained on, and that nobody has touched for a day."""
    gone = {entry.name for entry in going}
    staying = (path for entry in found.entries if entry.name not in gone for path in entry.records)
    needed = {fingerprint for path in staying if (fingerprint := _fingerprint(found.storage, path))}
    unused: list[DataSet] = []
    for key in found.storage.child(PREPARED_FOLDER).folders():
        store = found.storage.child(f"{PREPARED_FOLDER}/{key}")
        files = store.files(unfinished=True)
        if not files or now - max(file.mtime for file in files) < _DAY_S:
            continue
        with suppress(FileNotFoundError, DataError):
            dataset = Dataset.load(store)
            if not any(dataset.has(fingerprint) for fingerprint in needed):
                unused.append(DataSet(key=key, size=sum(file.size for file in files)))
    return unused


def _fingerprint(storage: Store, record: str) -> str:
    """Of the data that a run's record names; empty where that is damaged."""
    try:
        return str(read_record(storage, record)["data"]["fingerprint"])
    except (StorageError, KeyError):
        return ""


def delete(storage: Store, entries: Iterable[Entry], data: Iterable[DataSet] = ()) -> None:
    """Deletes runs, each of them locked meanwhile. Raises: RunConflictError if a driver is at it by now."""
    for entry in entries:
        if entry.status != "done" and is_running(storage, entry.name):
            raise RunConflictError(f"run {entry.name!r} has been gone on with meanwhile: it was not deleted")
        with locked(storage, entry.name):
            storage.delete_folder(entry.name)
    for each in data:
        storage.delete_folder(f"{PREPARED_FOLDER}/{each.key}")
