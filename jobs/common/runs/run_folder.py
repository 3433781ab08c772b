"""A run's folder in storage: which attempt a command line means, whether it may go on, and that nobody else is at it.

    <storage>/<run.name>/            attempt 1, and result.json of the newest attempt that is done, or of the newest
    <storage>/<run.name>/attempts/K/ attempt K, made by --run.resume never, or by more steps than the attempt before it

What an attempt has made stays when another one begins. result.json of the first is then in attempts/1.
"""

import json
import os
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from cluster.core.control_store import within
from cluster.core.documents import DocumentError, JsonObject, load_json
from cluster.core.errors import ConfigError, FolderGoneError, OutOfMemoryError, RunConflictError, StorageError
from cluster.core.hub import is_hub
from cluster.core.storage import Store
from cluster.core.tls_remedy import tls_remedy
from jobs.common import config as configs
from jobs.common.config import Config, TrainConfig
from jobs.common.config_changes import changes, consequences, decisive, refusal
from jobs.common.data.commits import Commits, at_known_commits
from jobs.common.execution.run_state import RUN_FILE
from jobs.common.runs.run_lock import locked
from jobs.common.start_config import at_known_digest

RESULT_FILE = "result.json"
_FIRST_RESULT = f"attempts/1/{RESULT_FILE}"
READ_TIMEOUT_S = 10.0
_DELETION_S = 1.0  # how long somebody's deletion of a run's folder is waited for
_WORTH_KEEPING = ("config.yaml", RESULT_FILE, "artifact/", "attempts/", "checkpoints/manifests/")
"""Of a run's folder, what a driver and workers do not write again by themselves after somebody has deleted it."""


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """One attempt at a run."""

    storage: Store
    top: Store
    store: Store
    attempt: int
    record: JsonObject
    """What run.json holds: empty for a new attempt."""
    extends: "RunFolder | None" = None
    """The attempt before a new one, which is done, and which this one goes on with for more steps."""

    @staticmethod
    def find(config: Config) -> "RunFolder":
        """The attempt that this config continues or makes. Writes nothing.

        Raises: RunConflictError with the differences if the run was made with another config, ConfigError,
        StorageError.
        """
        storage = open_storage(config.run.storage)
        top = storage.child(config.run.name)
        late = StorageError(f"storage {storage.location()} does not answer within {READ_TIMEOUT_S:g} s: check its "
                            "address, that it is up, and the network, or pass another --run.storage")

        def look() -> "RunFolder":
            found = _attempt(storage, top, _newest(top))
            return _attempt(storage, top, found.attempt + 1) if found.record and config.run.resume == "never" else found

        with _readable(storage):
            found = within(READ_TIMEOUT_S, look, late)
            if found.record and found._check(config) and found.is_done:
                return replace(_attempt(storage, top, found.attempt + 1), extends=found)
        return found

    @property
    def num_shards(self) -> int | None:
        """V, fixed when the run was created; None for a new one."""
        return self.record.get("num_shards")

    @property
    def is_done(self) -> bool:
        return self.result().get("status") == "done"

    @property
    def planned_steps(self) -> int | None:
        """How many steps its record asks for; None for that of an earlier version, which did not count the rows."""
        return self._steps(self.record["config"]["train"])

    def _steps(self, train: JsonObject) -> int | None:
        rows = self.record["data"].get("rows", {}).get("train")
        planned = TrainConfig(epochs=train["epochs"], max_steps=train["max_steps"])
        return None if rows is None else planned.total_steps(rows // train["global_batch_size"])

    def is_extended_by(self, config: Config) -> bool:
        """Whether the config asks for more steps than have been made, or are to be made."""
        planned = self.result()["steps"] if self.is_done else self.planned_steps
        asked = self._steps(asdict(config.train))
        return planned is not None and asked is not None and asked > planned

    @property
    def index(self) -> str:
        """The way from this folder to the page of all runs."""
        return f"{'../' * (1 if self.attempt == 1 else 3)}{configs.INDEX_FILE}"

    @property
    def commits(self) -> Commits:
        """At which the run reads what lies on the Hub."""
        return self.record.get("commits", {})

    def result(self) -> JsonObject:
        """What result.json of this attempt holds; empty if it has none."""
        return read_record(self.store, RESULT_FILE)

    def create(self, config: Config, num_shards: int, dataset: JsonObject, **found: object) -> "RunFolder":
        """Writes run.json and config.yaml of a new attempt. found: what was found out when it began, if anything."""
        record = {"name": config.run.name, "attempt": self.attempt, "num_shards": num_shards, "data": dataset,
                  "created": time.time(), "config": configs.to_dict(config)}
        record |= {name: value for name, value in found.items() if value}
        self.store.write_text("config.yaml", configs.to_yaml(config))
        self.store.write_text(RUN_FILE, json.dumps(record, indent=1))
        return RunFolder(storage=self.storage, top=self.top, store=self.store, attempt=self.attempt, record=record)

    def require(self) -> None:
        """Raises: FolderGoneError if somebody has deleted this folder since the run began."""
        try:
            there = self.store.exists(RUN_FILE)
        except OSError:
            return  # the storage does not answer at the moment
        if not there:
            raise FolderGoneError(
                f"{self.store.location(RUN_FILE)} is gone: the run's folder was deleted, or its storage was taken "
                "away, while it trained, so nothing more is written there: run the same command again to begin from "
                "the beginning, or, where you put the folder back, to continue"
            )

    @contextmanager
    def kept(self) -> Generator[None]:
        """For the time of training. Whatever goes wrong in the block: if it is because the folder was deleted, then
        that is raised (FolderGoneError), and what was written there since is taken away,
        as it would look like a run and is none."""
        try:
            yield
        except Exception as error:
            try:
                self.require()
            except FolderGoneError as gone:
                self._clear()
                raise gone from error
            raise

    def _clear(self) -> None:
        """Takes away what is left. Whoever deletes the folder may be at it still, so a moment is given to them: what is
        worth keeping now may be gone then, and a file that vanishes meanwhile ends a deletion."""
        end = time.monotonic() + _DELETION_S
        while time.monotonic() < end:
            with suppress(OSError):
                if not any(file.path.startswith(_WORTH_KEEPING) for file in self.store.files()):
                    self.store.delete_folder("")
                    return
            time.sleep(0.05)

    def remember(self, **values: object) -> None:
        """Adds to run.json. Raises: FolderGoneError."""
        self.require()
        self.record.update(values)
        self.store.write_text(RUN_FILE, json.dumps(self.record, indent=1))

    def go_on(self, config: Config) -> list[str]:
        """Takes down what the config changes. Returns what is to be said of that."""
        found = changes(self.record["config"], config)
        if found:
            self.store.write_text("config.yaml", configs.to_yaml(config))
            self.remember(config=configs.to_dict(config))
        return consequences(found, config, self.record["num_shards"])

    def write_result(self, result: JsonObject) -> None:
        text = json.dumps(result, indent=1)
        self.store.write_text(RESULT_FILE, text)
        if self.attempt == 1:
            return
        before: JsonObject = {}
        with suppress(StorageError):  # a damaged one is worth nothing
            before = read_record(self.top, RESULT_FILE)
        if before.get("attempt") == 1 and not self.top.exists(_FIRST_RESULT):
            self.top.write_text(_FIRST_RESULT, json.dumps(before, indent=1))
        if result["status"] == "done" or before.get("status") != "done":
            self.top.write_text(RESULT_FILE, text)

    @contextmanager
    def locked(self) -> Generator[None]:
        """Keeps other processes of this file system away; on an object store Ray's named actor alone does.

        Raises: RunConflictError if another one holds it; StorageError if the folder cannot be written.
        """
        with locked(self.storage, self.top.uri.rstrip("/").rpartition("/")[2]):
            yield

    def _check(self, config: Config) -> bool:
        """Whether the config extends this attempt."""
        asked = at_known_digest(at_known_commits(config, self.commits), self.record["config"])
        found = changes(self.record["config"], asked)
        rules = {change.on_resume for change in found}
        longer = "extends" in rules and self.is_extended_by(asked)
        short = "cuts" in rules and self.result().get("error") == OutOfMemoryError.__name__
        if refused := decisive(found, asked, longer=longer, short_of_memory=short):
            raise RunConflictError(refusal(config, refused))
        most, num_shards = self.record["num_shards"], config.run.num_shards
        if num_shards not in (None, most):
            raise ConfigError(f"--run.num-shards {num_shards}: run {config.run.name!r} was made with {most}: pass that")
        if config.run.min_workers > most:
            raise ConfigError(
                f"--run.workers {config.run.workers}: run {config.run.name!r} was made for at most {most} workers: "
                f"ask for up to {most}, or begin another run with --run.name or --run.resume never"
            )
        return longer


def open_storage(uri: str) -> Store:
    """The store of --run.storage. Raises: ConfigError for a relative path inside a submitted job."""
    if "://" not in uri and not uri.startswith(("/", "~")):
        if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
            raise ConfigError(
                f"--run.storage {uri}: a submitted job runs in a temporary folder, where a relative path would be "
                "lost: pass an absolute path or a URI"
            )
        uri = str(Path(uri).absolute())
    if is_hub(uri):
        raise ConfigError(f"--run.storage {uri}: datasets of the Hub are only read: pass a folder, s3://… or gs://…")
    return Store.open(uri)


@contextmanager
def _readable(storage: Store) -> Generator[None]:
    try:
        yield
    except OSError as error:
        remedy = (tls_remedy(error)
                  or "check its address, that it is up, and your permissions, or pass another --run.storage")
        raise StorageError(f"storage {storage.location()} cannot be read ({error}): {remedy}") from error


def newest_attempt(top: Store) -> Store:
    """The folder of a run's newest attempt."""
    return _folder(top, _newest(top))


def _newest(top: Store) -> int:
    """One without a record has not begun: its driver was lost while it copied what it was to go on with."""
    numbers = sorted((int(name) for name in top.folders("attempts") if name.isdigit()), reverse=True)
    return next((number for number in numbers if top.exists(f"attempts/{number}/{RUN_FILE}")), 1)


def _folder(top: Store, number: int) -> Store:
    return top if number == 1 else top.child(f"attempts/{number}")


def _attempt(storage: Store, top: Store, number: int) -> RunFolder:
    store = _folder(top, number)
    return RunFolder(storage=storage, top=top, store=store, attempt=number, record=read_record(store, RUN_FILE))


@dataclass(frozen=True, kw_only=True)
class _RunRecord:
    """What every run.json says."""

    name: str
    attempt: int
    num_shards: int
    data: JsonObject
    created: float
    config: JsonObject
    registry_run_id: str | None = None
    job: str = ""


@dataclass(frozen=True, kw_only=True)
class _Result:
    """What every result.json says, and what others of them say too."""

    status: str
    exit_code: int
    metrics: dict[str, dict[str, float]] = field(default_factory=dict[str, dict[str, float]])
    artifact: str | None = None
    trials: dict[str, int] = field(default_factory=dict[str, int])
    best: JsonObject | None = None
    final: list[JsonObject] = field(default_factory=list[JsonObject])


_SHAPES: dict[str, type[object]] = {RUN_FILE: _RunRecord, RESULT_FILE: _Result}


def read_record(store: Store, path: str) -> JsonObject:
    """What a JSON file of a run's folder holds; empty if there is none. Raises: StorageError if it is damaged."""
    try:
        values = load_json(store, path)
        load_json(store, path, _SHAPES.get(path, JsonObject))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except DocumentError as error:
        raise StorageError(f"{store.location(path)} is damaged ({error}): correct or delete it") from error
    return values
