"""Which split a file belongs to, by its name or its folder's; what could mean two things is refused, with both."""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from cluster.core.errors import DataError
from cluster.core.storage import FileInfo
from jobs.common.config_groups.data import Layout
from jobs.common.data.dataset import SPLITS, SplitName

Groups = dict[SplitName, list[FileInfo]]
Unread = dict[str, list[str]]
"""Names of files that are not read, by reason."""
_WORDS: dict[str, SplitName] = {
    "train": "train", "training": "train", "trn": "train",
    "val": "validation", "valid": "validation", "validation": "validation", "dev": "validation",
    "test": "test", "testing": "test", "eval": "test", "t10k": "test"}
_SHOWN = 3
NO_SPLIT = "files not named after a split"


def split_of(name: str) -> SplitName | None:
    """The split that one part of a path is named after, by a word of it: `Training`, `seg_train`, `test-0001.csv`. None
    where there is no such word, or words of two splits."""
    found: set[SplitName] = {_WORDS[word] for word in re.split(r"[^a-z0-9]+", name.lower()) if word in _WORDS}
    return found.pop() if len(found) == 1 else None


def by_split(uri: str, files: Sequence[FileInfo], layout: Layout, *, by_name: bool = True) -> tuple[Groups, Unread]:
    """Files by the split that they are named after; else all are training data.

    by_name: the file's own name counts, where its folder says nothing. layout: `--data.layout`.
    Raises: DataError where some are named after splits and some are not, and `layout` does not say what that means.
    """
    depth = _common_folders(files)
    named = [(_split_of_path(file.path, depth, by_name), file) for file in files]
    groups: Groups = {split: group for split in SPLITS if (group := [file for own, file in named if own == split])}
    others = [file.path for own, file in named if own is None]
    if layout == "one" or not groups or (len(groups) == 1 and not others):
        return {"train": list(files)}, {}
    if layout == "splits" and "train" in groups:
        return groups, {NO_SPLIT: others} if others else {}
    if others or "train" not in groups:
        raise DataError(_both_readings(uri, groups, others))
    return groups, {}


def not_read(files: Sequence[FileInfo], chosen: Sequence[FileInfo], reason: str) -> Unread:
    """Those that were not chosen, under a reason."""
    read = {file.path for file in chosen}
    others = [file.path for file in files if file.path not in read]
    return {reason: others} if others else {}


def _split_of_path(path: str, depth: int, by_name: bool) -> SplitName | None:
    *folders, name = path.split("/")
    own = split_of(folders[depth]) if len(folders) > depth else None
    return own or (split_of(name) if by_name else None)


def _common_folders(files: Sequence[FileInfo]) -> int:
    """How many folders all files lie below."""
    paths = [PurePosixPath(file.path).parent.parts for file in files]
    shared = 0
    while all(len(path) > shared for path in paths) and len({path[shared] for path in paths}) == 1 and paths:
        shared += 1
    return shared


def _both_readings(uri: str, groups: Groups, others: Sequence[str]) -> str:
    splits = ", ".join(f"{split} {_some([file.path for file in files])}" for split, files in groups.items())
    if "train" not in groups and not others:
        return (f"data {uri!r} could mean two things: its files are named after splits, but none is for training "
                f"({splits}). Name the training data with --data.uri, and these with --data.val-uri or "
                "--data.test-uri; or pass --data.layout one, and all of them are split here")
    if "train" not in groups:
        return (f"data {uri!r} could mean two things: some files are named after a split ({splits}), and the others "
                f"are not ({_some(others)}). Name each split with --data.uri, --data.val-uri and --data.test-uri; or "
                "pass --data.layout one, and all of them are split here")
    return (f"data {uri!r} could mean two things: some files are named after splits ({splits}), and others are not "
            f"({_some(others)}). Pass --data.layout splits to leave the others out, or --data.layout one to split all "
            "of them here, whatever they are called")


def _some(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return f"{', '.join(paths[:_SHOWN])}{more}"
