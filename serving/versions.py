"""Which versions of a model get how much of its requests: changed while the endpoint runs, without a restart of any of them.

The record of a running endpoint is a file in this user's folder (cluster/auth.py); what is in it is the config that Serve has.
"""

import copy
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cluster.auth import home_folder, write_private
from cluster.errors import ConfigError, TrainyardError
from serving.settings import INGRESS, ModelSettings

START_TIMEOUT_S = 300.0
Config = dict[str, Any]
Weights = dict[str, float]


@dataclass(kw_only=True)
class Running:
    """An endpoint that `python -m serving up` has started."""

    port: int
    pid: int
    address: str
    """Of its cluster's control store."""
    config: Config
    before: dict[str, Weights] = field(default_factory=dict[str, Weights])
    """By model, the weights that the last change replaced: what a rollback goes back to."""

    @staticmethod
    def file(port: int) -> Path:
        return home_folder() / f"serving-{port}.json"

    @staticmethod
    def load(port: int) -> "Running":
        """Raises: ConfigError if there is none."""
        try:
            return Running(**json.loads(Running.file(port).read_text()))
        except FileNotFoundError:
            raise ConfigError(f"no endpoint of this user runs on port {port}: pass the --port of `python -m serving up`") from None

    def save(self) -> None:
        write_private(self.file(self.port), json.dumps(asdict(self), indent=1))

    def forget(self) -> None:
        self.file(self.port).unlink(missing_ok=True)

    def models(self) -> dict[str, list[dict[str, Any]]]:
        """By name, each version's weight and settings."""
        return _ingress(self.config)["user_config"]["models"]

    def weights(self, name: str) -> Weights:
        """Raises: ConfigError for a model that the endpoint does not have."""
        versions = self.models().get(name)
        if versions is None:
            raise ConfigError(f"the endpoint has no model {name!r}: it has {', '.join(self.models())}")
        return {each["settings"]["version"]: float(each["weight"]) for each in versions}


def parse_weights(words: str) -> Weights:
    """`3=90,4=10` as shares that sum to 1. Raises: ConfigError."""
    try:
        pairs = [word.split("=") for word in words.split(",")]
        found = {version: float(weight) for version, weight in pairs}
    except ValueError:
        raise ConfigError(f"--weights {words}: it must be VERSION=WEIGHT,…, such as 3=90,4=10") from None
    if len(found) < len(pairs) or not all(0 <= weight < float("inf") for weight in found.values()) or not sum(found.values()) > 0:
        raise ConfigError(f"--weights {words}: weights must be 0 or more, one of them more than 0, and each version's given once")
    total = sum(found.values())
    return {version: weight / total for version, weight in found.items()}


def with_weights(config: Config, name: str, weights: Weights, new: Sequence[ModelSettings] = ()) -> Config:
    """A config in which a model's versions have these weights. new: versions that it does not have yet.

    A version that had requests until now stays, with none, so that they can go back to it; one that had none already goes.
    """
    made = copy.deepcopy(config)
    models = _ingress(made)["user_config"]["models"]
    own = {(each["name"], each["version"]) for each in _application(made, "endpoint")["args"]["own"]}
    kept: list[dict[str, Any]] = []
    for each in models[name]:
        version = each["settings"]["version"]
        if version in weights or each["weight"] > 0 or (name, version) in own:
            kept.append({"weight": weights.get(version, 0.0), "settings": each["settings"]})
        else:
            gone = ModelSettings(**each["settings"]).application
            made["applications"] = [app for app in made["applications"] if app["name"] != gone]
    for settings in new:
        kept.append({"weight": weights.get(settings.version, 0.0), "settings": settings.to_dict()})
        made["applications"].insert(0, application(settings))
    models[name] = kept
    return made


def application(settings: ModelSettings) -> dict[str, Any]:
    """Of a version, in a Serve config."""
    return {"name": settings.application, "import_path": "serving.app:model", "route_prefix": None, "args": settings.to_dict()}


def change(running: Running, name: str, weights: Weights, new: Sequence[ModelSettings], ready: Any = lambda: None) -> None:
    """Starts what is new, then moves the requests. ready: called in between; if it raises, nothing has changed.

    Needs a connected process. Raises: ClusterError if a new version does not start, and then nothing has changed either.
    """
    from serving import running as serve

    before = running.weights(name)
    if new:
        prepared = copy.deepcopy(running.config)  # beside what there is, unknown to the ingress until it runs
        prepared["applications"][:0] = [application(settings) for settings in new]
        try:
            serve.deploy(prepared)
            serve.await_ready(prepared, threading.Event(), START_TIMEOUT_S)
            ready()
        except TrainyardError:
            serve.deploy(running.config)
            raise
    else:
        ready()
    running.config = with_weights(running.config, name, weights, new)
    serve.deploy(running.config)
    serve.await_ready(running.config, threading.Event(), START_TIMEOUT_S)
    running.before[name] = before
    running.save()


def missing(running: Running, name: str, weights: Mapping[str, float]) -> list[str]:
    """Versions that the endpoint does not have yet."""
    return [version for version in weights if version not in running.weights(name)]


def _ingress(config: Config) -> dict[str, Any]:
    return next(each for each in _application(config, "endpoint")["deployments"] if each["name"] == INGRESS)


def _application(config: Config, name: str) -> dict[str, Any]:
    return next(each for each in config["applications"] if each["name"] == name)
