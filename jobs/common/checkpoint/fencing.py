"""Generations: the fence between a worker group and the ones that came before it.

Each start of a group begins a generation, named by the next number and a random token. Its record lists the checkpoints
that count from then on; what an older group commits later is not on the list, so an old writer that wakes up late is
harmless. This needs no conditional write, which pyarrow does not have.
Of two begun at the same moment the one with the greater token counts.
"""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath

from cluster.core.errors import CheckpointError
from cluster.core.storage import Store
from jobs.common.checkpoint.manifest import SaveName, read_json, write_json

OnDamage = Callable[[str], None]


@dataclass(frozen=True)
class Saves:
    """What lies in a run's checkpoints, oldest first.
    `others` do not count: never committed, or by a writer that came too late."""

    generation: str | None
    """The newest one."""
    counted: tuple[SaveName, ...]
    others: tuple[SaveName, ...]


def newest_generation(store: Store) -> str | None:
    """The generation that may commit now; None before the first."""
    return max(_generations(store), default=None)


def begin_generation(store: Store, on_damage: OnDamage) -> str:
    """Fences off all older generations: from now on only what is committed at this moment, and its own, counts."""
    counted = find_saves(store, on_damage).counted
    number = max((int(name.partition("-")[0]) for name in _generations(store)), default=0) + 1
    generation = f"{number:06d}-{secrets.token_hex(4)}"
    accept(store, generation, counted)
    return generation


def accept(store: Store, generation: str, counted: tuple[SaveName, ...]) -> None:
    """Writes a generation's record."""
    accepted = [save.manifest for save in counted]
    write_json(store, _record(generation), {"created": time.time(), "accepted": accepted})


def find_saves(store: Store, on_damage: OnDamage) -> Saves:
    """Lists all saves, and which of them count."""
    manifests = _saves(store, "manifests", depth=3)
    saves = manifests | _saves(store, "data", depth=4)
    newest = newest_generation(store)
    if newest is None:
        return Saves(None, (), tuple(sorted(saves)))
    accepted = _accepted(store, newest, manifests, on_damage)
    counted = {save for save in saves if save.manifest in accepted} | {save for save in manifests
                                                                       if save.generation == newest}
    return Saves(newest, tuple(sorted(counted)), tuple(sorted(saves - counted)))


@dataclass(frozen=True)
class _Record:
    created: float
    accepted: tuple[str, ...]


def _accepted(store: Store, generation: str, manifests: set[SaveName], on_damage: OnDamage) -> set[str]:
    """The manifests on a generation's list. A damaged list is put together again from the generation before it."""
    try:
        return set(read_json(store, _record(generation), _Record).accepted)
    except (CheckpointError, FileNotFoundError) as error:
        what = error if isinstance(error, CheckpointError) else f"{_record(generation)}: is missing"
        on_damage(f"generation {generation}: {what}: taking the list of the one before it")
    before = max((name for name in _generations(store) if name < generation), default=None)
    if before is None:
        return set()
    own = {save.manifest for save in manifests if save.generation == before}
    return own | _accepted(store, before, manifests, on_damage)


def _generations(store: Store) -> set[str]:
    """Every generation that left a record or a manifest."""
    recorded = {PurePosixPath(file.path).stem for file in store.files("generations", recursive=False)}
    return {name for name in recorded | set(store.folders("manifests")) if name.partition("-")[0].isdigit()}


def _saves(store: Store, top: str, depth: int) -> set[SaveName]:
    """The saves that have a file below a folder: TOP/<generation>/<save>.json, or TOP/<generation>/<save>/<file>."""
    parts = (PurePosixPath(file.path).parts for file in store.files(top))
    names = (SaveName.parse(p[1], p[2].removesuffix(".json")) for p in parts if len(p) == depth)
    return {name for name in names if name is not None}


def _record(generation: str) -> str:
    return f"generations/{generation}.json"
