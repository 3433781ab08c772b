"""A wire between two interfaces that delays, and loses, what goes one way: what `tc netem` does,
which not every kernel has.

    python wire.py NEAR FAR SECONDS LOSS     what comes in at NEAR goes out at FAR so much later; back it goes at once

Frames are passed on as the kernel has them: up to 64 KB, to be cut into packets, and summed, further on
(PACKET_VNET_HDR). So a loss is that of a frame.
"""

import contextlib
import random
import select
import socket
import sys
import time
from collections import deque

_SOL_PACKET, _VNET_HEADER, _IGNORE_OUTGOING = 263, 15, 23
_EVERY_PROTOCOL = 3
_LARGEST = 1 << 17
_WAITING = 2048
"""Frames on the way; more are lost, as a router's queue loses them."""


def main(near: str, far: str, delay_s: float, loss: float) -> None:
    host, net = _interface(near), _interface(far)
    waiting: deque[tuple[float, bytes]] = deque()
    while True:
        timeout_s = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        readable, _, _ = select.select([host, net], [], [], timeout_s)
        if net in readable:
            _send(host, net.recv(_LARGEST))
        if host in readable:
            frame = host.recv(_LARGEST)
            if random.random() >= loss and len(waiting) < _WAITING:
                waiting.append((time.monotonic() + delay_s, frame))
        while waiting and waiting[0][0] <= time.monotonic():
            _send(net, waiting.popleft()[1])


def _interface(name: str) -> socket.socket:
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_EVERY_PROTOCOL))
    opened.setsockopt(_SOL_PACKET, _VNET_HEADER, 1)
    opened.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 20)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 << 20)
    opened.bind((name, 0))
    return opened


def _send(interface: socket.socket, frame: bytes) -> None:
    with contextlib.suppress(OSError):  # its queue is full, or it is down: the frame is lost
        interface.send(frame)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
