"""What a search has done so far: the only truth of it, from which trials,
searcher and scheduler are put together again.

    <search>/search.json          what is searched, how, and the config that all trials have in common
    <search>/journal/0007.json    what became of trial 7: an event for each evaluation and failure, numbered

Ray Tune's own saved state is not read: restoring it unpickles what lies in storage, and it does not hold the
scheduler's rungs (ray#30838). These files are JSON, and each carries an HMAC-SHA256 over its content, its path and the
search's identity, so that one that was altered, or was put in another's place, is refused. The key is
$TRAINYARD_STATE_KEY, or this user's own (`~/.trainyard/state_key`, mode 0600).
"""

import hashlib
import hmac
import json
import os
import time
from collections.abc import Container
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal, get_args

from cluster.core.auth import secret_file
from cluster.core.documents import JsonObject, check_version, load_json, parse_json
from cluster.core.errors import ConfigError, StorageError
from cluster.core.storage import Store
from jobs.common.command_line import current_names
from tuning.space import Values

KEY_VARIABLE = "TRAINYARD_STATE_KEY"
_LEAST_KEY = 16
SCHEMA_VERSION = 1
"""The format of both kinds of files. One that states no version was written before there were any: 1."""
_PARALLEL_READS = 16

Status = Literal["completed", "stopped", "failed", "running"]
"""`stopped`: by the scheduler, before its last epoch. `running`: or resting, or to be gone on with."""
STATUSES: tuple[Status, ...] = get_args(Status)


@dataclass(frozen=True)
class _Signed:
    hmac: str
    content: JsonObject


@dataclass
class Trial:
    """What became of one set of values.
    In a population: of one member, which may take another's place again and again."""

    number: int
    values: Values = field(default_factory=dict[str, object])
    status: Status = "running"
    evaluations: list[JsonObject] = field(default_factory=list[JsonObject])
    failures: list[str] = field(default_factory=list[str])
    moves: list[JsonObject] = field(default_factory=list[JsonObject])
    """Of a member of a population: `source`, `epoch`, `values` of each move."""
    events: list[JsonObject] = field(default_factory=list[JsonObject])
    rests: list[int] = field(default_factory=list[int])
    """Of a member of a population: the epochs after which it came to rest, its checkpoint written."""
    _before_move: int = 0

    @property
    def folder(self) -> str:
        """The name of its run, in the search's folder `trials`. A member that moved goes on in a new one."""
        return self.folder_after(len(self.moves))

    def folder_after(self, moves: int) -> str:
        return f"t{self.number:04d}" + (f"-{moves}" if moves else "")

    @property
    def paused(self) -> int:
        """The epoch after which it came to rest last; 0: never."""
        return self.rests[-1] if self.rests else 0

    @property
    def epoch(self) -> int:
        """Epochs done of those that are evaluated."""
        return max((row["epoch"] for row in self.evaluations), default=0)

    def has(self, step: int) -> bool:
        """Whether the evaluation at a step is known:
        a trial that was started again reports what it did before once more."""
        since = self.moves[-1]["step"] if self.moves else -1
        return step <= since or any(row["step"] == step for row in self.evaluations[self._before_move :])

    def apply(self, event: JsonObject) -> None:
        """Takes an event in, a new one or one that was read."""
        self.events.append(event)
        match event["kind"]:
            case "begun":
                self.values = event["values"]
            case "evaluation":
                self.evaluations.append(event["row"])
                self.status = event["decision"] if event["decision"] in ("completed", "stopped") else "running"
            case "failure":
                self.failures.append(event["message"])
            case "moved":
                self.values = event["values"]
                self.moves.append({key: event[key] for key in ("source", "epoch", "step", "values")})
                self._before_move = len(self.evaluations)
            case "rested":
                self.rests.append(event["epoch"])
            case _:
                assert event["kind"] == "ended", event
                self.status = event["status"]


class Journal:
    """Reads and writes a search's record. Every write is durable before it returns."""

    def __init__(self, store: Store, key: bytes, fields: Container[str] = ()) -> None:
        self._store, self._key, self._identity, self._next, self._fields = store, key, "", 0, fields
        self._clock = time.monotonic()
        self.about: JsonObject = {}
        self.trials: dict[int, Trial] = {}

    @staticmethod
    def open(store: Store, key: bytes | None = None, fields: Container[str] = ()) -> "Journal":
        """The record of the search in a folder; `about` is empty for a new one. fields: those of the config, by whose
        names the values of trials are known that an earlier version has written.

        Raises: StorageError if a file is damaged, altered, or made with another key, or one is missing;
            NewerVersionError.
        """
        journal = Journal(store, key or state_key(), fields)
        try:
            journal.about = journal._read("search.json")
        except FileNotFoundError:
            return journal
        journal._identity = journal.about["identity"]
        names = [file.path for file in store.files("journal", recursive=False)]
        with ThreadPoolExecutor(_PARALLEL_READS) as pool:
            records = list(pool.map(journal._read, names))
        found = [event | {"number": record["number"]} for record in records for event in record["events"]]
        for expected, event in enumerate(sorted(found, key=lambda each: each["sequence"])):
            if event["sequence"] != expected:
                raise StorageError(f"{store.location('journal')}: event {expected} of the search is missing: restore "
                                   "the file of the trial that it was about, or begin another search with --run.name")
            journal._apply(event.pop("number"), event)
            journal._clock = time.monotonic() - event["at_s"]
        return journal

    def begin(self, about: JsonObject) -> None:
        """Writes search.json of a new search."""
        self._identity = os.urandom(16).hex()
        self.about = about | {"identity": self._identity}
        self._write("search.json", self.about)

    def add(self, number: int, **event: object) -> Trial:
        """Writes what happened to a trial. Returns the trial as it is now."""
        trial = self._apply(number, {"sequence": self._next, "at_s": round(self.elapsed_s, 3), **event})
        self._write(f"journal/{number:04d}.json", {"number": number, "events": trial.events})
        return trial

    @property
    def elapsed_s(self) -> float:
        """Seconds of search over all its starts."""
        return time.monotonic() - self._clock

    def events(self) -> list[tuple[int, JsonObject]]:
        """(trial, event), in the order in which they happened."""
        every = [(number, event) for number, trial in self.trials.items() for event in trial.events]
        return sorted(every, key=lambda pair: pair[1]["sequence"])

    def _apply(self, number: int, event: JsonObject) -> Trial:
        if "values" in event:
            event = event | {"values": current_names(event["values"], self._fields)}
        trial = self.trials.setdefault(number, Trial(number))
        trial.apply(event)
        self._next = event["sequence"] + 1
        return trial

    def _write(self, path: str, content: JsonObject) -> None:
        content = parse_json(json.dumps({"schema_version": SCHEMA_VERSION, **content}))  # as it will be read
        text = json.dumps({"hmac": self._code(path, content), "content": content}, indent=1)
        self._store.write_text(path, text + "\n")

    def _read(self, path: str) -> JsonObject:
        try:
            document = load_json(self._store, path, _Signed)
            if not hmac.compare_digest(document.hmac.encode(), self._code(path, document.content).encode()):
                raise ValueError("its HMAC does not match: it was altered, or written with another key")
        except ValueError as error:
            raise StorageError(f"{self._store.location(path)} is refused ({error}): restore it, set {KEY_VARIABLE} to "
                               "the key that the search began with, or begin another search with --run.name") from error
        version = document.content.get("schema_version", 1)
        check_version(self._store.location(path), version, SCHEMA_VERSION, "begin another search with --run.name")
        return document.content

    def _code(self, path: str, content: object) -> str:
        signed = json.dumps([path, "" if path == "search.json" else self._identity, content], sort_keys=True)
        return hmac.new(self._key, signed.encode(), hashlib.sha256).hexdigest()


def state_key() -> bytes:
    """The key of this user's searches. Raises: ConfigError if the environment's is too short to keep anybody out."""
    key = os.environ.get(KEY_VARIABLE)
    if key is None:
        return secret_file("state_key").read_bytes().strip()
    if len(key) < _LEAST_KEY:
        raise ConfigError(f"{KEY_VARIABLE} has {len(key)} characters: give it at least {_LEAST_KEY}, such as those "
                          "that `openssl rand -hex 32` prints")
    return key.encode()
