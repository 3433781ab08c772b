"""The way to a registry: MLflow at a tracking URI, or one that records nothing."""

from pathlib import Path

from cluster.core.errors import RegistryError
from cluster.core.storage import Store
from jobs.common.artifact.artifact import Artifact, open_artifact
from jobs.common.artifact.manifest import Description
from jobs.common.registry.mlflow_client import sqlite_file, tracking_address
from jobs.common.registry.mlflow_registry import MlflowRegistry
from jobs.common.registry.registry import ModelVersion, Registry
from jobs.common.registry.sqlite_versions import read_versions

REGISTERED = "models:/"
"""What the name of a registered model begins with."""


def open_registry(tracking_uri: str | None, storage: Store, name: str, experiment: str | None = None) -> Registry:
    """Returns the registry at a tracking URI; None means SQLite in the storage folder, `none` no registry.

    name: of the registered model. experiment: where runs are begun; by default the model's name. A thread connects,
    which imports MLflow (2 s, and 2 s more for a new SQLite file), so call it when no other heavy import runs. A server
    that does not answer is found out by the first call that needs it, within 5 s; the next call tries again.
    Raises: ConfigError.
    """
    if tracking_uri == "none":
        return Registry()
    return MlflowRegistry(tracking_uri, storage, name, experiment or name)


def versions_of(tracking_uri: str | None, storage: Store, name: str | None = None) -> list[ModelVersion]:
    """All versions of a model, or of all, newest first: of an SQLite file as it lies there, without MLflow.

    Raises: ConfigError; RegistryError if there is no registry: looking does not make a new, empty database.
    """
    if tracking_uri == "none":
        return []
    existing = existing_file(tracking_uri, storage)
    found = read_versions(existing, name) if existing else None
    return open_registry(tracking_uri, storage, name or "").versions(name) if found is None else found


def existing_file(tracking_uri: str | None, storage: Store) -> Path | None:
    """Returns the file of an SQLite registry; None for another kind. Raises: RegistryError if it is not there."""
    address = tracking_address(tracking_uri, storage)
    file = sqlite_file(address)
    if file is not None and not file.exists():
        raise RegistryError(f"no registry at {address}: pass --storage FOLDER of the runs, or --tracking-uri "
                            "http://SERVER")
    return file


def open_named(where: str, tracking_uri: str | None, storage: Store) -> tuple[Artifact, ModelVersion | None]:
    """Returns the verified artifact that `models:/NAME@ALIAS`, `models:/NAME/VERSION` or an address names, and the
    version that a registered name is now. Raises: ConfigError, RegistryError, ArtifactError.
    """
    if not where.startswith(REGISTERED):
        return open_artifact(where), None
    found = open_registry(tracking_uri, storage, "").resolve(where)
    return open_artifact(found.uri, found.digest), found


def experiment_of(about: Description) -> str:
    """The experiment of the run that made an artifact, where runs that are about the artifact belong, too."""
    run = about.config.get("run", {})
    return str(run.get("experiment") or about.job)
