"""TensorFlow's profiler for chosen steps of a run: `--run.profile`."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportAttributeAccessIssue=false

import gzip
import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from cluster.core.documents import JsonObject
from jobs.cnn.framework import tf
from jobs.cnn.internals import profile_in
from jobs.common.step_profile import Operation

_ON_CPU = re.compile(r"[^\s:]+:(\w+)")
"""How TensorFlow calls an operation of a graph: name and kind. What else it writes down of the CPU is its own doing."""


class _Event(NamedTuple):
    """Times in microseconds, from the first one."""

    name: str
    start: float
    length: float


class TensorflowProfiler:
    """A `Profiler` of jobs/common/step_profile.py."""

    title = "TensorFlow's profiler"

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="trainyard-")
        self._lines: list[tuple[str, str, list[_Event]]] = []
        """Processor, thread or stream, and what it did."""

    def start(self) -> None:
        options = tf.profiler.experimental.ProfilerOptions(host_tracer_level=2, python_tracer_level=0)
        tf.profiler.experimental.start(self._folder.name, options)

    def marked(self, step: int, count: int) -> AbstractContextManager[object]:
        steps = f"step {step}" if count == 1 else f"steps {step} to {step + count - 1}"
        return tf.profiler.experimental.Trace(steps, step_num=step, _r=1)

    def stop(self) -> None:
        tf.profiler.experimental.stop()
        with self._folder as folder:
            for path in sorted(Path(folder).rglob("*.xplane.pb")):
                self._lines += _lines(profile_in(path.read_bytes()))

    def operations(self) -> Sequence[Operation]:
        spent = defaultdict[tuple[str, bool], list[float]](list)
        for processor, _, events in self._lines:
            on_device = processor.startswith("/device:")
            for name, own in _own_times(events):
                if on_device:
                    spent[name, True].append(own)
                elif found := _ON_CPU.fullmatch(name):
                    spent[found[1], False].append(own)
        return [Operation(name=name, calls=len(each), **{"device_ms" if on_device else "self_ms": sum(each) / 1000})
                for (name, on_device), each in spent.items()]

    def trace(self) -> bytes:
        events: list[JsonObject] = []
        processors = list(dict.fromkeys(processor for processor, _, _ in self._lines))
        for thread, (processor, name, found) in enumerate(self._lines):
            place = {"pid": processors.index(processor), "tid": thread}
            events += [{"ph": "M", "name": "process_name", "args": {"name": processor}, **place},
                       {"ph": "M", "name": "thread_name", "args": {"name": name}, **place}]
            events += [{"ph": "X", "name": each.name, "ts": each.start, "dur": each.length, **place} for each in found]
        return gzip.compress(json.dumps({"traceEvents": events}).encode(), mtime=0)


def _lines(space: Any) -> list[tuple[str, str, list[_Event]]]:
    """Of an XSpace, whose lines begin at nanoseconds and whose events have picoseconds."""
    first = min((line.timestamp_ns for plane in space.planes for line in plane.lines), default=0)
    return [(plane.name, line.display_name or line.name, [
        _Event(plane.event_metadata[event.metadata_id].name,
               (line.timestamp_ns - first) / 1e3 + event.offset_ps / 1e6, event.duration_ps / 1e6)
        for event in line.events]) for plane in space.planes for line in plane.lines]


def _own_times(events: Sequence[_Event]) -> Iterator[tuple[str, float]]:
    """Of each event of a thread, without those within it."""
    own, within = [each.length for each in events], list[int]()
    for place in sorted(range(len(events)), key=lambda place: (events[place].start, -events[place].length)):
        while within and events[within[-1]].start + events[within[-1]].length <= events[place].start:
            within.pop()
        if within:
            own[within[-1]] -= events[place].length
        within.append(place)
    return zip((each.name for each in events), own, strict=True)
