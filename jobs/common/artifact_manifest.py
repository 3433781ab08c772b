"""What an artifact's manifest.json says, field by field."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jobs.common.open_inference import TensorSpec
from jobs.common.provenance import code_version, library_versions, without_secrets

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One file of an artifact: its path in the folder, size in bytes, and sha256 in hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a model is. All values are plain (JSON), and credentials inside URIs are blotted out."""

    job: str
    """The package that made it and can load it: `mlp` of `jobs.mlp`."""
    task: str
    """What it does: `image-classification`."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    labels: tuple[str, ...]
    """Class names in the order of the output's last dimension; empty where there are no classes."""
    preprocessing: Mapping[str, Any]
    """What lies between the input tensor and the network: mean, std, image shape. The job's own loader applies it."""
    metrics: Mapping[str, Mapping[str, float]]
    """By split: {"test": {"accuracy": …}}."""
    config: Mapping[str, Any]
    """The resolved config, nested."""
    data: Mapping[str, Any]
    """Fingerprint, and rows by split."""
    about: str
    """One or two sentences for the model card."""
    limits: tuple[str, ...] = ()
    """What it is not for, one sentence each."""
    how_to_load: str = ""
    """Python that gives a prediction; `ARTIFACT` stands for the folder."""
    code: str = field(default_factory=code_version)
    libraries: Mapping[str, str] = field(default_factory=library_versions)

    def __post_init__(self) -> None:
        for name in ("config", "data", "preprocessing"):
            object.__setattr__(self, name, without_secrets(getattr(self, name)))


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """manifest.json: a description, and every file beside it."""

    description: Description
    files: tuple[FileEntry, ...]

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(entry.path for entry in self.files)

    def to_dict(self) -> dict[str, Any]:
        files = [dataclasses.asdict(entry) for entry in self.files]
        return {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self.description), "files": files}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "Manifest":
        """Raises: ValueError, KeyError or TypeError if it is no manifest of this schema version."""
        fields = dict(values)
        if (version := fields.pop("schema_version")) != SCHEMA_VERSION:
            raise ValueError(f"schema version {version}, this program reads {SCHEMA_VERSION}")
        files = tuple(FileEntry(**entry) for entry in fields.pop("files"))
        for name in ("inputs", "outputs"):
            fields[name] = tuple(_tensor(spec) for spec in fields[name])
        for name in ("labels", "limits"):
            fields[name] = tuple(fields[name])
        return Manifest(description=Description(**fields), files=files)


def _tensor(spec: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(name=spec["name"], datatype=spec["datatype"], shape=tuple(spec["shape"]))
