"""What the common life cycle needs to know of a job."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cluster.errors import ConfigError
from jobs.common.config import Config


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job package, without its framework: `train` is loaded in the workers only."""

    name: str
    config_type: type[Config]
    config_path: str
    """`module:name` of the config's class."""
    train: str
    """`module:name` of the training loop, called with (Session, config)."""
    check: Callable[[Any], None]
    """Raises ConfigError for what the config alone cannot know: a package that is not installed."""
    prepare: Callable[..., Any]
    """(config.data, storage, use_ray=, say=) -> Dataset."""
    describe: Callable[..., Any]
    """(config, dataset, metrics) -> the artifact's Description."""
    weights: Callable[..., dict[str, Any]]
    """A checkpoint's tensors -> those of the artifact."""


def require_package(module: str, extra: str) -> None:
    """Raises: ConfigError, naming the extra to install."""
    if importlib.util.find_spec(module) is None:
        raise ConfigError(f"this job needs the package {module}: pip install 'trainyard[{extra}]'")
