"""A finished model by its name in the registry or its artifact's path: verified, and asked about its own rows."""

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.core.storage import Store
from jobs.common.artifact.artifact import Artifact, open_artifact
from jobs.common.predicting.columns import GENERATES
from jobs.common.predicting.embeddings import RowEmbedder
from jobs.common.predicting.writer import Writer, Writing
from jobs.common.predictor.find import check_allowed, load_predictor
from jobs.common.predictor.loading import check_probe
from jobs.common.predictor.predictor import Answering
from jobs.common.registry.connection import open_named


@dataclass(frozen=True, kw_only=True)
class FoundModel:
    """A model that is verified, and not loaded."""

    artifact: Artifact
    name: str
    """What a person calls it: NAME/VERSION of the registry, or where it is."""
    registered: str = ""
    """The registry's name of it; empty for an artifact's path."""
    version: str = ""
    run_id: str = ""
    """Of the run that made it, in MLflow."""
    jobs: tuple[str, ...] = ()
    """Packages outside Trainyard whose code may be imported."""

    @property
    def reference(self) -> "ModelReference":
        return ModelReference(self.artifact.uri, self.artifact.digest, self.jobs)


@dataclass(frozen=True)
class ModelReference:
    """What a process needs to load it: plain values."""

    uri: str
    digest: str
    jobs: tuple[str, ...] = ()

    def load(self, writing: Writing | None = None, *, embeds: bool = False) -> tuple[Artifact, Answering]:
        """writing: how a model that writes does it, if not as by default. embeds: whether vectors are the answers.
        Raises: ArtifactError."""
        artifact = open_artifact(self.uri, self.digest)
        return artifact, answering(artifact, self.jobs, writing, embeds=embeds)


def answering(artifact: Artifact, jobs: Sequence[str], writing: Writing | None = None, *,
              embeds: bool = False) -> Answering:
    """What answers by a verified artifact. writing, embeds: as of `load`. Raises:
    ArtifactError, also where it does not answer the artifact's own rows as it did when that was made."""
    predictor = load_predictor(artifact, jobs)
    check_probe(predictor, artifact)
    if embeds:
        return RowEmbedder(predictor, artifact)
    return Writer.of(predictor, writing or Writing()) if artifact.manifest.description.task == GENERATES else predictor


def find_model(where: str, tracking_uri: str | None, storage: Store, jobs: Sequence[str] = ()) -> FoundModel:
    """where: `models:/NAME@ALIAS`, `models:/NAME/VERSION`, or an artifact's path or URI. An alias becomes a version and
    a digest here, once. Raises: RegistryError, ArtifactError, ConfigError."""
    artifact, version = open_named(where, tracking_uri, storage)
    check_allowed(artifact, jobs)
    if version is None:
        return FoundModel(artifact=artifact, name=artifact.uri, jobs=tuple(jobs))
    return FoundModel(artifact=artifact, registered=version.name, name=f"{version.name}/{version.version}",
                      version=version.version, run_id=version.run_id, jobs=tuple(jobs))
