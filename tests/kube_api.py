"""A small Kubernetes API server for tests: a real HTTP(S) server that answers from recorded objects.

It is no Kubernetes: nothing is scheduled, validated or defaulted. It holds the objects that a test gives it, in the
form in which a real server gives them (KubeRay 1.7.0's CRDs, Kubernetes' own kinds, Kueue's workloads;
tests/kube_objects.py), and answers GET of one and of all with label selectors, POST of a new one, a pod's log, and what
a service says through its proxy. A test changes the objects while the client follows them.
What a path is refused with (401, 403, 503) is given by its prefix.
"""

import json
import ssl
import threading
import urllib.parse
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cluster import autoscaler
from cluster.kubernetes import client

NAMESPACE = "team"
_PLURAL = {"RayJob": "rayjobs", "RayCluster": "rayclusters", "RayService": "rayservices", "Workload": "workloads",
           "LocalQueue": "localqueues", "Pod": "pods", "Event": "events",
           "PersistentVolumeClaim": "persistentvolumeclaims",
           "Secret": "secrets"}


@dataclass
class KubeApi:
    """objects: by (plural, name). asked: (method, path, headers) of every request, in order."""

    url: str = ""
    objects: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)
    through_services: dict[str, Any] = field(default_factory=dict)
    """By `SERVICE:PORT/PATH`."""
    refused: dict[str, tuple[int, str]] = field(default_factory=dict)
    """By the last part of a path (a plural): status and message."""
    token: str = ""
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    created: list[dict[str, Any]] = field(default_factory=list)

    def put(self, *objects: dict[str, Any]) -> None:
        for each in objects:
            self.objects[_PLURAL[each["kind"]], each["metadata"]["name"]] = each

    def forget(self, kind: str, name: str) -> None:
        del self.objects[_PLURAL[kind], name]

    def answer(self, path: str, query: dict[str, list[str]]) -> tuple[int, Any]:
        parts = path.lstrip("/").split("/")
        below = parts[parts.index(NAMESPACE) + 1:] if NAMESPACE in parts else []
        if below and below[0] in self.refused:
            status, message = self.refused[below[0]]
            return status, _status(status, message)
        match below:
            case ["services", service, "proxy", *rest]:
                found = self.through_services.get(f"{service}/{'/'.join(rest)}")
                return (200, found) if found is not None else (503, _status(503, "no endpoints available for service"))
            case ["pods", name, "log"] if name in self.logs:
                return 200, self.logs[name]
            case [plural] if plural in _PLURAL.values():
                wanted = dict(pair.split("=") for pair in query.get("labelSelector", [""])[0].split(",") if pair)
                items = [o for (kind, _), o in self.objects.items() if kind == plural
                         and wanted.items() <= (o["metadata"].get("labels") or {}).items()]
                return 200, {"kind": "List", "apiVersion": "v1", "metadata": {}, "items": items}
            case [plural, name] if (plural, name) in self.objects:
                return 200, self.objects[plural, name]
        return 404, _status(404, f"{path} not found")

    def create(self, path: str, made: dict[str, Any]) -> tuple[int, Any]:
        plural = path.rpartition("/")[2]
        if plural in self.refused:
            status, message = self.refused[plural]
            return status, _status(status, message)
        name = made["metadata"]["name"]
        if (plural, name) in self.objects:
            return 409, _status(409, f'{plural}.ray.io "{name}" already exists')
        self.created.append(made)
        self.objects[plural, name] = {**made, "metadata": {**made["metadata"], "namespace": NAMESPACE}}
        return 201, self.objects[plural, name]


def _status(code: int, message: str) -> dict[str, Any]:
    return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code}


@contextmanager
def kube_api(certificate: tuple[Path, Path] | None = None) -> Generator[KubeApi]:
    """Listens on loopback; with (certificate, key) by TLS."""
    api = KubeApi()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def _send(self, status: int, body: Any) -> None:
            data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain" if isinstance(body, str) else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _heard(self, method: str) -> tuple[str, dict[str, list[str]]] | None:
            path, _, query = self.path.partition("?")
            api.asked.append((method, path, dict(self.headers)))
            scheme, _, token = (self.headers.get("Authorization") or "").partition(" ")
            if api.token and (scheme.lower(), token) != ("bearer", api.token):
                self._send(401, _status(401, "Unauthorized"))
                return None
            return path, urllib.parse.parse_qs(query)

        def do_GET(self) -> None:
            if (heard := self._heard("GET")) is not None:
                self._send(*api.answer(*heard))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if (heard := self._heard("POST")) is not None:
                self._send(*api.create(heard[0], json.loads(body)))

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    api.url = f"http{'s' if certificate else ''}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def kubeconfig(folder: Path, api: KubeApi, token: str = "") -> Path:
    """A kubeconfig file with two contexts, of which `here` is the current one."""
    user = {"token": token} if token else {}
    file = folder / "kubeconfig"
    file.write_text(json.dumps({
        "apiVersion": "v1", "kind": "Config", "current-context": "here",
        "clusters": [{"name": "c", "cluster": {"server": api.url}},
                     {"name": "nowhere", "cluster": {"server": "http://127.0.0.1:1"}}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u", "namespace": NAMESPACE}},
                     {"name": "away", "context": {"cluster": "nowhere", "user": "u"}}],
    }))
    return file


@contextmanager
def in_a_pod(patch: pytest.MonkeyPatch, folder: Path, cluster: str = "train-abcde") -> Generator[KubeApi]:
    """Makes this process one in a pod of a RayCluster, as far as it sees: KubeRay's variable,
    a service account, TLS."""
    from kubernetes.config import incluster_config

    from tests.unit.test_tls import certificate

    cert, key = certificate(folder)
    with kube_api((cert, key)) as api:
        api.token = "of-the-pod"
        (folder / "token").write_text(api.token)
        (folder / "namespace").write_text(NAMESPACE)
        host, _, port = api.url.removeprefix("https://").partition(":")
        environment = {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port,
                       autoscaler.CLUSTER_NAME: cluster}
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(folder / "token"))
        patch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(cert))
        patch.setattr(client, "_SERVICE_ACCOUNT", folder)
        yield api
