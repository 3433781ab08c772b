"""What commits a checkpoint: its manifest, a JSON file that names every file with its size and hash.

Below <run>/checkpoints lie

    generations/000003-ab12cd34.json                        one record per start of a worker group: see fencing.py
    data/000003-ab12cd34/save-0002-step-40/rank-0.safetensors
    data/000003-ab12cd34/save-0002-step-40/rank-1.json      what rank 1 wrote, read by rank 0 (where several write)
    manifests/000003-ab12cd34/save-0002-step-40.json        written last, in one write: now the checkpoint exists

Every JSON file carries the sha256 of its own content, so a flipped bit in a step or a seed is found out like one in a
weight. It carries the version of its format, too: a newer one is refused, never skipped,
since an older checkpoint would be resumed instead.
"""

import errno
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from typing import TypeVar

from cluster.core.documents import DocumentError, JsonObject, check_fields, check_version, load_json, parse_json
from cluster.core.errors import CheckpointError, StorageError
from cluster.core.storage import Store
from cluster.core.tls_remedy import tls_remedy

SCHEMA_VERSION = 1
"""The format of every JSON file of a checkpoint. One that states no version was written before there were any: 1."""
BEGIN_ANOTHER_RUN = "begin another run with --run.name or --run.resume never"
_VERSION = "schema_version"
_REMEDY = "check the storage's address and permissions"
T = TypeVar("T")
_NAME = re.compile(r"save-(\d+)-step-(\d+)")


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One file of a checkpoint, as it was written. The path is relative to the run's checkpoints."""

    path: str
    size: int
    sha256: str
    rank: int


@dataclass(frozen=True, order=True)
class SaveName:
    """Which save this is: sorted, older saves come first. `sequence` counts the saves of one generation from 1."""

    generation: str
    sequence: int
    step: int

    @staticmethod
    def parse(generation: str, name: str) -> "SaveName | None":
        match = _NAME.fullmatch(name)
        return SaveName(generation, int(match[1]), int(match[2])) if match else None

    @property
    def _path(self) -> str:
        return f"{self.generation}/save-{self.sequence:04d}-step-{self.step}"

    @property
    def manifest(self) -> str:
        return f"manifests/{self._path}.json"

    @property
    def folder(self) -> str:
        return f"data/{self._path}"

    def part(self, rank: int) -> str:
        """The path of a rank's tensors."""
        return f"{self.folder}/rank-{rank}.safetensors"

    def note(self, rank: int) -> str:
        """The path of what a rank tells rank 0 about its part."""
        return f"{self.folder}/rank-{rank}.json"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One checkpoint, as its manifest states it."""

    generation: str
    """The start of a worker group that wrote it."""
    sequence: int
    """Which save of that generation it is, from 1."""
    step: int
    """Optimiser steps done."""
    epoch: int
    state: JsonObject
    """What the loop keeps beside its tensors: plain JSON values (keys are strings, tuples come back as lists)."""
    metric: float | None
    """The validation metric, if it was made at an evaluation."""
    config_fingerprint: str
    world_size: int
    """How many ranks wrote a part."""
    created: float
    """Unix seconds."""
    environment: JsonObject
    files: tuple[FileEntry, ...]

    @property
    def name(self) -> SaveName:
        return SaveName(self.generation, self.sequence, self.step)

    def part(self, rank: int) -> FileEntry:
        """Raises: CheckpointError if no such rank wrote a part."""
        for entry in self.files:
            if entry.rank == rank:
                return entry
        raise CheckpointError(f"checkpoint at step {self.step} has {len(self.files)} parts, rank {rank} asked for one "
                              f"of its own: resume it with {self.world_size} workers")


def write_manifest(store: Store, checkpoint: Checkpoint) -> None:
    """Commits a checkpoint whose files are all written."""
    write_json(store, checkpoint.name.manifest, asdict(checkpoint))


def read_manifest(store: Store, name: SaveName) -> Checkpoint:
    """Raises: FileNotFoundError, CheckpointError if it is damaged, NewerVersionError."""
    return read_json(store, name.manifest, Checkpoint)


def write_json(store: Store, path: str, values: Mapping[str, object]) -> None:
    """Writes values with their own sha256, whole or not at all, and durably: it survives a power cut."""
    values = {_VERSION: SCHEMA_VERSION, **values}
    values = parse_json(json.dumps(values, allow_nan=False))  # as they will be read: keys are strings
    text = json.dumps({"sha256": _digest(values), "content": values}, indent=1, allow_nan=False)
    store.write_text(path, text + "\n")


@dataclass(frozen=True)
class _Signed:
    sha256: str
    content: JsonObject


def read_json(store: Store, path: str, shape: type[T] = JsonObject) -> T:
    """Raises: FileNotFoundError, CheckpointError if it is not what was written, NewerVersionError, StorageError."""
    try:
        document = load_json(store, path, _Signed)
        if document.sha256 != _digest(document.content):
            raise CheckpointError(f"{path}: sha256 differs")
        content = dict(document.content)
        check_version(store.location(path), content.pop(_VERSION, 1), SCHEMA_VERSION, BEGIN_ANOTHER_RUN)
        if is_dataclass(shape):
            check_fields(store.location(path), content, shape, BEGIN_ANOTHER_RUN)
        return parse_json(json.dumps(content), shape)
    except OSError as error:
        raise explain_reading(error, store, path) from error
    except DocumentError as error:
        raise CheckpointError(f"{path}: is not readable ({error})") from error


def explain_reading(error: OSError, store: Store, path: str) -> Exception:
    """What to raise for an error met while reading: damage is a broken disk,
    not a broken connection or a missing permission."""
    if isinstance(error, FileNotFoundError):
        return error
    if error.errno == errno.EIO:
        return CheckpointError(f"{path}: cannot be read ({error})")
    return StorageError(f"{store.location(path)} cannot be read ({error}): {tls_remedy(error) or _REMEDY}")


def _digest(values: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, allow_nan=False).encode()).hexdigest()
