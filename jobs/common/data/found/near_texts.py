"""Finds texts that are nearly the same, in all of a set: those that have most runs of five successive words in common.

A word is letters and digits, whatever their case; of a script that puts no spaces between words, a character. A shorter
text is one run. How much two have in common is their share of common runs (Jaccard, see shingles.py).

Each piece of a set leaves two files: keys of its rows, sorted, and of each row at most 256 runs. Then tasks pair rows
that have a key in common, one range of the keys at a time, and others compare those pairs. Whoever asks holds 16 bytes
for each such pair, 48 for each that is as near as is asked for, and nothing of other rows. What it finds is a function
of texts and ids, whatever the pieces. Of those just as near as is asked for one in a hundred may be missed.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import functools
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from cluster.core.documents import JsonObject
from cluster.core.storage import Store
from jobs.common.arrays import Array
from jobs.common.data.found.repeats import Repeats, count_repeats, in_ranges, read_between, write_sorted
from jobs.common.data.found.shingles import FUNCTIONS, Ids, Shingles, candidates, common, functions_in_band
from jobs.common.data.pieces import for_each, part_file

WORDS = 5
KEYS_FOLDER, RUNS_FOLDER = "near-keys", "near-runs"
_NO_SPACES = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(f"[{_NO_SPACES}]|[^\\W{_NO_SPACES}]+")
_KEYS, _RUNS = ("key", "row_id"), ("row_id", "run", "split", "label")
_PAIRS_AT_ONCE = 20_000


@dataclass(frozen=True)
class NearTexts:
    """What was found. repeats: rows of which a group are nearly the same, each as another one of it."""

    repeats: Repeats
    dropped: Ids = field(default_factory=lambda: np.empty(0, np.int64))
    """Ids of rows that are to be left out, sorted,"""
    stays: Ids = field(default_factory=lambda: np.empty(0, np.int64))
    """and of the one that stays for each: the first of their group."""
    splits: tuple[int, ...] = (0, 0, 0)
    """How many of those are of each split."""


def shingles_of(texts: Sequence[str]) -> Shingles:
    """The runs of words of some texts."""
    known: dict[str, int] = {}
    words = [_WORD.findall(text.lower()) for text in texts]
    for of_text in words:
        for word in of_text:
            if word not in known:
                known[word] = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
    flat = np.fromiter((known[word] for of_text in words for word in of_text), np.uint64)
    return Shingles.of(flat, np.array(list(map(len, words)), np.int64), WORDS)


def write_near(store: Store, blocks: str, part: int, texts: Sequence[str], splits: Array, labels: Array | None,
               row_ids: Array, share: float) -> None:
    """Of a part of a set's rows, which have one value of each. Rows of split -1 do not count."""
    chosen = np.flatnonzero(splits >= 0)
    runs = shingles_of([texts[row] for row in chosen.tolist()])
    keys, rows = runs.keys(share)
    order = np.argsort(keys, kind="stable")
    write_sorted(store, part_file(blocks, KEYS_FOLDER, part), _KEYS, (keys[order], row_ids[chosen][rows[order]]))
    kept = [runs.least(row) for row in range(len(chosen))]
    owners = np.repeat(chosen, [len(each) for each in kept])
    codes = np.zeros(len(splits), np.int32) if labels is None else labels.astype(np.int32)
    write_sorted(store, part_file(blocks, RUNS_FOLDER, part), _RUNS, (
        row_ids[owners], np.concatenate([*kept, np.empty(0, np.uint64)]), splits[owners].astype(np.int8),
        codes[owners]))


def find_near(store: Store, blocks: str, firsts: Sequence[int], rows: int, share: float, *, without: Ids, drop: bool,
              use_ray: bool) -> NearTexts:
    """Of all parts together, whose files are gone then. firsts: the id of each part's first row. without: ids of rows
    that do not count, as others have their content."""
    try:
        pairs = _near_pairs(store, blocks, firsts, rows, share, use_ray)
    finally:
        for folder in (KEYS_FOLDER, RUNS_FOLDER):
            store.delete_folder(f"{blocks}/{folder}")
    group, split, label, row = _grouped(pairs)
    there = ~np.isin(row, without)
    group, split, label, row = (column[there] for column in (group, split, label, row))
    if not drop:
        return NearTexts(replace(count_repeats(group, split, label, row), near=True))
    _, first, inverse = np.unique(group, return_index=True, return_inverse=True)
    stays = np.minimum.reduceat(row, first)[inverse] if len(row) else row
    gone = np.flatnonzero(row != stays)
    gone = gone[np.argsort(row[gone])]
    counts = np.bincount(split[gone].astype(np.int64), minlength=3)
    return NearTexts(Repeats(near=True), row[gone], stays[gone], tuple(counts.tolist()))


def _near_pairs(store: Store, blocks: str, firsts: Sequence[int], rows: int, share: float, use_ray: bool) -> Array:
    """(m, 2, 3): of both rows of each pair its id, split and label."""
    keys = rows * (FUNCTIONS // functions_in_band(share))
    likely = functools.partial(_candidates_between, store, blocks, len(firsts))
    found = [np.array(answer["pairs"], np.int64).reshape(-1, 2)
             for answer in for_each(in_ranges(keys), likely, use_ray=use_ray)]
    pairs = np.unique(np.concatenate(found), axis=0)
    parts = [pairs[start : start + _PAIRS_AT_ONCE] for start in range(0, len(pairs), _PAIRS_AT_ONCE)]
    compare = functools.partial(_nearest, store, blocks, tuple(firsts), share)
    near = [np.array(answer["pairs"], np.int64).reshape(-1, 2, 3)
            for answer in for_each(parts, compare, use_ray=use_ray)]
    return np.concatenate([*near, np.empty((0, 2, 3), np.int64)])


def _candidates_between(store: Store, blocks: str, parts: int, bounds: tuple[int, int]) -> JsonObject:
    """Runs in a task: of the keys in a range, pairs of rows."""
    keys, rows = (np.concatenate(each) for each in zip(*(
        read_between(store, part_file(blocks, KEYS_FOLDER, part), _KEYS, bounds) for part in range(parts)),
        strict=True))
    return {"pairs": candidates(keys, rows).tolist()}


def _nearest(store: Store, blocks: str, firsts: Sequence[int], share: float, pairs: Ids) -> JsonObject:
    """Runs in a task: of some pairs those that have so much in common, each row with its split and label."""
    wanted, known = np.unique(pairs), dict[int, tuple[Array, int, int]]()
    parts = np.searchsorted(np.array(firsts), wanted, "right") - 1
    for part in np.unique(parts).tolist():
        ids = wanted[parts == part]
        row, run, split, label = read_between(store, part_file(blocks, RUNS_FOLDER, part), _RUNS,
                                              (int(ids[0]), int(ids[-1])))
        for each, start, end in zip(ids.tolist(), np.searchsorted(row, ids).tolist(),
                                    np.searchsorted(row, ids, "right").tolist(), strict=True):
            known[each] = run[start:end].copy(), int(split[start]), int(label[start])
    return {"pairs": [[(row, *known[row][1:]) for row in pair] for pair in pairs.tolist()
                      if common(known[pair[0]][0], known[pair[1]][0]) >= share]}


def _grouped(pairs: Array) -> tuple[Array, Array, Array, Array]:
    """Group, split, label and id of each row that is in a pair; rows of pairs that share a row are one group. In the
    order of groups, splits and ids."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    row, first, place = np.unique(pairs[:, :, 0], return_index=True, return_inverse=True)
    split, label = (pairs[:, :, column].ravel()[first] for column in (1, 2))
    ends = place.reshape(-1, 2)
    graph = coo_array((np.ones(len(ends), np.int8), (ends[:, 0], ends[:, 1])), shape=(len(row), len(row)))
    group = connected_components(graph, directed=False)[1] if len(row) else row
    _, lowest, group = np.unique(group, return_index=True, return_inverse=True)
    order = np.lexsort((row, split, lowest[group]))
    return lowest[group][order], split[order], label[order], row[order]
