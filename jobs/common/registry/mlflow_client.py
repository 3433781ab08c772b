"""A quiet, quick-to-fail connection to MLflow: a tracking server, or a database such as SQLite in the storage folder.

MLflow takes about 2 s to import and as long again to make a new database,
so who wants to spare that time calls `connect` in a thread of its own.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false

import fcntl
import http.client
import logging
import os
import re
import shlex
import ssl
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.core.auth import no_home
from cluster.core.errors import ConfigError, RegistryError, StorageFullError, TrainyardError
from cluster.core.storage import Store
from jobs.common.config import DATABASE_FILE
from jobs.common.provenance import without_secrets

PROBE_TIMEOUT_S = 5
UPLOAD_TIMEOUT_S = 60
_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    # MLflow's own values (7 retries of 120 s) make a dead server cost many minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    _TIMEOUT: "10",
}


def tracking_address(tracking_uri: str | None, storage: Store) -> str:
    """The URI that is meant: the given one, else SQLite in a local storage.

    Raises: ConfigError for an object store without a server, where SQLite cannot live.
    """
    if tracking_uri is not None:
        return tracking_uri
    if not storage.is_local:
        raise ConfigError(f"storage {storage.uri} cannot hold MLflow's SQLite file: pass --run.tracking-uri "
                          "http://SERVER, or --run.tracking-uri none")
    return f"sqlite:///{storage.local_path(DATABASE_FILE)}"


def check_answers(uri: str) -> None:
    """What can be found out without importing MLflow.

    Raises: ConfigError without a home folder,
    RegistryError if a tracking server gives no answer of any kind within 5 s.
    """
    if uri != "none" and (why := no_home()) is not None:
        raise ConfigError(f"MLflow, which keeps the registry {shown(uri)}, cannot be imported: {why}, or turn tracking "
                          "off with the URI `none`")
    parts = urllib.parse.urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    bare = f"{parts.scheme}://{host}{f':{parts.port}' if parts.port else ''}{parts.path.rstrip('/')}/health"
    unverified = ssl._create_unverified_context  # pyright: ignore[reportPrivateUsage]
    context = unverified() if parts.scheme == "https" else None
    try:
        urllib.request.urlopen(bare, timeout=PROBE_TIMEOUT_S, context=context).close()
    except urllib.error.HTTPError:
        return  # someone answers; whether it is MLflow shows when it is used
    except (OSError, http.client.HTTPException) as error:
        raise unreachable(uri, getattr(error, "reason", error)) from error


def connect(uri: str) -> Any:
    """An `MlflowClient` whose database, if it is one, exists. Two processes may do it at once on a fresh SQLite file.

    Raises: RegistryError, StorageFullError.
    """
    with translated(uri), _alone(sqlite_file(uri)):
        for name, value in _ENVIRONMENT.items():  # what the user set stays
            os.environ.setdefault(name, value)
        _make_database(sqlite_file(uri))
        return _connected(uri)


def _connected(uri: str) -> Any:
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic"):  # after the import, which sets levels of its own
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # logs with a stack trace what it raises too
    client = MlflowClient(uri, uri)
    client.search_experiments(max_results=1)
    client.search_registered_models(max_results=1)
    return client


def sqlite_file(uri: str) -> Path | None:
    """Returns the file of an SQLite registry; None for another kind."""
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]) if uri.startswith("sqlite:///") else None


def _make_database(path: Path | None) -> None:
    """A new SQLite file gets its name when all its tables are made: a half-made one is of no use to anybody."""
    if path is None or (path.exists() and path.stat().st_size):
        return
    for left in path.parent.glob(f"{path.name}.new-*"):
        left.unlink()
    # MLflow keeps connections by name, also to deleted files
    draft = path.with_name(f"{path.name}.new-{uuid.uuid4().hex[:8]}")
    _connected(f"sqlite:///{draft}")
    draft.replace(path)


@contextmanager
def translated(uri: str) -> Generator[None]:
    """Whatever MLflow, its HTTP client or its database raises becomes a RegistryError of one line.

    A SQLite file on a disk that is full or read-only gives a StorageFullError:
    it lies in the run's own storage by default.
    """
    try:
        yield
    except TrainyardError:
        raise
    except Exception as error:  # requests, SQLAlchemy, alembic and MLflow share no base class
        raise _storage_full(uri, str(error)) or unreachable(uri, error) from error


@contextmanager
def patient() -> Generator[None]:
    """Requests inside may wait longer for an answer: uploads of whole files."""
    before = os.environ.get(_TIMEOUT)
    if before == _ENVIRONMENT[_TIMEOUT]:
        os.environ[_TIMEOUT] = str(UPLOAD_TIMEOUT_S)
    try:
        yield
    finally:
        if before is not None:
            os.environ[_TIMEOUT] = before


def _storage_full(uri: str, reason: str) -> StorageFullError | None:
    signs = {"database or disk is full": "full", "No space left on device": "full",
             "attempt to write a readonly database": "read-only", "Read-only file system": "read-only"}
    for said, what in signs.items():
        if said in reason:
            return StorageFullError(f"the disk of the registry {shown(uri)} is {what}: make room or make it writable, "
                                    "then run the same command again")
    return None


def unreachable(uri: str, why: object) -> RegistryError:
    text = re.sub(r"\(raised as a result of [^)]*\)|\[SQL: .*", "", re.sub(r"\s+", " ", str(why) or type(why).__name__))
    reason = without_secrets(text.strip())[:300]
    if "out-of-date database schema" in reason:
        remedy = (f"another MLflow made it; back it up and run `mlflow db upgrade {shlex.quote(shown(uri))}`, or use "
                  "another storage")
    else:
        remedy = "check the tracking URI and that its server runs; the URI `none` turns tracking off"
    return RegistryError(f"registry {shown(uri)} cannot be used ({reason}): {remedy}")


def shown(uri: str) -> str:
    """The URI without a password."""
    return without_secrets(uri)


@contextmanager
def _alone(path: Path | None) -> Generator[None]:
    """One process at a time makes a SQLite file's tables;
    of two, one dies in alembic (MLflow's own lock is too narrow)."""
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
