"""HAProxy's configuration as Serve writes it, rewritten, and read by HAProxy itself."""

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from serving import haproxy
from tests.unit.test_tls import certificate

pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field` is deprecated")  # Ray Serve's, of Pydantic


def configuration(folder: Path, host: str, proxy: str = "127.0.0.1") -> Path:
    """What Serve writes for an endpoint over HTTP and gRPC."""
    from ray.serve.config import HTTPOptions, gRPCOptions  # isort: skip  (the next one needs it)
    from ray.serve._private.haproxy import HAProxyApi, HAProxyConfig, ServerConfig

    path = folder / "haproxy.cfg"
    made = HAProxyApi(config_file_path=str(path), cfg=HAProxyConfig(
        http_options=HTTPOptions(host=host, port=24110),
        grpc_options=gRPCOptions(port=24111, grpc_servicer_functions=["serving.calls:add_to_server"]),
        **{f"{name}_path": str(folder / name) for name in ("socket", "metrics_socket")},
        server_state_base=str(folder), server_state_file=str(folder / "state")))
    made.set_grpc_fallback_server(ServerConfig(name="proxy", host=proxy, port=1, replica_id="proxy"))
    made._generate_config_file_internal()
    return path


def started(path: Path, **environ: str) -> str:
    """HAProxy's own check of what the program made of it. Returns that."""
    environ = {"RAY_SERVE_HAPROXY_BINARY_PATH": haproxy.__file__, "PATH": "/usr/bin:/bin", **environ}
    done = subprocess.run([sys.executable, "-P", haproxy.__file__, "-c", "-f", str(path)], capture_output=True, text=True,
                          env=environ, timeout=60)
    assert done.returncode == 0, done.stderr
    return path.read_text()


@pytest.mark.parametrize(("host", "bound"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "*")])
def test_only_the_endpoint_itself_is_open_to_others(tmp_path: Path, host: str, bound: str) -> None:
    made = started(configuration(tmp_path, host))
    binds = sorted(line.strip() for line in made.splitlines() if line.strip().startswith("bind "))
    assert binds == sorted([f"bind {bound}:24110", f"bind {bound}:24111 proto h2", "bind 127.0.0.1:8404", "bind 127.0.0.1:9101"])


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
