"""What TensorBoard shows of a folder of event files: its own rule of what is taken back, and nothing of its package."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def series(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """By tag the steps and values, in the order in which they were written."""
    found: dict[str, list[tuple[int, float]]] = {}
    starts = 0
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for event in events(path):
            if event.HasField("session_log"):
                assert event.session_log.status == event.session_log.START
                starts += 1
            if event.HasField("session_log") and starts > 1:  # the first one takes nothing back
                found = {tag: [point for point in points if point[0] < event.step] for tag, points in found.items()}
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def events(path: Path) -> Iterator[Any]:
    """The events of a file, after the one that says its version."""
    from tensorboardX.crc32c import crc32c
    from tensorboardX.proto.event_pb2 import Event

    def checked(data: bytes, masked: bytes) -> bytes:
        crc = crc32c(data)
        assert struct.unpack("<I", masked)[0] == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
        return data

    data, place, first = path.read_bytes(), 0, True
    while place < len(data):
        (length,) = struct.unpack("<Q", checked(data[place : place + 8], data[place + 8 : place + 12]))
        body = checked(data[place + 12 : place + 12 + length], data[place + 12 + length : place + 16 + length])
        place += 16 + length
        event = Event.FromString(body)
        assert event.file_version == ("brain.Event:2" if first else "")
        if not first:
            yield event
        first = False


def of_history(history: list[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """The same, of the rows of a run's history."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in sorted(history, key=lambda row: row["step"]):
        for name, value in row.items():
            if name not in ("step", "epoch", "kind"):
                tag = name.replace("_", "/", 1) if name.startswith(("train_", "validation_")) else name
                found.setdefault(tag, []).append((row["step"], struct.unpack("f", struct.pack("f", value))[0]))
    return found
