"""All runs of a storage on one page, `index.html` in it, made anew when a run or a search ends."""

import hashlib
import time
from base64 import b64encode
from collections.abc import Callable
from importlib.resources import files

from markupsafe import Markup

from cluster.core.errors import RegistryError, TrainyardError
from cluster.core.storage import Store
from jobs.common.config import INDEX_FILE, RunConfig
from jobs.common.formatting import size_shown
from jobs.common.registry.connection import versions_of
from jobs.common.registry.registry import ModelVersion
from jobs.common.runs.console import duration
from jobs.common.runs.overview import Entry, Overview, overview


def keep_index(run: RunConfig, say: Callable[[str], None]) -> None:
    """Writes the page of a run's storage. Where that fails it is said, and nothing else: the run has ended."""
    try:
        write_index(Store.open(run.storage), run.tracking_uri)
    except (TrainyardError, OSError) as error:
        say(f"{INDEX_FILE} of {run.storage}, which shows all runs, was not written ({error}): `trainyard runs page` "
            "writes it")


def write_index(storage: Store, tracking_uri: str | None) -> str:
    """Returns where the page is. Raises: StorageError, OSError."""
    storage.write_text(INDEX_FILE, render(overview(storage, registered(tracking_uri, storage))))
    return storage.location(INDEX_FILE)


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

    return html.render("index.html", "jobs.common.runs", found=found, script=script, digest=digest,
                       tiles=_tiles(found), row=_row, when=when)


def _tiles(found: Overview) -> list[tuple[str, str, str]]:
    runs = [entry for entry in found.entries if entry.kind == "run"]
    done, running = (sum(entry.status == status for entry in runs) for status in ("done", "running"))
    return [("runs", f"{len(runs):,}", f"{done:,} done, {running:,} running"),
            ("searches", f"{len(found.entries) - len(runs):,}", ""),
            ("of runs on disk", size_shown(sum(entry.size for entry in found.entries)), "checkpoints, models, reports"),
            ("of data on disk", size_shown(found.data_bytes), "prepared, shared by runs")]


def _row(entry: Entry) -> list[tuple[str, float | str]]:
    """The cells behind the name: what is shown, and by what is sorted."""
    score = entry.scores[0][1] if entry.scores else float("-inf")
    return [(entry.kind, entry.kind), (entry.job or "–", entry.job), (when(entry.created), entry.created),
            (entry.shown_scores or "–", score), (_or_dash(entry.steps, "{:,}"), entry.steps or 0),
            (duration(entry.wall_s) if entry.wall_s else "–", entry.wall_s or 0),
            (_or_dash(entry.goodput, "{:.0%}"), entry.goodput or 0),
            (_or_dash(entry.cost, "{:,.2f}"), entry.cost or 0), (size_shown(entry.size), entry.size),
            (entry.registered or "–", entry.registered)]


def _or_dash(value: float | None, how: str) -> str:
    return "–" if value is None else how.format(value)


def when(seconds: float) -> str:
    """UTC, to the minute."""
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds))
