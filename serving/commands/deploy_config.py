"""From models that a person names to the configuration that Serve deploys, the same for `up`,
`serve deploy` and a RayService."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from cluster.core.errors import ConfigError
from cluster.core.storage import Store
from jobs.common.artifact.artifact import Artifact
from jobs.common.artifact.manifest import weights_digest
from jobs.common.predictor.find import check_allowed
from jobs.common.registry.connection import open_named
from serving.commands.deployment_record import application
from serving.core.settings import ENDPOINT, INGRESS, SHARED, EndpointSettings, ModelSettings, SharedSettings, routes

SERVE_SETTINGS = {
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_DEFAULT_HTTP_HOST": "127.0.0.1",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "3",
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str((1 << 31) - 1),
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serving.hardening.serve_patches:keep_calls_to_this_node",
}
"""Of the environment of all of a cluster's processes. Measured in tests/benchmarks/serving_http.py. An ingress that
ends goes on answering for so many seconds, in which HAProxy, on the same machine, learns of it in less than one;
by itself it would for 30.
"""
_NAME = re.compile(r"[a-z0-9][a-z0-9._\-]{0,61}")


@dataclass(frozen=True, kw_only=True)
class Served:
    """A model by the name that callers use, and what it is."""

    name: str
    version: str
    uri: str
    digest: str
    registered: str
    """The registry's name of the model; empty for an artifact's path."""
    run: str
    report: str
    """As in ModelSettings."""
    generates: bool
    embeds: bool
    weights: str
    """The digest of its weights, or of those that it is an adapter of."""
    adapter_of: str
    """Where its base was when it was trained; empty for a whole model."""
    base: str = ""
    """As in ModelSettings."""


def find(spec: str, tracking_uri: str | None, storage: Store, jobs: Sequence[str] = (),
         flag: str = "--model") -> Served:
    """spec: `NAME=models:/MODEL@ALIAS`, `NAME=models:/MODEL/VERSION`, or `NAME=PATH` of an artifact.

    An alias becomes a version and a digest here, once. jobs: packages outside Trainyard whose artifacts may be served.
    flag: what names it.
    Raises: ConfigError, RegistryError, ArtifactError.
    """
    name, equals, where = spec.partition("=")
    if not equals or not _NAME.fullmatch(name):
        raise ConfigError(f"{flag} {spec}: it must be NAME=models:/MODEL@ALIAS or NAME=PATH, and NAME of a-z, 0-9, -, "
                          "_ and ., beginning with a letter or digit")
    artifact, found = open_named(where, tracking_uri, storage)
    check_allowed(artifact, jobs)
    about = artifact.manifest.description
    return Served(name=name, version=found.version if found else "1", uri=artifact.uri, digest=artifact.digest,
                  registered=found.name if found else "", run=str(about.config.get("run", {}).get("name", "")),
                  report=_report(artifact),
                  generates=about.task == "text-generation", embeds=about.embedding is not None,
                  weights=about.base.digest if about.base else weights_digest(artifact.manifest.files),
                  adapter_of=about.base.name if about.base else "")


def _report(artifact: Artifact) -> str:
    """Of the run whose folder the artifact is in; empty where there is none."""
    from jobs.common.report.run_report import REPORT_FILE  # slow to import

    uri, mark, options = artifact.uri.partition("?" if "://" in artifact.uri else "\0")
    run = Store.open(f"{uri.rpartition('/')[0]}{mark}{options}")
    return run.location(REPORT_FILE) if run.exists(REPORT_FILE) else ""


def with_adapters(models: Sequence[Served], adapters: Sequence[Served]) -> list[Served]:
    """All of them, each adapter and its base with the base's artifact, which is found by the digest of its weights.

    Raises: ConfigError for an adapter whose base is none of the models, and for what is no adapter.
    """
    bases = {each.weights: each.uri for each in models if not each.adapter_of}
    for each in adapters:
        if not each.adapter_of:
            raise ConfigError(f"--adapter {each.name}: {each.uri} is a whole model: pass it with --model")
        if each.weights not in bases:
            have = ", ".join(f"{model.name} {model.weights[:12]}" for model in models)
            raise ConfigError(f"--adapter {each.name}: it is of {each.adapter_of}, whose weights have the digest "
                              f"{each.weights[:12]}, and none of the models has that ({have}): pass its base with "
                              "--model, too")
    asked = {each.weights for each in adapters}
    return [replace(each, base=bases.get(each.weights, "") if each.weights in asked else "")
            for each in (*models, *adapters)]


def config(models: Sequence[ModelSettings], weights: Mapping[str, Mapping[str, float]], endpoint: EndpointSettings,
           http: Mapping[str, object], grpc_port: int | None = None,
           shared: SharedSettings | None = None) -> dict[str, object]:
    """A Serve config: an application for each version of a model, or one that they share,
    and the ingress in front of them.

    grpc_port: None for no gRPC.
    """
    by_application = {model.application: model for model in models}
    own = {ModelSettings(**each).application for each in endpoint.own}
    applications: list[dict[str, object]] = [application(model) for model in models
                                          if model.application not in own and not model.shared]
    if shared is not None:
        applications.append({"name": SHARED, "import_path": "serving.endpoint.app:shared", "route_prefix": None,
                             "args": asdict(shared)})
    applications.append({
        "name": ENDPOINT, "import_path": "serving.endpoint.app:endpoint", "route_prefix": "/", "args": asdict(endpoint),
        "deployments": [{"name": INGRESS, "user_config": routes(weights, by_application)}]})
    timeout_s = endpoint.timeout_s + 5
    grpc = {"port": grpc_port, "grpc_servicer_functions": ["serving.endpoint.grpc:add_to_server"],
            "request_timeout_s": timeout_s,
            "enable_reflection": False}
    return {"proxy_location": "EveryNode", "http_options": {"request_timeout_s": timeout_s, **http},
            **({} if grpc_port is None else {"grpc_options": grpc}),
            "logging_config": {"encoding": "JSON", "enable_access_log": False}, "applications": applications}
