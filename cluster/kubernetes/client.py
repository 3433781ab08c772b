"""What is asked of a Kubernetes API server, in plain dictionaries: one object, all of a kind, a new one, a log.

Through the official client, which knows kubeconfig files, their plugins, and a pod's service account.
Every call has a deadline.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingImports=false

import os
import urllib.parse
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from cluster.core.documents import JSON_VALUE, JsonObject, parse_json
from cluster.core.errors import ClusterError, ConfigError

Object = JsonObject

TIMEOUT_S = 8.0
_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_CUSTOM = {
    "rayjobs": ("ray.io", ("v1",)), "rayclusters": ("ray.io", ("v1",)), "rayservices": ("ray.io", ("v1",)),
    "workloads": ("kueue.x-k8s.io", ("v1beta2", "v1beta1")), "localqueues": ("kueue.x-k8s.io", ("v1beta2", "v1beta1")),
}
_CORE = ("pods", "events", "persistentvolumeclaims", "secrets", "services")


class NotAllowedError(ClusterError):
    """The API server knows who asks, and refuses it (403)."""


class Kube:
    """One namespace of a Kubernetes cluster.
    Every method raises ClusterError; NotAllowedError where a right is missing."""

    def __init__(self, client: Any, namespace: str) -> None:
        self._client, self.namespace = client, namespace

    @staticmethod
    def connect(namespace: str | None = None, context: str | None = None) -> "Kube":
        """From the kubeconfig file (KUBECONFIG, else ~/.kube/config), else as the pod that this process runs in.

        Raises: ConfigError if the client is not installed, ClusterError if there is neither. Asks nothing yet.
        """
        kubernetes = _kubernetes()
        settings = kubernetes.client.Configuration()
        try:
            file = os.environ.get("KUBECONFIG", "~/.kube/config")  # the client looks at it once, when it is imported
            kubernetes.config.load_kube_config(file, context, settings)
            chosen = namespace or _namespace_of_context(kubernetes, file, context)
        except kubernetes.config.ConfigException as error:
            if (_SERVICE_ACCOUNT / "token").exists() and context is None:
                here = Kube.of_this_pod()
                return Kube(here._client, namespace or here.namespace)
            raise ClusterError(f"no Kubernetes cluster is known here ({error}): set KUBECONFIG to a kubeconfig file, "
                               "or pass a --context that it has") from error
        settings.retries = False
        return Kube(kubernetes.client.ApiClient(settings), chosen)

    @staticmethod
    def of_this_pod() -> "Kube":
        """As the service account of the pod that this process runs in. Raises: ConfigError, ClusterError."""
        kubernetes = _kubernetes()
        settings = kubernetes.client.Configuration()
        try:
            kubernetes.config.load_incluster_config(client_configuration=settings)
        except kubernetes.config.ConfigException as error:
            raise ClusterError(f"this pod has no service account ({error}): mount its token") from error
        settings.retries = False
        return Kube(kubernetes.client.ApiClient(settings), own_namespace())

    def find(self, kind: str, name: str) -> Object | None:
        """One object; None if there is none of this name, or its kind is not installed."""
        for path in self._paths(kind):
            if (found := self._get(f"{path}/{name}", {})) is not None:
                return found
        return None

    def all(self, kind: str, selector: str = "") -> list[Object]:
        """All of a kind, or those with the labels of a selector (`app=x`); none if the kind is not installed."""
        query = {"labelSelector": selector} if selector else {}
        for path in self._paths(kind):
            if (found := self._get(path, query)) is not None:
                return found["items"]
        return []

    def create(self, kind: str, manifest: Object) -> Object:
        """Raises: ConfigError where the API server finds the manifest invalid, or the name is taken."""
        group, versions = _CUSTOM[kind]
        kubernetes = _kubernetes()
        with self._explained(f"create {kind}", refusals_are_the_users=True):
            return kubernetes.client.CustomObjectsApi(self._client).create_namespaced_custom_object(
                group, versions[0], self.namespace, kind, manifest, _request_timeout=TIMEOUT_S)

    def log(self, pod: str, container: str | None = None, since_s: int | None = None) -> Generator[str]:
        """The lines of a pod's log as they come, to its end. since_s: only what is younger than this."""
        core = _kubernetes().client.CoreV1Api(self._client)
        with self._explained(f"read the log of pod {pod}"):
            answer = core.read_namespaced_pod_log(pod, self.namespace, follow=True, _preload_content=False,
                                                  **({"container": container} if container else {}),
                                                  **({"since_seconds": since_s} if since_s else {}))
            try:
                yield from _lines(answer)
            finally:
                answer.release_conn()

    def through_service(self, service: str, port: int, path: str, token: str = "") -> Any:
        """What a service answers to GET, as JSON, by way of the API server.
        token: Ray's; the server takes Authorization itself."""
        headers = {"X-Ray-Authorization": f"Bearer {token}"} if token else {}
        path, _, query = path.partition("?")
        below = f"/api/v1/namespaces/{self.namespace}/services/{service}:{port}/proxy/{path}"
        return self._get(below, dict(urllib.parse.parse_qsl(query)), headers)

    def _paths(self, kind: str) -> list[str]:
        if kind in _CORE:
            return [f"/api/v1/namespaces/{self.namespace}/{kind}"]
        group, versions = _CUSTOM[kind]
        return [f"/apis/{group}/{version}/namespaces/{self.namespace}/{kind}" for version in versions]

    def _get(self, path: str, query: Mapping[str, str], headers: Mapping[str, str] | None = None) -> Any:
        """None where there is nothing at this path."""
        with self._explained(f"read {path}"):
            try:
                answer = self._client.call_api(path, "GET", {}, list(query.items()), dict(headers or {}),
                                               auth_settings=["BearerToken"],
                                               _return_http_data_only=True, _preload_content=False,
                                               _request_timeout=TIMEOUT_S)
                return parse_json(answer.data, JSON_VALUE)
            except _kubernetes().client.ApiException as error:
                if error.status == 404:
                    return None
                raise
            except ValueError as error:
                raise ClusterError(f"{path} of the Kubernetes API server is no JSON ({error}): is something in "
                                   "between?") from error

    @contextmanager
    def _explained(self, what: str, *, refusals_are_the_users: bool = False) -> Generator[None]:
        import urllib3

        try:
            yield
        except _kubernetes().client.ApiException as error:
            said = _message(error)
            if error.status == 401:
                raise ClusterError(f"the Kubernetes API server does not know who asks ({said}): renew the credentials "
                                   "in the kubeconfig file") from error
            if error.status == 403 and ("is forbidden: User" in said or not said):
                raise NotAllowedError(f"not allowed to {what} in namespace {self.namespace} ({said}): ask for a Role "
                                      "that allows it"
                                      ) from error
            if refusals_are_the_users and error.status in (400, 403, 404, 409, 422):
                raise ConfigError(f"the Kubernetes API server refuses it ({said}): mend that and try again") from error
            raise ClusterError(f"cannot {what}: the Kubernetes API server says {error.status} "
                               f"({said or error.reason})") from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            host = self._client.configuration.host
            raise ClusterError(f"the Kubernetes API server at {host} does not answer ({_cause(error)}): check the "
                               "network, a VPN, and the kubeconfig's context") from error


def own_namespace() -> str:
    """Of the pod that this process runs in; `default` where it is none."""
    file = _SERVICE_ACCOUNT / "namespace"
    return file.read_text().strip() if file.exists() else "default"


def _kubernetes() -> ModuleType:
    try:
        import kubernetes  # with its client and config
    except ImportError as error:
        raise ConfigError("this needs the Kubernetes client: pip install 'trainyard[kubernetes]' -c "
                          "lock.txt") from error
    return kubernetes


def _namespace_of_context(kubernetes: ModuleType, file: str, context: str | None) -> str:
    contexts, active = kubernetes.config.list_kube_config_contexts(file)
    chosen = active if context is None else next(each for each in contexts if each["name"] == context)
    return chosen["context"].get("namespace") or "default"


def _lines(answer: Any) -> Generator[str]:
    rest = b""
    for piece in answer.stream(4096):
        *whole, rest = (rest + piece).split(b"\n")
        yield from (line.decode(errors="replace") for line in whole)
    if rest:
        yield rest.decode(errors="replace")


def _message(error: Any) -> str:
    """What the API server says went wrong."""
    try:
        return str(parse_json(error.body or "{}").get("message", ""))
    except ValueError:
        return str(error.body or "").strip()[:200]


def _cause(error: BaseException) -> str:
    reason = getattr(error, "reason", None) or error
    return str(reason).rpartition(": ")[2] or type(error).__name__
