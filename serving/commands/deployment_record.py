"""Which versions of a model get how much of its requests: changed while the endpoint runs,
without a restart of any of them.

The record of a running endpoint is a file in this user's folder (cluster/core/auth.py);
what is in it is the config that Serve has.
"""

import copy
import itertools
import json
import threading
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from cluster.core.auth import home_folder, write_private
from cluster.core.documents import DocumentError, JsonObject, check_fields, read_json
from cluster.core.errors import ConfigError
from serving.core.settings import ENDPOINT, INGRESS, ModelSettings
from serving.traffic.canary import Canary

START_TIMEOUT_S = 300.0
Weights = dict[str, float]


@dataclass(kw_only=True)
class Running:
    """An endpoint that `python -m serving up` has started."""

    port: int
    pid: int
    address: str
    """Of its cluster's control store."""
    config: JsonObject
    before: dict[str, Weights] = field(default_factory=dict[str, Weights])
    """By model, the weights that the last change replaced: what a rollback goes back to."""

    @staticmethod
    def file(port: int) -> Path:
        return home_folder() / f"serving-{port}.json"

    @staticmethod
    def find(port: int) -> "Running | None":
        """None if there is none."""
        try:
            return read_json(Running.file(port), Running)
        except DocumentError as error:
            raise ConfigError(f"{Running.file(port)} is damaged ({error}): end that endpoint by hand, and delete "
                              "it") from None
        except FileNotFoundError:
            return None

    @staticmethod
    def load(port: int) -> "Running":
        """Raises: ConfigError if there is none."""
        if (found := Running.find(port)) is None:
            raise ConfigError(f"no endpoint of this user runs on port {port}: pass the --port of `python -m serving "
                              "up`")
        return found

    def save(self) -> None:
        write_private(self.file(self.port), json.dumps(asdict(self), indent=1))

    def process(self) -> psutil.Process | None:
        """That of `python -m serving up`; None if it has ended, however that was."""
        try:
            found = psutil.Process(self.pid)
            return found if "up" in found.cmdline() else None  # else it is another one, by now; a zombie has no command
        except psutil.Error:
            return None

    def forget(self) -> None:
        self.file(self.port).unlink(missing_ok=True)

    def models(self) -> dict[str, list[JsonObject]]:
        """By name, each version's weight and settings. Raises: NewerVersionError."""
        found: dict[str, list[JsonObject]] = _ingress(self.config)["user_config"]["models"]
        for each in itertools.chain(*found.values()):
            check_fields(str(self.file(self.port)), each["settings"], ModelSettings,
                         "end that endpoint by hand, and delete the file")
        return found

    def guard(self, name: str) -> Canary | None:
        """Of a model's last change of weights."""
        found = _ingress(self.config)["user_config"]["guards"].get(name)
        return Canary.of(found) if found else None

    def shadow(self, name: str) -> JsonObject | None:
        """id, version and share."""
        return _ingress(self.config)["user_config"]["shadows"].get(name)

    def weights(self, name: str) -> Weights:
        """As they were asked for. Raises: ConfigError for a model that the endpoint does not have."""
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
    if len(found) < len(pairs) or not all(0 <= weight < float("inf")
                                          for weight in found.values()) or not sum(found.values()) > 0:
        raise ConfigError(f"--weights {words}: weights must be 0 or more, one of them more than 0, and each version's "
                          "given once")
    total = sum(found.values())
    return {version: weight / total for version, weight in found.items()}


def with_weights(config: JsonObject, name: str, weights: Weights, new: Sequence[ModelSettings] = (),
                 guard: Canary | None = None) -> JsonObject:
    """A config in which a model's versions have these weights. new: versions that it does not have yet.

    A version that had requests until now stays, with none, so that they can go back to it, and so does a shadow;
    one that had none already goes.
    """
    made = copy.deepcopy(config)
    user_config = _ingress(made)["user_config"]
    own = {(each["name"], each["version"]) for each in _application(made, ENDPOINT)["args"]["own"]}
    shadow = user_config["shadows"].get(name, {}).get("version")
    kept: list[JsonObject] = []
    for each in user_config["models"][name]:
        version = each["settings"]["version"]
        if version in weights or each["weight"] > 0 or (name, version) in own or version == shadow:
            kept.append({"weight": weights.get(version, 0.0), "settings": each["settings"]})
        else:
            gone = ModelSettings(**each["settings"]).application
            made["applications"] = [app for app in made["applications"] if app["name"] != gone]
    user_config["models"][name] = kept
    user_config["guards"].pop(name, None)
    if guard is not None:
        user_config["guards"][name] = asdict(guard)
    for settings in new:
        _add(made, settings, weights.get(settings.version, 0.0))
    return made


def with_shadow(config: JsonObject, name: str, version: str, share: float,
                new: Sequence[ModelSettings] = ()) -> JsonObject:
    """A config in which a version is asked, beside the others, a share of a model's requests.
    share: 0 for no shadow any more."""
    made = copy.deepcopy(config)
    for settings in new:
        _add(made, settings, 0.0)
    shadows = _ingress(made)["user_config"]["shadows"]
    shadows.pop(name, None)
    if share > 0:
        shadows[name] = {"id": new_id(), "version": version, "share": share}
    return made


def new_id() -> str:
    """Of a change."""
    return uuid.uuid4().hex[:12]


def _add(config: JsonObject, settings: ModelSettings, weight: float) -> None:
    _ingress(config)["user_config"]["models"][settings.name].append({"weight": weight, "settings": asdict(settings)})
    config["applications"][:0] = _applications([settings])


def application(settings: ModelSettings) -> JsonObject:
    """Of a version, in a Serve config."""
    return {"name": settings.application, "import_path": "serving.endpoint.app:model", "route_prefix": None,
            "args": asdict(settings)}


def _applications(new: Sequence[ModelSettings]) -> list[JsonObject]:
    return [application(settings) for settings in reversed(new) if not settings.shared]


def change(running: Running, name: str, weights: Weights, new: Sequence[ModelSettings], ready: Callable[[], object],
           before: Weights, guard: Canary | None) -> None:
    """Starts what is new, then moves the requests. ready: called in between; if it raises, nothing has changed. before:
    the weights that a rollback goes back to.

    Needs a connected process. Raises: ClusterError if a new version does not start,
    and then nothing has changed either.
    """
    with _or_as_before(running):
        _start(running, new, ready)
        _deploy(running, with_weights(running.config, name, weights, new, guard))
        running.before[name] = before
        running.save()


def follow(running: Running, name: str, version: str, share: float, new: Sequence[ModelSettings]) -> None:
    """Makes a version a shadow, or ends it (share 0). Needs a connected process.
    Raises: ClusterError, as `change` does."""
    with _or_as_before(running):
        _start(running, new, lambda: None)
        _deploy(running, with_shadow(running.config, name, version, share, new))
        running.save()


@contextmanager
def _or_as_before(running: Running) -> Generator[None]:
    """Deploys the config from before the block again if that does not come to its end, for whatever reason (Ctrl-C)."""
    from serving.commands import serve_client

    config, before = running.config, dict(running.before)
    try:
        yield
    except BaseException:
        running.config, running.before = config, before
        serve_client.deploy(config)
        raise


def _start(running: Running, new: Sequence[ModelSettings], ready: Callable[[], object]) -> None:
    """New versions beside what there is, unknown to the ingress until they run."""
    from serving.commands import serve_client

    if new:
        prepared = copy.deepcopy(running.config)
        prepared["applications"][:0] = _applications(new)
        serve_client.deploy(prepared)
        serve_client.await_ready(prepared, threading.Event(), START_TIMEOUT_S)
        for settings in new:
            if settings.shared:
                serve_client.load(settings, START_TIMEOUT_S)
    ready()


def _deploy(running: Running, config: JsonObject) -> None:
    from serving.commands import serve_client

    running.config = config
    serve_client.deploy(config)
    serve_client.await_ready(config, threading.Event(), START_TIMEOUT_S)


def missing(running: Running, name: str, weights: Mapping[str, float]) -> list[str]:
    """Versions that the endpoint does not have yet."""
    return [version for version in weights if version not in running.weights(name)]


def _ingress(config: JsonObject) -> JsonObject:
    return next(each for each in _application(config, ENDPOINT)["deployments"] if each["name"] == INGRESS)


def _application(config: JsonObject, name: str) -> JsonObject:
    return next(each for each in config["applications"] if each["name"] == name)
