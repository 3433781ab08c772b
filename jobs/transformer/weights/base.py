"""The files of weights that an adapter's updates are of, and their digest. Imports no framework."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false

import functools
import hashlib
from dataclasses import dataclass, replace

from cluster.core.auth import expanded
from cluster.core.documents import load_json
from cluster.core.errors import ArtifactError
from cluster.core.storage import Store
from jobs.common.arrays import Array
from jobs.common.artifact.artifact import MANIFEST, Artifact, open_artifact
from jobs.common.artifact.manifest import Base, FileEntry, weights_digest
from jobs.common.checkpoint.safetensors_image import read_tensors
from jobs.transformer.weights.config import ModelConfig
from jobs.transformer.weights.copies import copy_of

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_PIECE = 8 << 20


@dataclass(frozen=True)
class BaseWeights:
    """A model's files of weights, each with its sha256."""

    name: str
    store: Store
    files: tuple[FileEntry, ...]

    @property
    def base(self) -> Base:
        size = sum(entry.size for entry in self.files)
        return Base(name=self.name, digest=weights_digest(self.files), size_bytes=size)

    def tensors(self) -> dict[str, Array]:
        """By name, of bytes that have their sha256; bfloat16 as uint16. Raises: CheckpointError."""
        found: dict[str, Array] = {}
        for entry in self.files:
            found |= read_tensors(self.store, entry)
        return found


def base_weights(where: str) -> BaseWeights:
    """Of an artifact, a Hugging Face folder, or a name on the hub, whose files are fetched if they are not here.

    Raises: ArtifactError, OSError.
    """
    place = place_of(where)
    store = Store.open(place if _is_folder(place) else _fetched(place))
    return of_artifact(open_artifact(store)) if store.exists(MANIFEST) else BaseWeights(place, store, _hashed(store))


def base_of(model: ModelConfig) -> Base:
    """What updates of low rank to a model are of. Raises: ArtifactError, OSError."""
    return replace(base_weights(model.origin).base, held=model.lora_base)


def folder_of(model: ModelConfig) -> str:
    """Where the files of a model are that is no preset: its `name`, or the folder in the artifact that it begins with.
    Raises: ArtifactError."""
    return model.name if model.init_from is None else _model_folder(model.init_from, model.init_digest)


@functools.cache
def _model_folder(uri: str, digest: str | None) -> str:
    """Of an artifact, which is verified; one in an object store is copied to this machine, once."""
    found = open_artifact(uri, digest)
    return str((found if found.store.is_local else copy_of(found)).store.local_path("model"))


def place_of(name: str) -> str:
    """A folder's absolute path or URI; a name on the hub as it is."""
    return Store.open(name).location() if _is_folder(name) else name


def _is_folder(name: str) -> bool:
    return "://" in name or expanded(name).is_dir()


def of_artifact(artifact: Artifact) -> BaseWeights:
    """Of a whole model's artifact, whose manifest has each file's sha256. Raises: ArtifactError for an adapter's."""
    if artifact.manifest.description.base is not None:
        raise ArtifactError(f"artifact {artifact.uri} is an adapter itself: pass the model that it is of, or train it "
                            "again with --export.merge")
    return BaseWeights(artifact.uri, artifact.store,
                       tuple(entry for entry in artifact.manifest.files if entry.path.endswith(".safetensors")))


def _hashed(store: Store) -> tuple[FileEntry, ...]:
    return tuple(_entry(store, name) for name in _names(store))


def _names(store: Store) -> list[str]:
    """The files that transformers reads, whatever else is in the folder."""
    if store.exists(SINGLE):
        return [SINGLE]
    return sorted(set(load_json(store, INDEX)["weight_map"].values()))


def _entry(store: Store, name: str) -> FileEntry:
    digest, size = hashlib.sha256(), 0
    with store.reading(name) as stream:
        while piece := stream.read(_PIECE):
            digest.update(piece)
            size += len(piece)
    return FileEntry(path=name, size=size, sha256=digest.hexdigest())


def _fetched(name: str) -> str:
    from huggingface_hub import snapshot_download

    return snapshot_download(name, allow_patterns=[SINGLE, INDEX, "model-*.safetensors"])
