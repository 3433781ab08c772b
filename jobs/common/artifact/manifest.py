"""What an artifact's manifest.json says, field by field."""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from cluster.core.documents import DocumentError, JsonObject, parse_json
from jobs.common.artifact.tensor_spec import TensorSpec
from jobs.common.provenance import code_version, library_versions, without_secrets

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One file of an artifact: its path in the folder, size in bytes, and sha256 in hex."""

    path: str
    size: int
    sha256: str


def weights_digest(files: Iterable[FileEntry]) -> str:
    """Of the .safetensors among a model's files, by name without folders: see `Base.digest`."""
    lines = sorted((entry.path.rpartition("/")[2], entry.sha256) for entry in files
                   if entry.path.endswith(".safetensors"))
    return hashlib.sha256("".join(f"{sha256}  {name}\n" for name, sha256 in lines).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What a model was made of by `python -m serving optimize`, and what was measured of both, by turns,
    on one machine."""

    name: str
    """`onnx`, `onnx-int8`, `compiled`: what is done with the parent's weights, and how the variant is loaded."""
    parent_digest: str
    """Of the manifest of the model that it was made of."""
    parent_version: str
    """Of the registry, NAME/VERSION; empty for a model that was given by its path."""
    largest_difference: float
    """Between its outputs and the parent's, over all test rows."""
    machine: Mapping[str, str]
    """Where it was measured."""
    figures: Mapping[str, float]
    """`size_bytes`, `latency_ms_1_row`, `latency_ms_N_rows`, and each metric of the test split as `test_METRIC`."""
    parent_figures: Mapping[str, float]
    """The same of the parent."""
    __pydantic_config__ = {"extra": "ignore"}  # noqa: RUF012 - `change`, which follows from the rest

    @property
    def change(self) -> dict[str, float]:
        """The variant's figures less the parent's."""
        return {name: value - self.parent_figures[name] for name, value in self.figures.items()
                if name in self.parent_figures}

    def to_dict(self) -> Mapping[str, object]:
        return {**dataclasses.asdict(self), "change": self.change}


@dataclass(frozen=True, kw_only=True)
class Base:
    """The model that an adapter's updates are of."""

    name: str
    """Where it was: a folder, or a name on the hub."""
    digest: str
    """Of its weights: what `LC_ALL=C sha256sum *.safetensors | sha256sum` prints in its folder."""
    size_bytes: int
    """Of its weights."""
    held: Literal["nf4"] | None = None
    """How the layers under the updates were held in training: `nf4` if they were rounded to 4 bits."""


Pooling = Literal["mean", "cls"]
"""How the vectors of a text's tokens become one: their mean, or the first one, which stands before the text."""


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """The vectors that a model of texts offers beside its answers."""

    pooling: Pooling
    normalize: bool
    """Whether each has length 1."""
    dimensions: int


NO_EMBEDDINGS = ("offers no embeddings: an artifact of the Transformer job does that was trained with --task classify "
                 "--export.embeddings mean (or cls, or auto)")
"""What follows the name of a model without them, wherever it is asked for vectors."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A model with whose weights another one began."""

    name: str
    """As it was named: where it was, `models:/NAME@ALIAS`, or a run."""
    uri: str
    """Where it was."""
    digest: str
    """Of its manifest."""


def lineage(origins: Iterable[Origin]) -> str:
    """What a model began with, as people read it: the nearest first."""
    return ", which began with ".join(f"{each.name} ({each.digest[:12]})" for each in origins)


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a model is. All values are plain (JSON), and credentials inside URIs are blotted out."""

    job: str
    """The job that made it and can load it: `mlp` of `jobs.mlp`, or a package outside Trainyard: `my_package.churn`."""
    task: str
    """What it does: `image-classification`."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    labels: tuple[str, ...]
    """Class names in the order of the output's last dimension; empty where there are no classes."""
    preprocessing: JsonObject
    """What lies between the input tensor and the network: mean, std, image shape. The job's own loader applies it."""
    metrics: Mapping[str, Mapping[str, float]]
    """By split: {"test": {"accuracy": …}}."""
    config: JsonObject
    """The resolved config, nested."""
    data: JsonObject
    """Fingerprint, and rows by split."""
    about: str
    """One or two sentences for the model card."""
    limits: tuple[str, ...] = ()
    """What it is not for, one sentence each."""
    how_to_load: str = ""
    """Python that gives a prediction; `ARTIFACT` stands for the folder."""
    code: str = field(default_factory=code_version)
    libraries: Mapping[str, str] = field(default_factory=library_versions)
    primary_metric: str = "accuracy"
    """Which of the metrics says how good it is. The manifest of a classifier, whose it is the accuracy, has no such
    field."""
    variant: Variant | None = None
    """Of a model that was made of another one. The manifest of one that was trained has no such field."""
    base: Base | None = None
    """Of an adapter, whose weights are updates of another model's. The manifest of a whole model has no such field."""
    started_from: tuple[Origin, ...] = ()
    """The model with whose weights it began, then the one with which that began, and so on. The manifest of one that
    began with random weights has no such field."""
    embedding: Embedding | None = None
    """Of a model that offers vectors of texts. The manifest of another one has no such field."""

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

    def to_dict(self) -> Mapping[str, object]:
        files = [dataclasses.asdict(entry) for entry in self.files]
        fields = {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self.description), "files": files}
        del fields["variant"]
        for name in ("base", "started_from", "embedding"):
            if not getattr(self.description, name):
                del fields[name]
        if (base := self.description.base) and base.held is None:
            fields["base"] = {"name": base.name, "digest": base.digest, "size_bytes": base.size_bytes}
        if self.description.primary_metric == "accuracy":
            del fields["primary_metric"]
        variant = self.description.variant
        return {**fields, "variant": variant.to_dict()} if variant else fields

    @staticmethod
    def parse(text: bytes) -> "Manifest":
        """Raises: DocumentError if it is not a manifest of this schema version."""
        if (version := parse_json(text, _Version).schema_version) != SCHEMA_VERSION:
            raise DocumentError(f"schema version {version}, this program reads {SCHEMA_VERSION}")
        stored = parse_json(text, _Document)
        description = {each.name: getattr(stored, each.name) for each in dataclasses.fields(Description)}
        return Manifest(description=Description(**description), files=stored.files)


@dataclass(frozen=True, kw_only=True)
class _Version:
    schema_version: int


@dataclass(frozen=True, kw_only=True)
class _Document(Description):
    """The fields of manifest.json as they are stored; one that is not known belongs to another version."""

    schema_version: int
    files: tuple[FileEntry, ...]
    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012
