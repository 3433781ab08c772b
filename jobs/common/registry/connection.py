"""The way to a registry: MLflow at a tracking URI, or one that records nothing."""

from cluster.core.storage import Store
from jobs.common.artifact.manifest import Description
from jobs.common.registry.mlflow_registry import MlflowRegistry
from jobs.common.registry.registry import Registry


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


def experiment_of(about: Description) -> str:
    """The experiment of the run that made an artifact, where runs that are about the artifact belong, too."""
    run = about.config.get("run", {})
    return str(run.get("experiment") or about.job)
