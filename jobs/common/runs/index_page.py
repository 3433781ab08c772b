"""All runs of a storage on one page, `index.html` in it, made anew when a run or a search ends.

`index.json` beside it keeps what was read: a run that was done then is not read again by another one's end, so that the
page of thousands of runs costs what those cost that go on. `trainyard runs page` reads all.
"""

import hashlib
import json
import time
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.resources import files

from markupsafe import Markup

from cluster.core.documents import DocumentError, load_json
from cluster.core.errors import RegistryError, TrainyardError
from cluster.core.storage import Store
from jobs.common.config import GATES_FOLDER, INDEX_FILE, INDEX_RECORD, USES_FOLDER, RunConfig
from jobs.common.formatting import size_shown
from jobs.common.registry.connection import versions_of
from jobs.common.registry.registry import ModelVersion
from jobs.common.runs.console import duration
from jobs.common.runs.overview import Entry, Overview, Use, inside, overview, way

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What index.json holds."""

    entries: tuple[Entry, ...]


def keep_index(run: RunConfig, say: Say) -> None:
    """Writes the page of a run's storage. Where that fails it is said, and nothing else: the run has ended."""
    try:
        storage = Store.open(run.storage)
        write_index(storage, run.tracking_uri, {name: entry for name, entry in _known(storage).items()
                                                if name != run.name})
    except (TrainyardError, OSError) as error:
        say(f"{INDEX_FILE} of {run.storage}, which shows all runs, was not written ({error}): `trainyard runs page` "
            "writes it")


def write_index(storage: Store, tracking_uri: str | None, known: Mapping[str, Entry] | None = None) -> str:
    """known: what need not be read again. Returns where the page is. Raises: StorageError, OSError."""
    found = overview(storage, registered(tracking_uri, storage), known)
    kept = _Known(entries=tuple(replace(entry, versions=()) for entry in found.entries if entry.status == "done"))
    storage.write_text(INDEX_RECORD, json.dumps(asdict(kept)))
    storage.write_text(INDEX_FILE, render(found))
    return storage.location(INDEX_FILE)


def _known(storage: Store) -> dict[str, Entry]:
    """Of what the last page read, the runs and searches that were done, by name."""
    try:
        return {entry.name: entry for entry in load_json(storage, INDEX_RECORD, _Known).entries}
    except (FileNotFoundError, DocumentError):
        return {}


def note_use(storage: Store, tracking_uri: str | None, use: Use, say: Say) -> None:
    """Keeps what a model of the storage is used for, or was once `wall_s` is there, and shows it on the page. Nothing
    is kept of other models, nor of what a gate asks, which has a page of its own."""
    if not inside(storage, use.artifact) or inside(storage, use.where).startswith(f"{GATES_FOLDER}/"):
        return
    key = hashlib.sha256(f"{use.where} {use.report}".encode()).hexdigest()[:16]
    try:
        storage.write_text(f"{USES_FOLDER}/{key}.json", json.dumps(asdict(use)))
    except (TrainyardError, OSError) as error:
        say(f"{INDEX_FILE} of {storage.location()} will not show this ({error})")
        return
    keep_index(RunConfig(storage=storage.uri, tracking_uri=tracking_uri), say)


def way_back(out: Store, storage: Store, artifact: str) -> str:
    """The link from a folder of what a model was used for to the page of all runs; empty where none is kept of it."""
    return way(out, storage, INDEX_FILE) if inside(storage, artifact) else ""


def registered(tracking_uri: str | None, storage: Store) -> list[ModelVersion]:
    """Versions of models; none where there is no registry, or it does not answer."""
    try:
        return versions_of(tracking_uri, storage)
    except (RegistryError, ConnectionError):
        return []


def render(found: Overview) -> str:
    """The page as HTML."""
    script = Markup(files("jobs.common.runs").joinpath("templates/sorting.js").read_text())
    digest = b64encode(hashlib.sha256(str(script).encode()).digest()).decode()
    from jobs.common.report import html

    shown = sorted((*found.entries, *found.uses), key=lambda entry: -entry.created)
    return html.render("index.html", "jobs.common.runs", found=found, shown=shown, script=script, digest=digest,
                       tiles=_tiles(found), row=_row, when=when)


def _tiles(found: Overview) -> list[tuple[str, str, str]]:
    runs = [entry for entry in found.entries if entry.kind == "run"]
    done, running = (sum(entry.status == status for entry in runs) for status in ("done", "running"))
    asked = sum(entry.kind == "evaluation" for entry in found.uses)
    return [("runs", f"{len(runs):,}", f"{done:,} done, {running:,} running"),
            ("searches", f"{len(found.entries) - len(runs):,}", ""),
            ("evaluations", f"{asked:,}", ""), ("predictions", f"{len(found.uses) - asked:,}", ""),
            ("of runs on disk", size_shown(sum(entry.size for entry in found.entries)), "checkpoints, models, reports"),
            ("of data on disk", size_shown(found.data_bytes), "prepared, shared by runs")]


def _row(entry: Entry) -> list[tuple[str, float | str]]:
    """The cells behind the name: what is shown, and by what is sorted."""
    score = entry.scores[0][1] if entry.scores else float("-inf")
    return [(entry.kind, entry.kind), (entry.job or "–", entry.job), (when(entry.created), entry.created),
            (entry.shown_scores or "–", score), (_or_dash(entry.steps, "{:,}"), entry.steps or 0),
            (duration(entry.wall_s) if entry.wall_s else "–", entry.wall_s or 0),
            (_or_dash(entry.goodput, "{:.0%}"), entry.goodput or 0),
            (_or_dash(entry.cost, "{:,.2f}"), entry.cost or 0),
            (size_shown(entry.size) if entry.size else "–", entry.size),
            (entry.registered or entry.of or "–", entry.registered or entry.of)]


def _or_dash(value: float | None, how: str) -> str:
    return "–" if value is None else how.format(value)


def when(seconds: float) -> str:
    """UTC, to the minute."""
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds))
