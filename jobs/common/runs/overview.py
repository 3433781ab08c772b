"""What lies in a storage: its runs, the newest attempt of each, its searches and comparisons, by what they say of
themselves."""

import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Literal

from cluster.core.documents import DocumentError, JsonObject, load_json
from cluster.core.errors import ConfigError, StorageError
from cluster.core.storage import FileInfo, Store
from jobs.common.artifact.artifact import CARD
from jobs.common.config import COMPARISONS_FOLDER, GATES_FOLDER, MODELS_FOLDER, PREPARED_FOLDER
from jobs.common.declared_metrics import CLASSIFICATION, Metric, figure, present
from jobs.common.execution.run_state import PROGRESS_FILE, RUN_FILE
from jobs.common.registry.registry import ModelVersion
from jobs.common.report.data_report import DATA_FILE
from jobs.common.report.run_report import REPORT_FILE
from jobs.common.runs.run_folder import RESULT_FILE, read_record
from jobs.common.runs.run_lock import is_locked

SEARCH_FILE = "search.json"
_ARTIFACT = "artifact"
_PAGES = {"report": REPORT_FILE, "data": DATA_FILE, "model card": f"{_ARTIFACT}/{CARD}"}
_THREADS = 16
_SCORES = 3
_SILENT_S = 300.0
"""On an object store, which has no locks: a driver writes its progress every ten seconds while it trains."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A run or a search. Times are in seconds, sizes in bytes of all its attempts and trials."""

    name: str
    kind: Literal["run", "search"]
    job: str
    status: str
    """As result.json has it; `running`, `interrupted` where a driver was lost, `damaged` where its record is."""
    why: str = ""
    """What result.json says of an end without success."""
    created: float
    touched: float
    """When any of its files was last written."""
    wall_s: float | None = None
    steps: int | None = None
    """Of a run; of a search its trials."""
    scores: tuple[tuple[str, float], ...] = ()
    """Of the test rows; of a search what it looked for. The first is the one that counts."""
    goodput: float | None = None
    restarts: int = 0
    cost: float | None = None
    """Of its workers, where the run was given a price."""
    size: int
    pages: Mapping[str, str]
    """What there is to read: title -> path in the storage."""
    versions: tuple[ModelVersion, ...] = ()
    """Of registered models, those that it made."""
    records: tuple[str, ...] = ()
    """Paths in the storage of what its attempts or trials say of themselves."""

    @property
    def registered(self) -> str:
        """`digits 3 (champion)`."""
        return ", ".join(f"{version.name} {version.version}"
                         + (f" ({', '.join(version.aliases)})" if version.aliases else "") for version in self.versions)

    @property
    def shown_scores(self) -> str:
        """`accuracy 0.9812, macro-F1 0.9801`."""
        return ", ".join(f"{label} {figure(value)}" for label, value in self.scores)


@dataclass(frozen=True, kw_only=True)
class Overview:
    """All of a storage."""

    storage: Store
    entries: tuple[Entry, ...]
    """The newest first."""
    comparisons: tuple[FileInfo, ...]
    """Pages of comparisons and of gates, the newest first; paths are of the storage."""
    data_bytes: int
    """Of prepared data, which runs share."""

    def entry(self, name: str) -> Entry:
        """Raises: ConfigError."""
        for each in self.entries:
            if each.name == name:
                return each
        raise ConfigError(f"no run {name!r} in {self.storage.location()}: `trainyard runs list` shows what there is")


def overview(storage: Store, versions: Iterable[ModelVersion] = ()) -> Overview:
    """Reads a storage. versions: those of the registry that may have been made there."""
    others = (PREPARED_FOLDER, MODELS_FOLDER, COMPARISONS_FOLDER, GATES_FOLDER)
    names = [name for name in storage.folders() if name not in others and not name.startswith(".")]
    made = list(versions)
    with ThreadPoolExecutor(_THREADS) as pool:
        data = pool.submit(lambda: sum(file.size for file in storage.files(PREPARED_FOLDER)))
        found = [entry for entry in pool.map(partial(_entry, storage, made), names) if entry]
        pages = [file for file in storage.files(COMPARISONS_FOLDER) if file.path.endswith(".html")]
        pages += [file for file in storage.files(GATES_FOLDER) if file.path.endswith("/gate.html")]
        return Overview(storage=storage, entries=tuple(sorted(found, key=lambda each: -each.created)),
                        comparisons=tuple(sorted(pages, key=lambda page: -page.mtime)), data_bytes=data.result())


def is_running(storage: Store, name: str) -> bool:
    """Whether a driver is at it: by its lock, or on an object store by what it last wrote."""
    if storage.is_local:
        return is_locked(storage, name)
    top = storage.child(name)
    written = [file for file in top.files() if file.path.rpartition("/")[2] in (PROGRESS_FILE, RUN_FILE, SEARCH_FILE)]
    newest = max(written, key=lambda file: file.mtime, default=None)
    if newest is None or time.time() - newest.mtime > _SILENT_S:
        return False
    return not (newest.path.endswith(PROGRESS_FILE) and load_json(top, newest.path).get("ended"))


def _entry(storage: Store, versions: list[ModelVersion], name: str) -> Entry | None:
    """None where a folder is of neither kind."""
    top = storage.child(name)
    files = {file.path: file for file in top.files(unfinished=True)}
    kind = "run" if RUN_FILE in files else "search" if SEARCH_FILE in files else None
    if kind is None:
        return None
    attempts = [int(path.split("/")[1]) for path in files if path.startswith("attempts/") and path.endswith(RUN_FILE)]
    newest = f"attempts/{max(attempts)}/" if attempts else ""
    result: JsonObject
    try:
        store = top.child(newest) if newest else top
        job, created = _run(store) if kind == "run" else (_searched(top), files[SEARCH_FILE].mtime)
        result = read_record(store, RESULT_FILE)
    except StorageError as error:
        job, created = "", min(file.mtime for file in files.values())
        result = {"status": "damaged", "message": str(error)}
    status = str(result.get("status", "interrupted"))
    if status != "done" and is_running(storage, name):
        status = "running"
    made = tuple(version for version in versions if version.uri.startswith(f"{top.location()}/"))
    return Entry(
        name=name, kind=kind, status=status, why=str(result.get("message", "")),
        job=job, created=created,
        touched=max(file.mtime for file in files.values()), wall_s=result.get("wall_s"),
        steps=result.get("steps") if kind == "run" else sum(result.get("trials", {}).values()) or None,
        scores=tuple(_scores(result)[:_SCORES]), goodput=result.get("goodput"),
        cost=result.get("cost", {}).get("workers"),
        restarts=int(result.get("restarts", 0)), size=sum(file.size for file in files.values()),
        pages={title: f"{name}/{newest}{path}" for title, path in _PAGES.items() if f"{newest}{path}" in files},
        versions=made, records=tuple(f"{name}/{path}" for path in files if path.rpartition("/")[2] == RUN_FILE))


def _run(store: Store) -> tuple[str, float]:
    """Its job, and when it began."""
    record = read_record(store, RUN_FILE)
    return record.get("job") or _job_of(store), float(record["created"])


def _job_of(store: Store) -> str:
    """Of a run whose record was written by a version that did not say it there."""
    try:
        return str(load_json(store, f"{_ARTIFACT}/manifest.json").get("job", ""))
    except (FileNotFoundError, DocumentError):
        return ""


def _searched(store: Store) -> str:
    """Its job, only to be shown: whether the record is signed is checked where a search goes on by it."""
    return str(read_record(store, SEARCH_FILE).get("content", {}).get("job", ""))


def _scores(result: JsonObject) -> list[tuple[str, float]]:
    if best := result.get("best"):
        judged: JsonObject = best.get("evaluation") or {}
        return [(name.replace("_", " "), judged[name]) for name in result.get("objectives", ()) if name in judged]
    test: dict[str, float] = result.get("metrics", {}).get("test", {})
    metrics = [Metric(**each) for each in result.get("declared_metrics", ())] or CLASSIFICATION
    return [(metric.label, test[metric.name]) for metric in
            sorted(present(metrics, test), key=lambda metric: not metric.primary)]
