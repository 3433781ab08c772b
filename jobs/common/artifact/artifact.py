"""Contract 5: the folder that training hands to serving, and the manifest that proves what it is.

    ARTIFACT/manifest.json       what the model is, and size and sha256 of every other file; written last
             model.safetensors   weights (or `.keras`); a format that can run code when it is read is refused
             probe.json          some rows and the model's own answers, as the protocol's request and response
             reference.json      histograms of a classifier's test rows and answers: what drift is measured from
             model_card.md       the same for people
             …                   a tokenizer's files, where there is one

The digest of manifest.json is kept in the registry: who changes weights *and* manifest is found out too. Nothing in the
manifest of a model that was trained depends on when or where, so two runs with the same result have the same digest.
That of a variant of it (`python -m serving optimize`) also says how fast both were where it was made:
it is a record of one measurement.
"""

import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cluster.core.documents import MOST_JSON_BYTES, DocumentError
from cluster.core.errors import ArtifactError, CheckpointError
from cluster.core.storage import Store
from cluster.core.tls_remedy import tls_remedy
from jobs.common.arrays import Array
from jobs.common.artifact import allowed_formats, model_card
from jobs.common.artifact.drift_reference import Reference
from jobs.common.artifact.manifest import Description, FileEntry, Manifest
from jobs.common.artifact.tensor_spec import parse_probe, to_json
from jobs.common.checkpoint.safetensors_image import read_tensors

MANIFEST, WEIGHTS, PROBE = "manifest.json", "model.safetensors", "probe.json"
CARD, REFERENCE = "model_card.md", "reference.json"
_PIECE = 8 << 20

Where = Store | str | Path
Content = bytes | Path | Callable[[], Iterable[bytes | memoryview]]
"""What goes into a file: bytes, a local file, or a function that gives its pieces, each time from the start."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A few input rows with the model's own answers, by tensor name: what a server checks itself against."""

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A verified artifact. `digest` is the sha256 of its manifest.json, in hex."""

    store: Store
    manifest: Manifest
    digest: str

    @property
    def uri(self) -> str:
        return self.store.location()

    def read(self, path: str) -> bytes:
        """The bytes of one file, checked once more as they are read. Raises: ArtifactError."""
        entry = self._entry(path)
        with self.store.reading(path) as stream:
            data: bytes = stream.read(entry.size + 1)
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise refused(self.uri, [f"{path} differs from its sha256"])
        return data

    def tensors(self, path: str) -> dict[str, Array]:
        """Those of a .safetensors file by name, checked as `read` does, writable. bfloat16 comes as uint16.

        Raises: ArtifactError.
        """
        try:
            return read_tensors(self.store, self._entry(path))
        except CheckpointError as error:
            raise refused(self.uri, [str(error)]) from error

    def weights(self) -> dict[str, Array]:
        """Tensors by name. Raises: ArtifactError, also if the weights are not in model.safetensors."""
        return self.tensors(WEIGHTS)

    def probe(self) -> Probe:
        """The rows and answers that it was made with. Raises: ArtifactError."""
        try:
            inputs, outputs = parse_probe(self.read(PROBE))
        except ValueError as error:
            raise refused(self.uri, [f"{PROBE} is damaged ({error})"]) from error
        return Probe(inputs=inputs, outputs=outputs)

    def reference(self) -> Reference | None:
        """What drift is measured from; None where the artifact has none. Raises: ArtifactError."""
        if REFERENCE not in self.manifest.paths:
            return None
        try:
            return Reference.from_json(self.read(REFERENCE))
        except ValueError as error:
            raise refused(self.uri, [f"{REFERENCE} is damaged ({error})"]) from error

    def _entry(self, path: str) -> FileEntry:
        entry = next((entry for entry in self.manifest.files if entry.path == path), None)
        if entry is None:
            raise ArtifactError(f"artifact {self.uri} has no {path}: it holds {', '.join(self.manifest.paths)}")
        return entry

    def copy_to(self, target: Where) -> "Artifact":
        """Copies it into a folder of its own, here or on an object store, and verifies the copy."""
        folder = as_store(target)
        folder.delete_folder("")
        for path in (*self.manifest.paths, MANIFEST):
            self.store.copy_to(folder, path, path)
        return open_artifact(folder, self.digest)


def write_artifact(
    store: Store,
    path: str,
    *,
    description: Description,
    probe: Probe,
    files: Mapping[str, Content],
    reference: Reference | None = None,
) -> Artifact:
    """Writes an artifact to a folder of a store, replacing what was there; the manifest comes last and makes it one.

    files: what it holds by path in the artifact, the weights among them (`weights_file` makes one of tensors). Raises:
    ArtifactError for a format that is not safe, ValueError if the probe is not as the tensors say, StorageError.
    """
    body = {"request": {"inputs": to_json(description.inputs, probe.inputs)},
            "response": {"outputs": to_json(description.outputs, probe.outputs)}}
    contents: dict[str, Content] = {**files, PROBE: _json(body), CARD: model_card.text(description).encode()}
    if reference is not None:
        contents[REFERENCE] = _json(reference.to_json())
    for name, source in contents.items():
        _check_allowed(name, source)
    folder = store.child(path)
    folder.delete_folder("")
    entries = tuple(_write(folder, name, contents[name]) for name in sorted(contents))
    manifest = Manifest(description=description, files=entries)
    folder.write_bytes(MANIFEST, data := _json(manifest.to_dict()))
    return Artifact(store=folder, manifest=manifest, digest=hashlib.sha256(data).hexdigest())


def open_artifact(where: Where, expected_digest: str | None = None) -> Artifact:
    """Reads and verifies every file. expected_digest: what the registry says of the manifest.

    Raises: ArtifactError naming each file that is missing, extra, different, or in a format that can run code;
    also for a storage that does not answer.
    """
    folder = as_store(where)
    try:
        return _opened(folder, expected_digest)
    except OSError as error:
        remedy = (tls_remedy(error)
                  or "check the address, that its storage can be reached from here, and your permissions")
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise ArtifactError(f"artifact {folder.location()} cannot be read ({why}): {remedy}") from error


def _opened(folder: Store, expected_digest: str | None) -> Artifact:
    found, problems = _found(folder)
    if MANIFEST not in found and not problems:
        raise ArtifactError(f"no artifact at {folder.location()}: it has no {MANIFEST}; check the address")
    if problems:
        raise refused(folder.location(), problems)
    manifest, digest = _read_manifest(folder)
    if expected_digest is not None and digest != expected_digest:
        raise refused(folder.location(), [f"{MANIFEST} has digest {digest}, not {expected_digest} as was registered"])
    problems = [f"{path} is missing" for path in manifest.paths if path not in found]
    problems += [f"{path} is extra" for path in found if path not in (*manifest.paths, MANIFEST)]
    problems += [f"{path} {why}" for path in found if path != MANIFEST and (why := allowed_formats.name_refusal(path))]
    if not problems:
        problems = [problem for entry in manifest.files if (problem := _difference(folder, entry, found))]
    if problems:
        raise refused(folder.location(), problems)
    return Artifact(store=folder, manifest=manifest, digest=digest)


def as_artifact(where: Where | Artifact) -> Artifact:
    """One that was verified as it is; anything else is verified first. Raises: ArtifactError."""
    return where if isinstance(where, Artifact) else open_artifact(where)


def as_store(where: Where) -> Store:
    return where if isinstance(where, Store) else Store.open(str(where))


def _found(folder: Store) -> tuple[dict[str, int], list[str]]:
    """Size of each file by path, whatever it is called, and what is there that is neither a file nor a folder."""
    if not folder.is_local:
        return {file.path: file.size for file in folder.files(unfinished=True)}, []
    found: dict[str, int] = {}
    problems: list[str] = []
    root = folder.local_path()
    for place, folders, files in os.walk(root, onerror=_unless_absent):  # enters no links
        for path in (Path(place, name) for name in (*folders, *files)):
            about, name = path.lstat(), path.relative_to(root).as_posix()
            if stat.S_ISREG(about.st_mode):
                found[name] = about.st_size
            elif not stat.S_ISDIR(about.st_mode):
                problems.append(f"{name} is a link, a pipe or a device, not a file")
    return found, sorted(problems)


def _unless_absent(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise ArtifactError(f"the artifact cannot be read ({error}): check its permissions") from error


def _read_manifest(folder: Store) -> tuple[Manifest, str]:
    with folder.reading(MANIFEST) as stream:
        data: bytes = stream.read(MOST_JSON_BYTES + 1)
    try:
        manifest = Manifest.parse(data)
    except DocumentError as error:
        raise refused(folder.location(), [f"{MANIFEST} is damaged ({error})"]) from error
    if odd := next((path for path in manifest.paths if not _is_inside(path) or manifest.paths.count(path) > 1), None):
        raise refused(folder.location(), [f"{MANIFEST} is damaged (it names {odd!r}, which is outside, or twice)"])
    return manifest, hashlib.sha256(data).hexdigest()


def _difference(folder: Store, entry: FileEntry, found: Mapping[str, int]) -> str | None:
    """What is wrong with a file. What is hashed and what is looked at are the same bytes, read once."""
    if found[entry.path] != entry.size:
        return f"{entry.path} differs: {found[entry.path]} bytes, not {entry.size}"
    digest, begins, size = hashlib.sha256(), bytearray(), 0
    with folder.reading(entry.path) as stream:
        while size <= entry.size and (piece := stream.read(_PIECE)):
            digest.update(piece)
            size += len(piece)
            if (wanted := allowed_formats.bytes_checked(entry.path, bytes(begins[:8]) or piece)) > len(begins):
                begins += piece[: wanted - len(begins)]
    if digest.hexdigest() != entry.sha256:
        return f"{entry.path} differs from its sha256"
    parent = entry.path.rpartition("/")[0]
    beside = {path.rpartition("/")[2] for path in found if path.rpartition("/")[0] == parent}
    why = allowed_formats.refusal(entry.path, bytes(begins), entry.size, beside)
    return f"{entry.path} {why}" if why else None


def _is_inside(path: str) -> bool:
    return path != MANIFEST and not path.startswith("/") and ".." not in path.split("/")


def _check_allowed(path: str, source: Content) -> None:
    if not _is_inside(path):
        raise ArtifactError(f"file {path!r} cannot be put into an artifact: give it another name inside the folder")
    head = bytes(next(_pieces(source), b""))
    whole = isinstance(source, bytes)
    why = allowed_formats.name_refusal(path) or (
        allowed_formats.refusal(path, source, len(source)) if whole else allowed_formats.head_refusal(path, head))
    if why:
        raise ArtifactError(f"file {path!r} cannot be put into an artifact: it {why}")


def _write(folder: Store, path: str, source: Content) -> FileEntry:
    digest, size = hashlib.sha256(), 0
    with folder.writing(path) as sink:
        for piece in _pieces(source):
            sink.write(piece)
            digest.update(piece)
            size += len(piece)
    return FileEntry(path=path, size=size, sha256=digest.hexdigest())


def _pieces(source: Content) -> Iterator[bytes | memoryview]:
    if isinstance(source, bytes):
        yield source
        return
    if not isinstance(source, Path):
        yield from source()
        return
    with source.open("rb") as stream:
        while piece := stream.read(_PIECE):
            yield piece


def weights_file(weights: Mapping[str, Array]) -> bytes:
    """The bytes of a model.safetensors: the same for the same tensors, whatever order they come in."""
    from safetensors.numpy import save

    return save({name: np.ascontiguousarray(weights[name]) for name in sorted(weights)})


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n").encode()


def refused(location: str, problems: list[str]) -> ArtifactError:
    """What to raise for an artifact that something is wrong with."""
    shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
    return ArtifactError(f"artifact {location} is refused: {shown}. Copy it again from where it was made, or train "
                         "again")

