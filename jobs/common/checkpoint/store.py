"""Contract 4, the reading side: which checkpoints of a run count, which is the newest intact one,
and what may be deleted.

Our manifest is the only truth (checkpoint_manifest.py), a generation's record fences off late writers
(checkpoint_generations.py), and workers write through checkpoint_writer.py.
A driver that starts a group of workers does

    checkpoints = Checkpoints(run_store.child("checkpoints"))
    generation = checkpoints.begin_generation()              # from here on no older worker can change what counts
    checkpoint = checkpoints.newest_intact(warn)             # names what is damaged and falls back to the one before it
"""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from cluster.core.errors import CheckpointError
from cluster.core.storage import Store
from jobs.common.arrays import Array
from jobs.common.checkpoint import fencing
from jobs.common.checkpoint.fencing import OnDamage, Saves
from jobs.common.checkpoint.manifest import Checkpoint, FileEntry, SaveName, read_manifest
from jobs.common.checkpoint.safetensors_image import Tensors, damage, read_tensors

__all__ = ["Checkpoint", "Checkpoints", "FileEntry", "Tensors"]

_log = logging.getLogger(__name__)
_PARALLEL_READS = 4


class Checkpoints:
    """The checkpoints of one run. `store` is <run>/checkpoints."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._begun: str | None = None
        self._resumed: SaveName | None = None
        self._damages: list[str] = []

    def begin_generation(self) -> str:
        """The name of a new generation, for the writers of the group of workers about to start.
        Fences off all older ones."""
        self._begun = fencing.begin_generation(self._store, self._damages.append)
        return self._begun

    def current_generation(self) -> str | None:
        """The newest generation; None before the first."""
        return fencing.newest_generation(self._store)

    def committed(self) -> list[Checkpoint]:
        """Those that count and have a readable manifest, newest first; their files are not looked at."""
        return list(self._readable(_ignore))

    def newest_intact(self, on_damage: OnDamage) -> Checkpoint | None:
        """The newest one whose every file has the size and sha256 that its manifest states; None if there is none.

        Newest means committed last. Each damaged or unfinished one on the way to it is named through on_damage. If this
        object began the newest generation, they no longer count from then on,
        so pruning does not take them for good ones.

        Raises: NewerVersionError if a newer Trainyard wrote one on the way: to skip it would lose steps.
        """
        while self._damages:
            on_damage(self._damages.pop(0))  # met when the generation began, and mended by it
        saves = fencing.find_saves(self._store, on_damage)
        bad: set[SaveName] = set()
        checkpoint = None
        for save in sorted((*saves.counted, *saves.others), reverse=True):
            checkpoint, damages = self._examine(save, counts=save in saves.counted)
            for what in damages:
                on_damage(f"checkpoint at step {save.step}: {what}")
            if checkpoint is not None:
                break
            bad.add(save)
        self._resumed = checkpoint.name if checkpoint else None
        if bad & set(saves.counted) and self._begun is not None and self._begun == saves.generation:
            fencing.accept(self._store, self._begun, tuple(save for save in saves.counted if save not in bad))
        return checkpoint

    def best(self, on_damage: OnDamage = _log.warning) -> Checkpoint | None:
        """The intact one with the greatest metric, the earliest of equals; None if none was made at an evaluation."""
        for checkpoint in self._by_metric():
            damages = self.damages(checkpoint)
            if not damages:
                return checkpoint
            for what in damages:
                on_damage(f"checkpoint at step {checkpoint.step}: {what}")
        return None

    def damages(self, checkpoint: Checkpoint) -> list[str]:
        """What is wrong with its files, one line each; none if it is intact. Reads all of them."""
        with ThreadPoolExecutor(_PARALLEL_READS) as pool:
            found = pool.map(partial(damage, self._store), checkpoint.files)
            return [what for what in found if what is not None]

    def load(self, checkpoint: Checkpoint, rank: int = 0) -> dict[str, Array]:
        """The tensors that a rank wrote, verified while they are read; they share memory of the file's size.

        Raises: CheckpointError if the file is not what was written, or no such rank wrote one.
        """
        return read_tensors(self._store, checkpoint.part(rank))

    def prune(self, keep_last: int, *, generation: str | None = None) -> None:
        """Deletes all but the newest `keep_last` intact ones, the best one, and the one that this object resumed from.

        Here intact means that all files are there in full size. What unfinished, fenced-off or damaged saves left goes
        too. A writer names its generation: where a newer one has begun it deletes nothing.
        """
        saves = fencing.find_saves(self._store, _ignore)
        if generation is None:
            generation = saves.generation
        unwanted = self._unwanted(saves, keep_last)
        for save in unwanted:
            if fencing.newest_generation(self._store) != generation:
                return
            self._store.delete(save.manifest)  # first, so that no manifest ever names files that are being deleted
            self._store.delete_folder(save.folder)
        left = {save.generation for save in {*saves.counted, *saves.others} - set(unwanted)}
        for empty in {save.generation for save in unwanted} - left - {generation}:
            self._store.delete_folder(f"manifests/{empty}")
            self._store.delete_folder(f"data/{empty}")

    def _unwanted(self, saves: Saves, keep_last: int) -> list[SaveName]:
        kept = self._newest_whole(saves, keep_last) | {self._resumed}
        if not kept & set(saves.counted):
            return []  # nothing intact: a person may still want what there is
        best = next(self._by_metric(), None)
        kept.add(best.name if best else None)
        last = max(saves.counted)
        in_flight = {save for save in saves.others if save.generation == saves.generation and save > last}
        return [save for save in (*saves.counted, *saves.others) if save not in kept | in_flight]

    def _newest_whole(self, saves: Saves, keep_last: int) -> set[SaveName | None]:
        sizes = {file.path: file.size for file in self._store.files("data")}
        whole: set[SaveName | None] = set()
        for checkpoint in self._readable(_ignore, saves):
            if all(sizes.get(entry.path) == entry.size for entry in checkpoint.files):
                whole.add(checkpoint.name)
            if len(whole) == keep_last:
                break
        return whole

    def _by_metric(self) -> Iterator[Checkpoint]:
        """Yields those that have a metric, the greatest first, of equals the earliest."""
        measured = [(c.metric, c) for c in reversed(self.committed()) if c.metric is not None]
        yield from (checkpoint for _, checkpoint in sorted(measured, key=lambda pair: -pair[0]))

    def _readable(self, on_damage: OnDamage, saves: Saves | None = None) -> Iterator[Checkpoint]:
        saves = saves or fencing.find_saves(self._store, on_damage)
        for save in reversed(saves.counted):
            try:
                yield read_manifest(self._store, save)
            except (FileNotFoundError, CheckpointError):
                continue

    def _examine(self, save: SaveName, *, counts: bool) -> tuple[Checkpoint | None, list[str]]:
        """The checkpoint if it is intact, else what is wrong with it."""
        if not counts:
            if self._store.exists(save.manifest):
                return None, ["does not count: committed after a newer generation had begun, or found damaged before"]
            return None, [f"{save.folder}: has no manifest: never committed, or its manifest was deleted"]
        try:
            checkpoint = read_manifest(self._store, save)
        except FileNotFoundError:
            return None, [f"{save.manifest}: is missing"]
        except CheckpointError as error:
            return None, [str(error)]
        damages = self.damages(checkpoint)
        return (None, damages) if damages else (checkpoint, [])


def _ignore(_: str) -> None:
    pass


