"""The way to a registry: MLflow at a tracking URI, or one that records nothing."""

from cluster.core.storage import Store
from jobs.common.registry.mlflow_registry import MlflowRegistry
from jobs.common.registry.registry import Registry


def open_registry(tracking_uri: str | None, storage: Store, name: str) -> Registry:
    """Returns the registry at a tracking URI; None means SQLite in the storage folder, `none` no registry.

    name: of the experiment and of the registered model. A thread connects, which imports MLflow (2 s, and 2 s more for
    a new SQLite file), so call it when no other heavy import runs. A server that does not answer is found out by the
    first call that needs it, within 5 s; the next call tries again. Raises: ConfigError.
    """
    if tracking_uri == "none":
        return Registry()
    return MlflowRegistry(tracking_uri, storage, name)
