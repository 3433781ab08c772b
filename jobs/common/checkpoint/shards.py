"""How the ranks that write parts of one checkpoint tell rank 0 about them: a small file beside each part."""

import json
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

from cluster.core.documents import JsonObject, parse_json
from cluster.core.errors import CheckpointError, NonFiniteStateError
from cluster.core.loop_clock import LoopClock
from cluster.core.storage import Store
from jobs.common.checkpoint.manifest import FileEntry, SaveName, read_json, write_json

_GRACE_S = 5.0
"""How long others have for their parts when this rank is about to end."""


def announce(store: Store, save: SaveName, rank: int, part: FileEntry | NonFiniteStateError) -> None:
    """Tells rank 0 that this rank's part is written, or that it is refused."""
    content = {"file": asdict(part)} if isinstance(part, FileEntry) else {"refused": str(part)}
    write_json(store, save.note(rank), content)


def collect(store: Store, save: SaveName, world_size: int, timeout_s: float,
            abandoned: threading.Event) -> list[FileEntry]:
    """Waits for the parts of all ranks but 0.

    Raises: NonFiniteStateError if a rank refused, CheckpointError if one is missing after the timeout,
    or sooner when abandoned.
    """
    missing, parts, pause_s = set(range(1, world_size)), dict[int, FileEntry](), 0.02
    clock = LoopClock()
    began = clock.now
    while True:
        parts |= _new_parts(store, save, missing)
        missing -= parts.keys()
        if not missing:
            return [parts[rank] for rank in sorted(parts)]
        if abandoned.is_set():
            timeout_s = min(timeout_s, _GRACE_S)
        if clock.look() - began > timeout_s:
            who = ", ".join(map(str, sorted(missing)))
            raise CheckpointError(
                f"checkpoint at step {save.step} is not committed: rank {who} of {world_size} did not write its part "
                f"within {timeout_s:g} s: see the log of that worker, and whether it reaches {store.location()}"
            )
        time.sleep(pause_s)
        pause_s = min(0.5, pause_s * 1.5)


def plain_state(state: Mapping[str, object]) -> JsonObject:
    """A copy as JSON gives it back: keys are strings, tuples are lists, NumPy's numbers are Python's.

    Raises: NonFiniteStateError if it holds NaN or infinity.
    """
    try:
        return parse_json(json.dumps(state, allow_nan=False, default=_python_number))
    except ValueError as error:
        raise NonFiniteStateError(f"the state of a checkpoint may not hold NaN or infinity: {state!r:.500}") from error


@dataclass(frozen=True)
class _Note:
    """What a rank tells of its part: the file, or why there is none."""

    file: FileEntry | None = None
    refused: str | None = None


def _new_parts(store: Store, save: SaveName, missing: set[int]) -> dict[int, FileEntry]:
    there = {PurePosixPath(file.path).name for file in store.files(save.folder, recursive=False)}
    found: dict[int, FileEntry] = {}
    for rank in sorted(missing):
        if PurePosixPath(save.note(rank)).name not in there:
            continue
        try:
            note = read_json(store, save.note(rank), _Note)
        except (CheckpointError, FileNotFoundError):
            continue  # a network file system may show it before all of it is there
        if note.refused is not None or note.file is None:
            raise NonFiniteStateError(f"rank {rank}: {note.refused}")
        found[rank] = note.file
    return found


def _python_number(value: Any) -> object:
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"the state of a checkpoint holds JSON values, not {type(value).__name__}")
