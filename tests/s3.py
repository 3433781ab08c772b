"""A real S3 server (moto's server mode) on a free port of the loopback, for tests: `with s3_server() as endpoint: …`.

It runs as a process of its own, so that processes killed or stopped by a test, and workers of a cluster,
see the same one.
"""

import os
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

BUCKET = "trainyard"


@contextmanager
def s3_server(bucket: str = BUCKET, certificate: tuple[Path, Path] | None = None) -> Iterator[str]:
    """Yields the endpoint (`http://127.0.0.1:PORT`) of a server that has one empty bucket, with AWS_* set to use it.

    certificate: its file and its key's, for https instead.
    Children started inside the block inherit the variables, so `s3://trainyard/…` works in them too.
    """
    port = _free_port()
    endpoint = f"http{'s' if certificate else ''}://127.0.0.1:{port}"
    context = ssl.create_default_context(cafile=certificate[0]) if certificate else None
    secured = ["-c", str(certificate[0]), "-k", str(certificate[1])] if certificate else []
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port), *secured]
    said = tempfile.TemporaryFile()  # noqa: SIM115  (a server that ends early is to say why)
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
    before = dict(os.environ)
    try:
        _wait(endpoint, server, context, said)
        os.environ.update(_credentials(endpoint))
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{bucket}", method="PUT"), timeout=10,
                               context=context).close()
        yield endpoint
    finally:
        for name in _credentials(endpoint):
            os.environ.pop(name, None)
            if name in before:
                os.environ[name] = before[name]
        server.kill()
        server.wait()
        said.close()


def _credentials(endpoint: str) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def _wait(endpoint: str, server: subprocess.Popen[bytes], context: ssl.SSLContext | None, said: IO[bytes],
          timeout_s: float = 300) -> None:
    """Waits until it listens, and then for its answer: importing moto takes a second,
    and a minute on a busy machine."""
    deadline = time.monotonic() + timeout_s
    while server.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{endpoint}/moto-api/", timeout=max(1.0, deadline - time.monotonic()),
                                   context=context).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    said.seek(0)
    raise RuntimeError(f"moto's server did not answer at {endpoint} (exit code {server.poll()}): "
                       f"{said.read().decode()[-2000:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
