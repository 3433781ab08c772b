"""Attacks on a cluster as `python -m cluster up` starts it, and what a run leaves:
k8s/SECURITY.md says what each is about."""

import http.client
import json
import os
import socket
import stat
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from ray.core.generated import gcs_service_pb2 as pb
from ray.core.generated import gcs_service_pb2_grpc as services

from cluster.commands import exports
from cluster.core import auth
from cluster.core.control_store import Gcs
from cluster.local.cluster import LocalCluster
from cluster.monitoring.run_status import read_runs
from tests import runs

WRONG = "0" * 64
SECRETS = {"AWS_SECRET_ACCESS_KEY": "hush-aws-9f1c", "MLFLOW_TRACKING_PASSWORD": "hush-mlflow-77ab",
           "TRAINYARD_API_KEYS": "me:" + "5e" * 32}
"""What a run's environment holds, and nobody should read anywhere else."""


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RAY_ADDRESS", *auth.AUTH_VARIABLES):
            patch.delenv(name, raising=False)
        patch.setenv("RAY_metrics_report_interval_ms", "1000")  # by itself Ray exports them every 10 s
        with runs.cluster(tmp_path_factory.mktemp("home"), nodes=0, cpus_per_node=2) as cluster:
            yield cluster


def asked(url: str, method: str = "GET", body: Any = None, **headers: str) -> tuple[int, bytes]:
    """Status and body of the answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, method=method,
                                     headers={"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def token() -> str:
    return auth.token_file().read_text()


def bearer(value: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {value}"}


# ── who has no token ──
ATTACKS = {
    "submit a job (ShadowRay)": ("POST", "/api/jobs/"), "list jobs": ("GET", "/api/jobs/"),
    "stop a job": ("POST", "/api/jobs/raysubmit_1/stop"), "read a job's log": ("GET", "/api/jobs/raysubmit_1/logs"),
    "upload code": ("PUT", "/api/packages/gcs/_ray_pkg_0123456789abcdef.zip"),
    "read nodes": ("GET", "/nodes?view=summary"),
    "read actors": ("GET", "/api/v0/actors"), "read log files": ("GET", "/api/v0/logs?node_ip=127.0.0.1"),
    "deploy to Serve": ("PUT", "/api/serve/applications/"),
    "end Serve (CVE-2026-27482)": ("DELETE", "/api/serve/applications/"),
    "read a worker's stack": ("GET", "/worker/traceback?pid=1&ip=127.0.0.1"),
}


@pytest.mark.parametrize("what", ATTACKS)
def test_the_dashboard_does_nothing_without_the_token(what: str, up: LocalCluster, tmp_path: Path) -> None:
    method, path = ATTACKS[what]
    body = {"entrypoint": f"touch {tmp_path}/owned"} if method in ("POST", "PUT") else None
    assert asked(up.dashboard_url + path, method, body)[0] == 401
    assert asked(up.dashboard_url + path, method, body, **bearer(WRONG))[0] == 403
    assert not (tmp_path / "owned").exists()
    assert owner(up).jobs() == [], "no driver was started"


@pytest.mark.parametrize("headers", [{"User-Agent": "Mozilla/5.0"}, {"Origin": "http://evil.example"},
                                     {"Sec-Fetch-Site": "cross-site"}])
def test_a_browser_cannot_submit_a_job_though_it_has_the_token(headers: dict[str, str], up: LocalCluster,
                                                               tmp_path: Path) -> None:
    """CVE-2025-62593: a page makes the browser of somebody inside send it; a dashboard's cookie would go along."""
    body = {"entrypoint": f"touch {tmp_path}/owned"}
    status, _ = asked(f"{up.dashboard_url}/api/jobs/", "POST", body, **bearer(token()), **headers)
    assert status in (403, 405)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("sent", [None, WRONG])
def test_the_control_store_does_nothing_without_the_token(sent: str | None, up: LocalCluster) -> None:
    calls = {
        "write": ("InternalKVGcsService", "InternalKVPut",
                  pb.InternalKVPutRequest(key=b"owned", value=b"1", namespace=b"n", overwrite=True)),
        "read": ("InternalKVGcsService", "InternalKVKeys", pb.InternalKVKeysRequest(prefix=b"", namespace=b"fun")),
        "jobs": ("JobInfoGcsService", "GetAllJobInfo", pb.GetAllJobInfoRequest()),
        "kill": ("ActorInfoGcsService", "KillActorViaGcs",
                 pb.KillActorViaGcsRequest(actor_id=b"0" * 16, force_kill=True)),
        "nodes": ("NodeInfoGcsService", "GetAllNodeInfo", pb.GetAllNodeInfoRequest()),
    }
    metadata = [] if sent is None else [("authorization", f"Bearer {sent}")]
    for what, (service, method, request) in calls.items():
        with grpc.insecure_channel(up.address) as channel, pytest.raises(grpc.RpcError) as caught:
            getattr(getattr(services, f"{service}Stub")(channel), method)(request, timeout=5, metadata=metadata)
        error: Any = caught.value
        assert error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED), (what, error)
    assert owner(up).read(b"owned", b"n") == b""


def test_a_nodes_own_port_does_nothing_without_the_token(up: LocalCluster) -> None:
    """The raylet's, by which tasks are started on it."""
    [node] = owner(up).nodes()
    with grpc.insecure_channel(f"{node.ip}:{node.port}") as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/ray.rpc.NodeManagerService/RequestWorkerLease")(b"", timeout=5)
    error: Any = caught.value
    assert error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED), error


# ── what the token does not guard, and who reaches it ──
def test_metrics_ask_for_no_token_and_only_this_machine_reaches_them(up: LocalCluster) -> None:
    """So much is open: who has an account on the machine reads names and load.
    NetworkPolicy keeps others off on Kubernetes."""
    ports = {connection.laddr.port for process in up.processes() for connection in process.net_connections("inet")
             if connection.status == psutil.CONN_LISTEN}
    outer = [a.address for addresses in psutil.net_if_addrs().values() for a in addresses
             if a.family == socket.AF_INET and not a.address.startswith("127.")]
    for address in outer:
        for port in ports:
            with pytest.raises(OSError):
                socket.create_connection((address, port), timeout=2).close()
    metrics = [text for port in ports if (text := _metrics(port))]
    assert metrics, "Ray's agent exports some"
    assert not any(token() in text for text in metrics)


def _metrics(port: int) -> str:
    try:
        status, body = asked(f"http://127.0.0.1:{port}/metrics")
    except (OSError, http.client.HTTPException):  # a port for something else
        return ""
    return body.decode(errors="replace") if status == 200 and b"ray_" in body else ""


# ── what a run leaves, and shows while it runs ──
def test_no_secret_is_in_ps_logs_or_files_and_status_shows_the_run(up: LocalCluster, tmp_path: Path) -> None:
    environment = {**up.environment(), **SECRETS, "AWS_ACCESS_KEY_ID": "key"}
    with runs.run(tmp_path / "watched", "--train.epochs", "5000", engine="ray", env=environment) as job:
        seen = job.until(lambda: [run for run in read_runs(owner(up), owner(up).jobs()) if run.ranks and run.step > 50])
        assert [(run.name, run.job, len(run.ranks), run.straggler) for run in seen] == [("watched", "mlp", 1, None)]
        command_lines = [" ".join(command) for process in psutil.process_iter(["cmdline"])
                         if (command := process.info["cmdline"])]
        gauge = 'ray_trainyard_train_rank_step_seconds{'
        exported = job.until(lambda: [line for port in _exporters(up) for line in _metrics(port).splitlines()
                                      if line.startswith(gauge)])
    assert 'Rank="0"' in exported[0] or 'rank="0"' in exported[0]
    assert 'run="watched"' in exported[0] and 'node="127.0.0.1"' in exported[0]
    hidden = [token(), *SECRETS.values()]
    assert not [line for line in command_lines if any(secret in line for secret in hidden)]
    for folder in (tmp_path / "watched", Path(up.folder)):
        assert [path for path in _files(folder) if any(secret.encode() in _bytes(path) for secret in hidden)] == []
    assert not any(secret in job.text for secret in hidden)


def _exporters(up: LocalCluster) -> set[int]:
    """Ports, as Ray tells Prometheus."""
    return {int(target.rpartition(":")[2]) for found in Path(up.folder).rglob("prom_metrics_service_discovery.json")
            for group in json.loads(found.read_text()) for target in group["targets"]}


def _bytes(path: Path) -> bytes:
    """Nothing of a file that has gone meanwhile: a worker outlives its driver for a moment, and deletes checkpoints."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _files(folder: Path) -> list[Path]:
    found = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(found) > 5
    return found


def test_files_with_secrets_are_their_owners_alone(up: LocalCluster) -> None:
    home = Path(os.environ["TRAINYARD_HOME"])
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in home.iterdir() if path.suffix != ".lock"}
    assert modes.keys() >= {"auth_token", "cluster.json"}
    assert set(modes.values()) == {0o600}
    assert not any(token() in line for line in exports(up)), "what `env` prints names the file"


@contextmanager
def authenticated() -> Iterator[None]:
    auth.apply(auth.token_environment())
    try:
        yield
    finally:
        auth.apply({})


class owner:  # noqa: N801  (reads as a function)
    """The control store, asked with this user's token."""

    def __init__(self, up: LocalCluster) -> None:
        self._gcs = Gcs(up.address)

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any) -> Any:
            with authenticated():
                return getattr(self._gcs, name)(*args)

        return call
