"""A checkpoint in a worker's memory. When a worker dies, those who are left hold what they had after the last step that
was finished, and the others of the next generation get it from one of them: no step is done again, and no storage read.

It is an image as a file of a checkpoint is (safetensors_image.py), made at a death and not before: a step pays nothing.
It is handed out over HTTP on the address that the workers' collectives use, to whoever has the key that it is offered
with, and verified like a file.
"""

import hashlib
import hmac
import http.client
import logging
import secrets
import socket
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from types import TracebackType

import numpy as np
import numpy.typing as npt

from cluster.core.background import in_background, logged
from cluster.core.errors import CheckpointError, NonFiniteStateError
from jobs.common.arrays import Array
from jobs.common.checkpoint.manifest import Checkpoint, FileEntry
from jobs.common.checkpoint.safetensors_image import PIECE_BYTES, FileImage, Tensors, tensors_in, write_pieces

_log = logging.getLogger(__name__)
_SILENT_S = 30.0
"""So long a holder may send nothing."""


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A checkpoint that a worker holds, and what to ask that worker with."""

    checkpoint: Checkpoint
    slot: int
    """Of the worker that holds it."""
    host: str
    port: int
    key: str

    @property
    def file(self) -> FileEntry:
        return self.checkpoint.files[0]


class PeerMemory:
    """What one worker process holds: at most one checkpoint. Used by the loop's thread alone."""

    def __init__(self, host: str, slot: int) -> None:
        """host: the address to listen on, where something is held."""
        self._host, self._slot = host, slot
        self._server: _Server | None = None
        self.offer: Offer | None = None
        """What it holds; None: nothing."""

    def __enter__(self) -> "PeerMemory":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.let_go()

    def hold(self, tensors: Tensors, checkpoint: Checkpoint) -> None:
        """Copies the tensors, and begins to offer them in place of what it held. checkpoint: all but its files.

        Holds nothing, and logs it, where memory is short or there is NaN or infinity among them: storage has the one
        before.
        """
        self.let_go()
        image = FileImage()
        try:
            image.fill(tensors)
            size, digest = write_pieces(image.pieces(), lambda _: None)
        except (NonFiniteStateError, MemoryError, OSError) as error:
            _log.warning("step %d is not held in memory: %s", checkpoint.step, error)
            return
        entry = FileEntry(path=f"worker {self._slot}'s memory", size=size, sha256=digest, rank=0)
        key = secrets.token_hex(32)
        self._server = server = _Server(self._host, image.data, key)
        serving = in_background("trainyard-peer-memory", lambda: server.serve_forever(poll_interval=0.05))
        serving.add_done_callback(logged("what a worker holds for others"))
        self.offer = Offer(checkpoint=replace(checkpoint, files=(entry,)), slot=self._slot, host=self._host,
                           port=server.server_address[1], key=key)

    def let_go(self) -> None:
        """Holds nothing any more."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        self._server = self.offer = None

    def read(self, offer: Offer) -> dict[str, Array]:
        """The tensors of an offer, writable, in memory that they share: of this worker's own copy, where it holds the
        same bytes, else of the holder's.

        Raises: CheckpointError if they are not there, or not what was held.
        """
        data = np.empty(offer.file.size, np.uint8)
        if self._server is not None and self.offer is not None and self.offer.file.sha256 == offer.file.sha256:
            data[:] = np.frombuffer(self._server.data, np.uint8)
        else:
            _fetch(offer, data)
        if hashlib.sha256(data.data).hexdigest() != offer.file.sha256:
            raise CheckpointError(f"{offer.file.path}: sha256 differs")
        return tensors_in(data, offer.file)


def _fetch(offer: Offer, data: npt.NDArray[np.uint8]) -> None:
    """Raises: CheckpointError."""
    connection = http.client.HTTPConnection(offer.host, offer.port, timeout=_SILENT_S)
    try:
        connection.request("GET", "/", headers={"Authorization": f"Bearer {offer.key}"})
        reply = connection.getresponse()
        if reply.status != http.client.OK:
            raise CheckpointError(f"{offer.file.path}: its worker answers {reply.status}")
        start = 0
        while count := reply.readinto(data[start : start + PIECE_BYTES].data):
            start += count
    except (OSError, http.client.HTTPException) as error:
        raise CheckpointError(f"{offer.file.path}: {error or type(error).__name__}") from error
    finally:
        connection.close()
    if start != len(data):
        raise CheckpointError(f"{offer.file.path}: ends early")


class _Server(ThreadingTCPServer):
    """Hands out some bytes to those who have the key. No HTTPServer, which asks for this host's name as it begins."""

    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, host: str, data: memoryview, key: str) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.data, self.key = data, key
        super().__init__((host, 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]
    timeout = _SILENT_S

    def do_GET(self) -> None:
        given = self.headers.get("Authorization", "").encode()
        if not hmac.compare_digest(given, f"Bearer {self.server.key}".encode()):
            self.send_error(http.client.UNAUTHORIZED)
            return
        data = self.server.data
        self.send_response(http.client.OK)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        for start in range(0, len(data), PIECE_BYTES):
            self.wfile.write(data[start : start + PIECE_BYTES])

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: who cannot read says so itself."""
