"""Preparing data in pieces: each is read, split and written by one task, wherever there is room; nothing else moves.

What a task answers is counts. So the memory of whoever asks does not grow with the data, and what comes out depends on
how the source is cut into pieces, which its files alone decide: never on nodes, tasks or their order.
"""

import hashlib
import itertools
import json
import platform
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from cluster.core.documents import DocumentError, JsonObject, parse_json
from cluster.core.storage import Store
from jobs.common.data.block_layout import BlockLayout
from jobs.common.data.blocks import Measure
from jobs.common.data.dataset import SPLITS, Column, Split, SplitName
from jobs.common.data.prepared import DONE_FOLDER, PLAN_FILE, Say, Writers, fingerprint_of, split_writers

HASHES_FOLDER = "hashes"
_SAY_S = 5.0
T = TypeVar("T")


def in_pieces(items: Sequence[T], size: Callable[[T], int], most: int) -> list[tuple[T, ...]]:
    """Successive items together, so that each piece has at most so many bytes, or one item."""
    pieces: list[tuple[T, ...]] = []
    start = total = 0
    for end, item in enumerate(items):
        if end > start and total + size(item) > most:
            pieces.append(tuple(items[start:end]))
            start, total = end, 0
        total += size(item)
    return [*pieces, tuple(items[start:])] if items else []


def cut(size: int, most: int) -> list[tuple[int, int]]:
    """A file's bytes in parts of about equal size."""
    count = max(1, -(-size // most))
    ends = [size * part // count for part in range(count + 1)]
    return list(itertools.pairwise(ends))


@dataclass
class Teller:
    """Says now and then how far it is, with the speed so far."""

    say: Say | None
    what: str
    total: int
    """Bytes of the source."""

    def following(self, answers: Iterable[JsonObject], sizes: Sequence[int]) -> Generator[JsonObject]:
        """The same answers, one for each piece of so many bytes."""
        began = told = time.monotonic()
        done, hosts = 0, set[str]()
        for answer, size in zip(answers, sizes, strict=True):
            done += size
            now = time.monotonic()
            if self.say and now - told > _SAY_S and done < self.total:
                rate = done / (now - began)
                left = (self.total - done) / rate
                self.say(f"{self.what}: {done / 1e6:,.0f} of {self.total / 1e6:,.0f} MB, {rate / 1e6:.1f} MB/s, about "
                         f"{left:.0f} s left")
                told = now
            hosts |= {answer["host"]} if "host" in answer else set()
            yield answer
        if self.say and len(hosts) > 1:
            self.say(f"{self.what}: {len(sizes):,} pieces on {len(hosts)} hosts in {time.monotonic() - began:.1f} s")


def for_each(items: Sequence[T], work: Callable[[T], JsonObject], *, use_ray: bool) -> Generator[JsonObject]:
    """What `work` answers for each item, in order: in tasks of the cluster, or here. Raises: what `work` does."""
    if use_ray and len(items) > 1:
        from jobs.common.data.ray_map import map_with_ray

        yield from map_with_ray(items, work)
    else:
        yield from map(work, items)


# ── writing ──
@dataclass(frozen=True)
class Writing:
    """Where the pieces of a set go, and what a row is."""

    store: Store
    blocks: str
    columns: tuple[Column, ...]
    num_classes: int
    earlier: tuple[str, ...] = ()
    """Folders in which a process that was stopped has left pieces of the very same."""
    measure: Measure | None = None
    """Of each block of a split."""
    beside: tuple[str, ...] = (HASHES_FOLDER,)
    """Folders in which a piece leaves a file beside its blocks (found/)."""
    hashed: bool = True
    """Whether the answers have digests of all the rows of a piece."""

    def piece(self, number: int, fill: Callable[[Writers], JsonObject]) -> JsonObject:
        """Has `fill` write one piece, unless it is there already. Answers what `fill` does, with rows, digests, and the
        moments of training blocks."""
        for folder in self.earlier:
            if (done := self._done(folder, number)) is not None and self._take_over(folder, number, done):
                return self._commit(number, done)
        with split_writers(self.store, self.blocks, self.columns, self.num_classes, self.measure,
                           f"/{number:06d}", hashed=self.hashed) as writers:
            about = fill(writers)
            finished = {name: writer.finish() for name, writer in writers.items()}
        return self._commit(number, {
            "about": about, "rows": {name: split.num_rows for name, split in finished.items()},
            "class_counts": {name: list(split.class_counts) for name, split in finished.items()},
            "block_rows": finished["train"].block_rows, "host": platform.node(),
            "digests": {name: writer.digest() for name, writer in writers.items()},
            "moments": [of_block.to_json() for of_block in writers["train"].measured]})

    def _commit(self, number: int, answer: JsonObject) -> JsonObject:
        self.store.write_text(_answer_file(self.blocks, number), json.dumps(answer))
        return answer

    def _done(self, folder: str, number: int) -> JsonObject | None:
        try:
            return parse_json(self.store.read_text(_answer_file(folder, number)))
        except (FileNotFoundError, DocumentError):
            return None

    def _take_over(self, folder: str, number: int, done: JsonObject) -> bool:
        """Copies: whoever wrote it may still be there, and give up, and take it away. Returns whether all was there."""
        blocks = [f"{name}/{number:06d}/{BlockLayout.file(block)}" for name in SPLITS
                  for block in range(-(-done["rows"][name] // done["block_rows"]))]
        try:
            for path in (*blocks, *(part_file("", beside, number).lstrip("/") for beside in self.beside)):
                self.store.copy_to(self.store, f"{folder}/{path}", f"{self.blocks}/{path}")
        except FileNotFoundError:
            return False
        return True


def part_file(blocks: str, folder: str, number: int) -> str:
    """Where a piece leaves what is found in its rows, such as their hashes (found/repeats.py)."""
    return f"{blocks}/{folder}/{number:06d}.parquet"


def _answer_file(folder: str, number: int) -> str:
    return f"{folder}/{DONE_FOLDER}/{number:06d}.json"


def unfinished(store: Store, blocks: str, plan: Sequence[object], say: Say | None = None) -> tuple[str, ...]:
    """Folders that another process has begun with the same plan: what decides each piece's content. Leaves this one's
    plan for others to see."""
    digest = hashlib.sha256(json.dumps(plan).encode()).hexdigest()
    store.write_text(f"{blocks}/{PLAN_FILE}", digest)
    others = [folder for folder in store.folders() if folder.startswith("blocks-") and folder != blocks]
    found = tuple(folder for folder in others
                  if store.exists(f"{folder}/{PLAN_FILE}") and store.read_text(f"{folder}/{PLAN_FILE}") == digest)
    done = {file.path.rpartition("/")[2] for folder in found for file in store.files(f"{folder}/{DONE_FOLDER}")}
    if say and done:
        say(f"going on with {len(done):,} pieces that a preparation has left that was stopped")
    return found


def joined(answers: Sequence[JsonObject]) -> tuple[dict[SplitName, Split], dict[SplitName, list[str]]]:
    """The splits that the pieces make together, and the digests of their content, in the order of pieces."""
    splits: dict[SplitName, Split] = {}
    for name in SPLITS:
        rows = tuple(int(answer["rows"][name]) for answer in answers)
        counts = zip(*(answer["class_counts"][name] for answer in answers), strict=True)
        splits[name] = Split(sum(rows), answers[0]["block_rows"], tuple(map(sum, counts)), rows)
    return splits, {name: [answer["digests"][name] for answer in answers] for name in SPLITS}


def older_fingerprint(about: Mapping[str, object], answers: Sequence[JsonObject]) -> JsonObject:
    """For a set's details: the fingerprint that it had when sets were written in one piece, where it is one still."""
    if len(answers) > 1:
        return {}
    return {"_older_fingerprint": fingerprint_of(about, answers[0]["digests"])}


def summed(answers: Sequence[Mapping[str, object]], name: str) -> JsonObject:
    """Of counts by split, which each answer has under `name`."""
    return {split: sum(int(answer[name][split]) for answer in answers) for split in SPLITS}  # type: ignore[index]
