"""What lies in a storage: its runs, the newest attempt of each, its searches and comparisons, by what they say of
themselves; and what its models were used for."""

import os
import time
import urllib.parse
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from cluster.core.documents import DocumentError, JsonObject, load_json
from cluster.core.errors import ConfigError, StorageError
from cluster.core.storage import FileInfo, Store
from jobs.common.artifact.artifact import CARD
from jobs.common.config import COMPARISONS_FOLDER, GATES_FOLDER, NO_RUNS, PREPARED_FOLDER, USES_FOLDER
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
    """A run or a search, or what a model was used for. Times are in seconds, sizes in bytes of all its attempts and
    trials, or of the answers."""

    name: str
    kind: Literal["run", "search", "evaluation", "prediction"]
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
    """Of a run; of a search its trials, else rows."""
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
    of: str = ""
    """Of an evaluation or a prediction, the model that was asked, and about what."""

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
class Use:
    """An evaluation or a prediction by a model of the storage, as its record there says."""

    kind: Literal["evaluation", "prediction"]
    model: str
    artifact: str
    """Where the model is."""
    job: str
    data: str
    where: str
    """The folder of what was found."""
    proof: str
    """The file in it that is there once it is complete."""
    report: str = ""
    """A page in it."""
    began: float
    wall_s: float | None = None
    """None until it is complete."""
    rows: int = 0
    failed: int = 0
    scores: tuple[tuple[str, float], ...] = ()
    size: int = 0


@dataclass(frozen=True, kw_only=True)
class Overview:
    """All of a storage."""

    storage: Store
    entries: tuple[Entry, ...]
    """Runs and searches, the newest first."""
    uses: tuple[Entry, ...]
    """The same of evaluations and predictions."""
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


def overview(storage: Store, versions: Iterable[ModelVersion] = (),
             known: Mapping[str, Entry] | None = None) -> Overview:
    """Reads a storage. versions: those of the registry that may have been made there. known: runs and searches by name
    that are as they were, and are not read again."""
    names = [name for name in storage.folders() if name not in NO_RUNS and not name.startswith(".")]
    made, old = list(versions), known or {}
    with ThreadPoolExecutor(_THREADS) as pool:
        data = pool.submit(lambda: sum(file.size for file in storage.files(PREPARED_FOLDER)))
        read = pool.map(partial(_entry, storage), [name for name in names if name not in old])
        found = [replace(entry, versions=_made(storage, entry.name, made))
                 for entry in (*read, *(old[name] for name in names if name in old)) if entry]
        reports = {entry.name: entry.pages["report"] for entry in found if "report" in entry.pages}
        uses = [entry for entry in pool.map(partial(_use, storage, reports), storage.files(USES_FOLDER)) if entry]
        pages = [file for file in storage.files(COMPARISONS_FOLDER) if file.path.endswith(".html")]
        pages += [file for file in storage.files(GATES_FOLDER) if file.path.endswith("/gate.html")]
        return Overview(storage=storage, entries=tuple(sorted(found, key=lambda each: -each.created)),
                        uses=tuple(sorted(uses, key=lambda each: -each.created)),
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


def _made(storage: Store, name: str, versions: list[ModelVersion]) -> tuple[ModelVersion, ...]:
    return tuple(version for version in versions if inside(storage, version.uri).startswith(f"{name}/"))


def _use(storage: Store, reports: Mapping[str, str], file: FileInfo) -> Entry | None:
    """reports: those of runs, by name. None of what is not there any more, or cannot be read."""
    try:
        use = load_json(storage, file.path, Use)
    except (FileNotFoundError, DocumentError):
        return None
    out, done = Store.open(use.where), use.wall_s is not None
    if out.is_local and not (out.local_path(use.proof).exists() if done else out.local_path().is_dir()):
        return None
    run = inside(storage, use.artifact).split("/")[0]
    pages = {"report": way(storage, out, use.report) if use.report and done else "",
             "the model's run": reports.get(run, "")}
    failed = f"; {use.failed:,} rows without an answer" if use.failed else ""
    return Entry(
        name=use.where.partition("?")[0].rstrip("/").rpartition("/")[2], kind=use.kind, job=use.job,
        status="done" if done else "unfinished", why="" if done else "it runs, or the same command goes on with it",
        created=use.began, touched=file.mtime, wall_s=use.wall_s, steps=use.rows or None, scores=use.scores[:_SCORES],
        size=use.size, pages={title: path for title, path in pages.items() if path},
        of=f"{inside(storage, use.model) or use.model} on {use.data.rstrip('/').rpartition('/')[2]}{failed}")


def way(here: Store, there: Store, path: str) -> str:
    """The link from a page in one folder to a file of another; empty where none leads there."""
    (start, _, options), (end, _, others) = here.location().partition("?"), there.location(path).partition("?")
    same = options == others and start.split("/")[:3] == end.split("/")[:3]  # s3://BUCKET
    return urllib.parse.quote(os.path.relpath(end, start)) if same or (here.is_local and there.is_local) else ""


def inside(storage: Store, uri: str) -> str:
    """The path in a storage of what is there; empty of what is elsewhere."""
    above, place = f"{storage.location().partition('?')[0]}/", uri.partition("?")[0]
    return place.removeprefix(above) if place.startswith(above) else ""


def _entry(storage: Store, name: str) -> Entry | None:
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
    return Entry(
        name=name, kind=kind, status=status, why=str(result.get("message", "")),
        job=job, created=created,
        touched=max(file.mtime for file in files.values()), wall_s=result.get("wall_s"),
        steps=result.get("steps") if kind == "run" else sum(result.get("trials", {}).values()) or None,
        scores=tuple(_scores(result)[:_SCORES]), goodput=result.get("goodput"),
        cost=result.get("cost", {}).get("workers"),
        restarts=int(result.get("restarts", 0)), size=sum(file.size for file in files.values()),
        pages={title: f"{name}/{newest}{path}" for title, path in _PAGES.items() if f"{newest}{path}" in files},
        records=tuple(f"{name}/{path}" for path in files if path.rpartition("/")[2] == RUN_FILE))


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
