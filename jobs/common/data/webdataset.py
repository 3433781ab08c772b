"""WebDataset: tar files in which successive members of one name, up to its first dot, are a sample.

    for sample in samples(store, "train-000.tar", {"txt", "cls"}.__contains__):
        sample.data["txt"]

A tar is read forwards, a member at a time, and nothing is put on disk. What tarfile passes over without a word is
refused: an end that is missing, and bytes inside that are no header, both of which would be fewer rows. So are members
that no data set needs: links, devices, names that leave the folder, and pickles, which run programs when they are read.
"""

import io
import tarfile
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any, cast

from cluster.core.errors import DataError
from cluster.core.storage import Store
from jobs.common.data.files import is_litter, plain_name, reading, unpacked

MOST_MEMBER = 1 << 30
"""Bytes of a member, which is read whole."""
_PICKLES = {"pkl", "pickle", "pyd", "pth", "pt", "joblib", "dill"}
_REMEDY = "it is not a whole tar file; write it again, or fetch it again"
_LOCAL_BYTES, _REMOTE_BYTES = 1 << 16, 4 << 20
"""Read at a time: what is passed over is skipped on a file system; elsewhere a request costs more than bytes."""
Wanted = Callable[[str], bool]
Part = tuple[int, int]
"""The first byte, at which a sample begins, and the one after the last."""


@dataclass(frozen=True)
class Sample:
    """Members of one name."""

    key: str
    """The name, with its folders."""
    start: int
    """Its first byte in the tar."""
    members: dict[str, str] = field(default_factory=dict[str, str])
    """Their names, by their endings in small letters: `jpg`, `cls`."""
    data: dict[str, bytes] = field(default_factory=dict[str, bytes])
    """What is in those that were asked for, by their endings."""


def is_tar(path: str) -> bool:
    """Packed or not."""
    return plain_name(path).endswith(".tar")


def samples(store: Store, path: str, wanted: Wanted, part: Part | None = None) -> Iterator[Sample]:
    """Those of a tar, or of a part of one, in order. wanted: which endings are read. Raises: DataError."""
    name, sample = store.location(path), None
    with _opened(store, path, part) as tape:
        for member in _members(tape, name, part):
            place, _, ending = member.name.rpartition("/")[2].partition(".")
            key = f"{member.name.rpartition('/')[0]}/{place}".lstrip("/")
            if sample is None or key != sample.key:
                if sample is not None:
                    yield sample
                sample = Sample(key, member.offset)
            _add(sample, ending.lower(), member, tape, name, wanted)
        if sample is not None:
            yield sample


def _add(sample: Sample, ending: str, member: tarfile.TarInfo, tape: "_Tape", name: str, wanted: Wanted) -> None:
    if ending in sample.members:
        raise DataError(f"{name}: the sample {sample.key} has two members .{ending}: give each sample its own name")
    sample.members[ending] = member.name
    if not wanted(ending):
        return
    if member.size > MOST_MEMBER:
        raise DataError(f"{name}, member {member.name} has {member.size:,} bytes, more than the {MOST_MEMBER >> 30} "
                        "GiB that are read in one go: make it smaller")
    sample.data[ending] = tape.read(member.size)
    if len(sample.data[ending]) < member.size:
        raise DataError(f"{name} ends inside its member {member.name}: {_REMEDY}")


def _members(tape: "_Tape", name: str, part: Part | None) -> Iterator[tarfile.TarInfo]:
    """The files, each while the tape stands before its content."""
    with tarfile.TarFile(fileobj=cast(IO[bytes], tape), encoding="utf-8") as tar:
        while (member := tar.next()) is not None and (part is None or member.offset < part[1]):
            cast(Any, tar).members.clear()  # it would keep them all
            member.name = member.name.removeprefix("./")
            if _is_data(member, name):
                yield member
    if member is None and tape.last != bytes(tarfile.BLOCKSIZE):
        where = f"is damaged behind byte {tape.tell():,}" if tape.last else "ends too early"
        raise DataError(f"{name} {where}: {_REMEDY}")


def _is_data(member: tarfile.TarInfo, name: str) -> bool:
    """Raises: DataError for what has no place in data."""
    parts = member.name.split("/")
    what = (" leaves the folder that it is in" if member.name.startswith("/") or ".." in parts
            else " is a link" if member.issym() or member.islnk()
            else " is a device or a pipe" if member.isdev()
            else " is of no kind that is read" if not (member.isreg() or member.isdir()) or member.issparse()
            else " has a name that is not UTF-8" if not _is_text(member.name) else None)
    if what is not None:
        raise DataError(f"{name}, member {member.name!r}{what}: write the tar without it")
    if member.isdir() or any(map(is_litter, parts)) or "." not in parts[-1]:
        return False
    if _PICKLES & set(parts[-1].lower().split(".")[1:]):
        raise DataError(f"{name}, member {member.name!r} is a pickle, which may run any program when it is read: write "
                        "what it holds as text, JSON or a picture, or write the tar without it")
    return True


def _is_text(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


@contextmanager
def _opened(store: Store, path: str, part: Part | None) -> Generator["_Tape"]:
    name = store.location(path)
    try:
        with reading(name, _REMEDY), unpacked(store, path) as stream:
            is_packed = plain_name(path) != path.lower()
            yield _Tape(stream, part[0] if part else 0, is_seekable=not is_packed, is_local=store.is_local)
    except tarfile.TarError as error:
        raise DataError(f"{name} cannot be read ({error}): {_REMEDY}") from error


class _Tape:
    """What tarfile reads, forwards only."""

    def __init__(self, stream: Any, start: int, *, is_seekable: bool, is_local: bool) -> None:
        if start:
            stream.seek(start)
        self._step = _LOCAL_BYTES if is_local else _REMOTE_BYTES
        self._stream, self._at, self._is_seekable = io.BufferedReader(stream, self._step), start, is_seekable
        self.last = b""
        """What was read last: of a whole tar that has been read to its end, a block of zeros."""

    def read(self, size: int) -> bytes:
        if size > MOST_MEMBER:  # also of a header that announces a long name
            raise tarfile.ReadError(f"it announces {size:,} bytes at once")
        self.last = self._stream.read(size)
        self._at += len(self.last)
        return self.last

    def tell(self) -> int:
        return self._at

    def seek(self, place: int) -> None:
        if self._is_seekable and place - self._at > self._step:
            self._stream.seek(place - self._at, io.SEEK_CUR)
            self._at = place
        while self._at < place and (data := self._stream.read(min(self._step, place - self._at))):
            self._at += len(data)
