"""IDX files, MNIST's own format, gzipped or not: http://yann.lecun.com/exdb/mnist

Big-endian: two zero bytes, the type, the number of dimensions, each dimension as uint32, then the values,
row after row.
"""
# pyright: reportMissingTypeStubs=false

import gzip
import math
import re
import struct
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cluster.core.errors import DataError
from cluster.core.storage import FileInfo, Store
from jobs.common.arrays import Array
from jobs.common.config_groups.data import Layout
from jobs.common.data.arrow import ArrowArray, arrow_column
from jobs.common.data.dataset import SplitName
from jobs.common.data.files import Listing, reading
from jobs.common.data.found.split_names import by_split, not_read
from jobs.common.data.source import FoundFragments, Fragment, Images, ImageSpec, Shape, different
from jobs.common.vision.sources.pixels import as_pixels

FRAGMENT_BYTES = 64 << 20
IMAGES = re.compile(r"(.*)images([-.])idx[34]-(\w+?)(\.gz)?")
_IDX = re.compile(r"idx\d-\w+?(\.gz)?$")
_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_MOST_DEFLATE = 1032
"""Bytes that one byte of gzip can stand for (RFC 1951: a length of 258 in two bits)."""
_REMEDY = "it is not a whole IDX file; fetch it again"


@dataclass(frozen=True)
class Header:
    dtype: str
    dims: tuple[int, ...]

    @property
    def start(self) -> int:
        """Where the values begin, in bytes."""
        return 4 + 4 * len(self.dims)

    @property
    def row_bytes(self) -> int:
        return math.prod(self.dims[1:]) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class IdxSource:
    """Pairs of files with images and labels."""

    files: Listing
    label_files: Listing
    """Where the labels may be: all files of the folder."""
    layout: Layout = "auto"
    pictures = False

    @property
    def listing(self) -> list[tuple[str, int, float]]:
        return sorted({*self.files.identity, *self.label_files.identity})

    def contents(self) -> list[str]:
        every = sorted({*self.files.files, *self.label_files.files}, key=lambda file: file.path)
        return replace(self.files, files=tuple(every)).contents()

    def fragments(self) -> FoundFragments:
        images = [file for file in self.files.files if IMAGES.fullmatch(file.path)]
        groups, unread = by_split(self.files.uri, images, self.layout)
        labels = {file.path: self._labels_of(file) for files in groups.values() for file in files}
        found: dict[SplitName, list[Fragment]] = {
            split: [fragment for file in files
                    for fragment in _fragments_of(self.files.store, file, labels[file.path])]
            for split, files in groups.items()}
        others = [file for file in self.files.files if not _IDX.search(file.path)]
        return FoundFragments(found, unread | not_read(others, (), "files of another format"))

    def _labels_of(self, file: FileInfo) -> str:
        match = IMAGES.fullmatch(file.path)
        assert match
        name = f"{match[1]}labels{match[2]}idx1-"
        for other in self.label_files.files:
            if re.fullmatch(re.escape(name) + r"\w+?(\.gz)?", other.path):
                return other.path
        raise DataError(f"{self.files.store.location(file.path)} has no labels beside it ({name}ubyte or "
                        f"{name}ubyte.gz): put them there")


@dataclass(frozen=True)
class IdxFragment:
    store: Store
    path: str
    label_path: str
    header: Header
    first_row: int
    num_rows: int

    def describe(self, row: int) -> str:
        return f"image {self.first_row + row} of {self.store.location(self.path)}"

    def labels(self) -> ArrowArray:
        with _opened(self.store, self.label_path) as (stream, header):
            values = _values(stream, header, 0, header.dims[0], self.store.location(self.label_path))
        return arrow_column(_native(values)[self.first_row:self.first_row + self.num_rows])

    def spec(self) -> ImageSpec:
        return ImageSpec(_shape(self.header), "float32" if np.dtype(self.header.dtype).kind == "f" else "uint8")

    def decode(self, spec: ImageSpec) -> Iterator[Images]:
        if _shape(self.header) != spec.shape:
            raise different(_shape(self.header), spec, self.describe(0))
        with _opened(self.store, self.path) as (stream, header):
            for row in range(0, self.num_rows, spec.batch_rows):
                count = min(spec.batch_rows, self.num_rows - row)
                values = _values(stream, header, self.first_row + row, count, self.store.location(self.path))
                yield Images(as_pixels(_native(values), spec, lambda i, row=row: self.describe(row + i)))


def _fragments_of(store: Store, file: FileInfo, label_path: str) -> list[Fragment]:
    """Slices of a plain file; a gzipped one can only be read from its beginning."""
    with _opened(store, file.path) as (_, header):
        rows, row_bytes = header.dims[0], header.row_bytes
    with _opened(store, label_path) as (_, labels):
        if len(labels.dims) != 1 or labels.dims[0] != rows:
            raise DataError(f"{store.location(label_path)} has {'x'.join(map(str, labels.dims))} labels for the {rows} "
                            f"images of {store.location(file.path)}: there must be one for each")
    _shape(header)
    step = rows if file.path.endswith(".gz") else max(1, FRAGMENT_BYTES // row_bytes)
    return [IdxFragment(store, file.path, label_path, header, first, min(step, rows - first))
            for first in range(0, rows, max(step, 1))]


@contextmanager
def _opened(store: Store, path: str) -> Generator[tuple[Any, Header]]:
    """A stream that stands behind the header, and the header. Raises: DataError that names the file."""
    name = store.location(path)
    try:
        with reading(name, _REMEDY), store.reading(path) as raw:
            gzipped = path.endswith(".gz")
            stream = gzip.GzipFile(fileobj=raw) if gzipped else raw
            header = _header(stream, name)
            _check_size(header, raw.size(), gzipped, name)
            yield stream, header
    except zlib.error as error:
        raise DataError(f"{name} cannot be read ({error}): {_REMEDY}") from error


def _header(stream: Any, name: str) -> Header:
    start = stream.read(4)
    if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in _TYPES or not 1 <= start[3] <= 4:
        raise DataError(f"{name} does not begin like an IDX file: {_REMEDY}")
    dims = stream.read(4 * start[3])
    if len(dims) < 4 * start[3]:
        raise DataError(f"{name} ends inside its header: {_REMEDY}")
    return Header(_TYPES[start[2]], struct.unpack(f">{start[3]}I", dims))


def _check_size(header: Header, size: int, gzipped: bool, name: str) -> None:
    """Before anything is allocated for what a header announces. Raises: DataError if the file cannot hold it."""
    announced = header.start + header.dims[0] * header.row_bytes
    if announced > size * _MOST_DEFLATE if gzipped else announced != size:
        raise DataError(f"{name} has {size:,} bytes{' of gzip' if gzipped else ''}, its header announces "
                        f"{announced:,}: {_REMEDY}")


def _shape(header: Header) -> Shape:
    _, *dims = header.dims
    if len(dims) not in (2, 3) or not math.prod(dims):
        raise DataError(f"an IDX file of images has 3 dimensions (or 4), this one {len(header.dims)}: {header.dims}")
    return dims[0], dims[1], dims[2] if len(dims) == 3 else 1


def _values(stream: Any, header: Header, first: int, count: int, name: str) -> Array:
    """`count` rows from row `first`, flat, as they are in the file."""
    stream.seek(header.start + first * header.row_bytes)
    data = stream.read(count * header.row_bytes)
    if len(data) != count * header.row_bytes:
        raise DataError(f"{name} is cut short: {header.dims[0]} rows are announced, it ends in row "
                        f"{first + len(data) // header.row_bytes}: {_REMEDY}")
    if first + count == header.dims[0] and stream.read(1):  # reading on to the end also checks a gzip file's checksum
        raise DataError(f"{name} is longer than its header announces: {_REMEDY}")
    return np.frombuffer(data, header.dtype)


def _native(values: Array) -> Array:
    return values.astype(values.dtype.newbyteorder("="), copy=False)
