"""What Ray Serve opens beside the endpoint, kept to where it is needed.

HAProxy by itself listens for statistics and metrics on all interfaces (haproxy.py puts that on loopback), at fixed
ports, and keeps its configuration, and sockets that anyone may write to, in /tmp/haproxy-serve, where the endpoints of
one machine get in each other's way. Every replica takes calls from other deployments on all interfaces, without the
cluster's token, and unpickles them: who reaches that port can run code there. And behind HAProxy, replicas listen to
callers, as does a proxy that stands in for them: over gRPC on all interfaces, over HTTP wherever the endpoint does,
and without its TLS.

Serve has settings for the ports, none for the interfaces, so its functions are replaced. Read in Ray 2.60.0, with
uvicorn; tests/unit/test_internals.py holds each symbol.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false

import os
import shlex
import socket
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cluster.core.errors import ConfigError
from cluster.core.network import free_port
from serving.hardening import haproxy


def haproxy_settings(folder: Path, tls: tuple[str, str] | None = None) -> dict[str, str]:
    """Environment variables for the processes of a cluster,
    by which its HAProxy works in a folder that only its user can open.

    folder: its path may have 25 characters, since a socket's may have 97, of which Serve takes the rest. tls: the files
    of a certificate and its key. Raises: ConfigError if the variable that bounds connections is not a number.
    """
    try:
        haproxy.per_source(os.environ)
    except ValueError as error:
        raise ConfigError(f"{haproxy.PER_SOURCE}={os.environ[haproxy.PER_SOURCE]}: it must be a number of connections, "
                          "1 or more"
                          ) from error
    folder.chmod(0o700)
    program = folder / "haproxy"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -P {shlex.quote(str(haproxy.__file__))} "$@"\n')
    program.chmod(0o700)
    return {
        **({} if tls is None else {haproxy.CERT: str(Path(tls[0]).absolute()),
                                   haproxy.KEY: str(Path(tls[1]).absolute())}),
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(program),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(free_port()),
    }


@cache
def keep_calls_to_this_node() -> None:
    """In a process of Serve's, before it listens: it does so on its node's own address,
    which is loopback for a local cluster.

    Replicas call it themselves; Serve's own proxy does by RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH. What comes there
    by HTTP has the headers that it began with.
    """
    ignore_trailers()
    import ray
    from ray.serve._private import default_impl, http_util, replica

    serve_replica: Any = replica
    serve_default: Any = default_impl
    listen, listen_to_callers = serve_replica.add_port_to_grpc_server, serve_default.add_grpc_address
    node = ray.util.get_node_ip_address()

    def listen_here(server: object, address: str) -> int:
        return listen(server, address.replace("[::]", node))

    def listen_to_callers_here(server: object, address: str) -> None:
        for own in {node, "127.0.0.1"}:  # by which HAProxy reaches its own node's
            listen_to_callers(server, address.replace("[::]", own))

    serve_replica.add_port_to_grpc_server = listen_here
    serve_default.add_grpc_address = listen_to_callers_here
    if node == "127.0.0.1":
        serve_http: Any = http_util
        serve_http.socket = SimpleNamespace(**{**vars(socket), "socket": _Loopback})


def ignore_trailers() -> None:
    """What follows a body in pieces is no header: uvicorn adds it to them, where it would be one more key,
    which came last."""
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    protocol: Any = HttpToolsProtocol
    complete = protocol.on_headers_complete

    def on_headers_complete(self: Any) -> None:
        complete(self)
        self.headers = list(self.headers)  # the request keeps its own, and this one gets what follows

    protocol.on_headers_complete = on_headers_complete


class _Loopback(socket.socket):
    """Listens there, whatever it is told."""

    def __init__(self, family: int, kind: int) -> None:
        super().__init__(socket.AF_INET, kind)

    def bind(self, address: Any) -> None:
        super().bind(("127.0.0.1", address[1]))


def limit_calls(most_bytes: int) -> None:
    """In a replica, before it listens for gRPC: what is larger is refused, where Serve takes up to 2 GiB."""
    from ray.serve._private import grpc_util

    serve_grpc: Any = grpc_util
    serve_grpc.DEFAULT_GRPC_SERVER_OPTIONS = [
        (name, most_bytes if name == "grpc.max_receive_message_length" else value)
        for name, value in serve_grpc.DEFAULT_GRPC_SERVER_OPTIONS]
