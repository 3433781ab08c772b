"""What an endpoint and the models behind it are told: plain values,
which go through `serve deploy`'s YAML as they are."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from cluster.core.documents import JsonObject

ENDPOINT, SHARED = "endpoint", "shared"
"""Serve's applications beside those of models: the ingress's, and that of the replicas that models share."""
INGRESS, MODEL = "Ingress", "Model"
"""The deployment of the endpoint's application, and of all others."""
HEARTBEAT_S = 1.0
"""Between two settings of a gauge: what is not set again within two of Ray's report intervals (10 s each)
is no more exported."""


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """One version of one model, which is a Serve application of its own, unless it shares one."""

    name: str
    version: str
    uri: str
    """Of the artifact."""
    digest: str
    """Of its manifest, as it was when the version was deployed."""
    registered: str = ""
    """The registry's name of the model; empty for an artifact's path."""
    run: str = ""
    """The name of the run that made it."""
    report: str = ""
    """Where that run's report is; empty where it is not beside the artifact."""
    generates: bool = False
    """Whether it writes text: an artifact of the task `text-generation`."""
    embeds: bool = False
    """Whether it offers vectors of texts: an artifact whose manifest has `embedding`."""
    min_replicas: int = 1
    """0: without requests there is no replica, and the first one waits for it."""
    max_replicas: int = 1
    cpus: float = 1.0
    """Of a replica, and the threads that its framework computes with."""
    gpus: float = 0.0
    """Of a replica; a fraction shares a GPU."""
    max_batch_rows: int = 64
    """Rows, or texts that are written, that go through the model together; also the most that one request may have."""
    batch_wait_ms: float = 0.0
    """How long a batch that is not full waits for more. 0: batches form of what waits while the replicas are busy."""
    prefix_cache_bytes: int = 256 << 20
    """Of a replica that writes text: the most that it keeps of prompts that it has read, for those that begin alike."""
    downscale_delay_s: float = 60.0
    jobs: Sequence[str] = ()
    """Packages of jobs outside Trainyard that an artifact may name, and that a replica imports then: see
    jobs/common/predictor/find.py."""
    shared: bool = False
    """Whether replicas that it shares with other models load it when it is asked for."""
    base: str = ""
    """Of an adapter, and of the model that it is an adapter of: the latter's artifact, whose weights they share in the
    memory of a replica."""

    @property
    def application(self) -> str:
        """Its name in Serve."""
        return f"{self.name}-{self.version}"

    @property
    def key(self) -> str:
        """What shared replicas know it by: what it is, not only what it is called."""
        return f"{self.application}-{self.digest}"

    @property
    def max_calls(self) -> int:
        """Batches under way at a time: one that a replica computes, and one that it has at hand then."""
        return 2 * self.max_replicas


@dataclass(frozen=True, kw_only=True)
class SharedSettings:
    """Replicas that models share."""

    max_loaded: int = 4
    """Models of a replica at a time; for another one, the one that was asked least recently goes."""
    min_replicas: int = 1
    max_replicas: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    downscale_delay_s: float = 60.0


@dataclass(frozen=True, kw_only=True)
class EndpointSettings:
    """What all models of an endpoint have in common."""

    auth: bool = True
    keys_file: str | None = None
    """None: keys come from the environment variable of serving/core/api_keys.py."""
    max_request_bytes: int = 16 << 20
    max_queued: int = 1000
    """Requests that wait for one model, of one ingress; more are answered with 503."""
    timeout_s: float = 30.0
    """The most that a request may take, whatever it asks for."""
    requests_per_s: float | None = None
    """Of one key; more are answered with 429."""
    min_replicas: int = 1
    max_replicas: int = 1
    """Of the ingress."""
    downscale_delay_s: float = 60.0
    access_log: str | None = None
    """A file on each ingress's node that gets a line of JSON for each request."""
    host: str = "127.0.0.1"
    """Where it listens; without keys, a name by which it may be asked."""
    cors_origins: Sequence[str] = ()
    """Of web pages elsewhere that may ask it from a browser."""
    root_path: str = ""
    """What stands before every path where a proxy gives it out under one, such as `/models`; no slash at its end."""
    own: Sequence[JsonObject] = ()
    """Models that each replica of the ingress computes itself, as ModelSettings:
    nothing lies between a request and the model."""


def routes(models: Mapping[str, Mapping[str, float]], settings: Mapping[str, ModelSettings]) -> JsonObject:
    """The ingress's `user_config`, which changes without a restart. models: name -> version -> weight.
    settings: by application."""
    return {"models": {name: [{"weight": weight, "settings": asdict(settings[f"{name}-{version}"])}
                              for version, weight in versions.items()] for name, versions in models.items()},
            "guards": {}, "shadows": {}}
