"""HAProxy's configuration as Serve writes it, rewritten, and read by HAProxy itself."""

import http.client
import json
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from cluster.core.errors import ConfigError
from cluster.core.network import free_port
from serving.hardening import haproxy
from serving.hardening import serve_patches as closed
from tests.unit.test_tls import certificate

# Ray Serve's, of Pydantic
pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field` is deprecated")


def configuration(folder: Path, host: str, proxy: str = "127.0.0.1", port: int = 24110, ingress: int | None = None,
                  **ports: int) -> Path:
    """What Serve writes for an endpoint over HTTP and gRPC. ingress: the port of one that runs."""
    from ray.serve.config import HTTPOptions, gRPCOptions  # isort: skip  (the next one needs it)
    from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig

    path = folder / "haproxy.cfg"
    made = HAProxyApi(config_file_path=str(path), cfg=HAProxyConfig(
        http_options=HTTPOptions(host=host, port=port), **ports,
        grpc_options=gRPCOptions(port=24111, grpc_servicer_functions=["serving.endpoint.grpc:add_to_server"]),
        **{f"{name}_path": str(folder / name) for name in ("socket", "metrics_socket")},
        server_state_base=str(folder), server_state_file=str(folder / "state")))
    if ingress is not None:
        server = ServerConfig(name="ingress", host="127.0.0.1", port=ingress, replica_id="ingress")
        made.set_backend_configs({"endpoint": BackendConfig(name="endpoint", path_prefix="/", servers=[server])})
    made.set_grpc_fallback_server(ServerConfig(name="proxy", host=proxy, port=1, replica_id="proxy"))
    made._generate_config_file_internal()
    return path


def started(path: Path, **environ: str) -> str:
    """HAProxy's own check of what the program made of it. Returns that."""
    environ = {"RAY_SERVE_HAPROXY_BINARY_PATH": haproxy.__file__, "PATH": "/usr/bin:/bin", **environ}
    done = subprocess.run([sys.executable, "-P", haproxy.__file__, "-c", "-f", str(path)], capture_output=True,
                          text=True,
                          env=environ, timeout=60)
    assert done.returncode == 0, done.stderr
    return path.read_text()


@pytest.mark.parametrize(("host", "bound"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "*")])
def test_only_the_endpoint_itself_is_open_to_others(tmp_path: Path, host: str, bound: str) -> None:
    made = started(configuration(tmp_path, host))
    binds = sorted(line.strip() for line in made.splitlines() if line.strip().startswith("bind "))
    assert binds == sorted([f"bind {bound}:24110", f"bind {bound}:24111 proto h2", "bind 127.0.0.1:8404",
                            "bind 127.0.0.1:9101"])


def test_a_node_whose_name_leads_nowhere_keeps_nobody_from_starting(tmp_path: Path) -> None:
    assert "server proxy host-0.invalid:1 " in started(configuration(tmp_path, "127.0.0.1", "host-0.invalid"))


def test_nobody_is_told_which_applications_there_are_and_calls_go_to_the_endpoint(tmp_path: Path) -> None:
    made = started(configuration(tmp_path, "127.0.0.1"))
    assert "use_backend grpc_fallback_backend" not in made
    assert 'hdr grpc-message "not offered" if is_list_applications' in made
    frontend = made[made.index("frontend grpc_frontend"):]
    assert frontend.index("http-request set-header application endpoint") < frontend.index("\nbackend ")


def test_the_endpoint_speaks_tls_and_nobody_else_can_read_its_key(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    for _ in range(2):  # it is started again whenever replicas come and go
        made = started(configuration(tmp_path, "127.0.0.1"), **{haproxy.CERT: str(cert), haproxy.KEY: str(key)})
    bundle = tmp_path / "tls.pem"
    assert f"bind 127.0.0.1:24110 ssl crt {bundle}\n" in made
    assert f"bind 127.0.0.1:24111 proto h2 ssl crt {bundle} alpn h2\n" in made
    assert made.count(" ssl ") == 2
    assert stat.S_IMODE(bundle.stat().st_mode) == 0o600


# ── at work ──
class Ingress(BaseHTTPRequestHandler):
    """In place of an endpoint's: answers late, in pieces, not at all, or as Serve does when it gives a request up."""

    protocol_version = "HTTP/1.1"
    held: ClassVar[list[Any]] = []
    """Requests that are answered when they may go on."""
    go_on = threading.Event()

    def do_GET(self) -> None:
        if self.path == "/broken":
            self.wfile.write(b"not HTTP\r\n\r\n")
            self.close_connection = True
            return
        if self.path == "/held":
            self.held.append(self.client_address)
            self.go_on.wait()
        if self.path == "/late":
            time.sleep(1.5)
        self.send_response(408 if self.path.endswith("/408") else 200)
        pieces = [b"one ", b"two ", b"three"] if self.path == "/stream" else [b"Request timed out after 35.0s."]
        self.send_header("Content-Length", str(sum(map(len, pieces))))
        self.end_headers()
        for piece in pieces:
            self.wfile.write(piece)
            time.sleep(1.1 if len(pieces) > 1 else 0)

    def do_POST(self) -> None:
        """As who has no key is refused, before what he sends has come."""
        self.send_response(401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: Any) -> None: ...


class Server(ThreadingHTTPServer):
    request_queue_size = 200

    def handle_error(self, request: Any, client_address: Any) -> None:
        """That a caller has gone is not worth a line."""


@dataclass(frozen=True, kw_only=True)
class Running:
    """HAProxy, in front of an ingress."""

    port: int

    def connect(self, source: str = "127.0.0.1") -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10, source_address=(source, 0))

    def ask(self, path: str = "/", source: str = "127.0.0.1") -> tuple[int, Any, bytes]:
        """Status, headers and body of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10, source_address=(source, 0))
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status, answer.headers, body


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Where a caller may be silent for a second, and an address may have 100 connections."""
    folder = tmp_path_factory.mktemp("haproxy")
    server = Server(("127.0.0.1", 0), Ingress)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    path = configuration(folder, "127.0.0.1", port=free_port(), ingress=server.server_port, stats_port=free_port(),
                         metrics_port=free_port())
    made = started(path, **{haproxy.PER_SOURCE: "100"})
    assert all(each in made for each in ("timeout http-request 10s", "timeout client 60s"))
    quick = made.replace("timeout http-request 10s", "timeout http-request 1s").replace("client 60s", "client 1s")
    path.write_text(quick)
    with begun(path) as port:
        yield Running(port=port)
    server.shutdown()
    server.server_close()


@contextmanager
def begun(path: Path) -> Generator[int]:
    """The port where it answers."""
    port = int(path.read_text().partition("frontend http_frontend")[2].partition(":")[2].split()[0])
    process = subprocess.Popen([sys.executable, "-P", haproxy.__file__, "-db", "-f", str(path)],
                               stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < until
                time.sleep(0.05)
        yield port
    finally:
        process.kill()
        process.wait()


@contextmanager
def sending(running: Running, data: bytes, number: int, source: str) -> Generator[list[socket.socket]]:
    with ExitStack() as stack:
        made = [stack.enter_context(running.connect(source)) for _ in range(number)]
        for each in made:
            each.sendall(data)
        yield made


def test_half_sent_headers_hold_up_nobody_and_are_given_up(running: Running) -> None:
    with sending(running, b"GET /v2 HTTP/1.1\r\nHost: x\r\nX-Half: ", 90, "127.0.0.1") as half:
        began = time.monotonic()
        assert running.ask()[0] == 200
        assert time.monotonic() - began < 9, "and `ask` gives up after 10 s"
        assert half[0].recv(1000).startswith(b"HTTP/1.1 408 "), "they have not come within a second"


def test_one_address_cannot_have_all_connections(running: Running) -> None:
    refused = (OSError, http.client.HTTPException)
    with sending(running, b"GET /held HTTP/1.1\r\nHost: x\r\n\r\n", 100, "127.0.0.7") as held:
        until = time.monotonic() + 20
        while len(Ingress.held) < 100:
            assert time.monotonic() < until, len(Ingress.held)
            time.sleep(0.01)
        with pytest.raises(refused):
            running.ask(source="127.0.0.7")
        assert running.ask(source="127.0.0.8")[0] == 200, "nobody else is kept off"
        Ingress.go_on.set()
        assert all(each.recv(1000).startswith(b"HTTP/1.1 200 ") for each in held)
    for _ in range(200):
        with suppress(*refused):
            assert running.ask(source="127.0.0.7")[0] == 200
            return
        time.sleep(0.05)
    raise AssertionError("it is not let in again when they are gone")


def test_a_body_that_does_not_come_does_not_hold_its_connection(running: Running) -> None:
    with running.connect() as slow:
        slow.sendall(b"POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        answer = b""
        while piece := slow.recv(1000):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 401 ")


def test_a_caller_who_waits_for_an_answer_is_not_a_silent_one(running: Running) -> None:
    """Also between the pieces of a stream."""
    assert running.ask("/late")[0] == 200
    assert running.ask("/stream")[2] == b"one two three"


def test_what_is_answered_in_place_of_the_ingress_has_the_protocols_form(running: Running) -> None:
    for path, status in (("/v2/408", 504), ("/v1/408", 504), ("/broken", 502)):
        found, headers, body = running.ask(path)
        assert (found, headers["content-type"]) == (status, "application/json"), path
        assert isinstance(json.loads(body)["error"], dict) == path.startswith("/v1/")


def test_only_its_user_gives_haproxy_orders_and_writes_its_sockets(tmp_path: Path) -> None:
    assert "mode 666" not in started(configuration(tmp_path, "127.0.0.1"))
    made = closed.haproxy_settings(tmp_path)
    assert tmp_path.stat().st_mode & 0o077 == 0
    from ray.serve._private import constants

    paths = {name for name, value in vars(constants).items()
             if name.startswith("RAY_SERVE_HAPROXY_") and str(value).startswith("/tmp/haproxy-serve")}
    assert {name for name in paths if Path(made[name]) != tmp_path
            and tmp_path not in Path(made[name]).parents} == set()


@pytest.mark.parametrize("number", ["many", "0", "-1", ""])
def test_a_bound_that_is_not_a_number_is_refused_before_anything_starts(
        number: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(haproxy.PER_SOURCE, number)
    with pytest.raises(ConfigError, match=f"{haproxy.PER_SOURCE}={number}: "):
        closed.haproxy_settings(tmp_path)


def test_a_configuration_that_has_been_rewritten_is_taken_as_it_is(tmp_path: Path) -> None:
    path = configuration(tmp_path, "127.0.0.1")
    assert started(path) == started(path)
