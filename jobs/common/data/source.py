"""The interface of a data source: listed at once, then read in fragments that any process can decode on its own."""
# pyright: reportMissingTypeStubs=false

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from cluster.core.errors import DataError
from jobs.common.arrays import Array
from jobs.common.data.arrow import ArrowArray
from jobs.common.data.dataset import SplitName
from jobs.common.data.found.bad_rows import BadRow
from jobs.common.data.found.split_names import Unread

Shape = tuple[int, int, int]
Where = Callable[[int], str]
"""What to call a row in a message, by its index."""

BATCH_BYTES = 8 << 20
"""Decoded bytes that a fragment hands out at a time."""


@dataclass(frozen=True)
class ImageSpec:
    """What every image of a data set must be."""

    shape: Shape
    """Height, width, channels."""
    dtype: Literal["uint8", "float32"]
    encoded: bool = False
    """Whether they come as picture files, and not as numbers."""

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize

    @property
    def batch_rows(self) -> int:
        """Rows of about `BATCH_BYTES`."""
        return max(1, BATCH_BYTES // self.row_bytes)

    def __str__(self) -> str:
        return f"{size(self.shape)} {self.dtype}"


@dataclass(frozen=True)
class Images:
    """Successive images."""

    pixels: Array
    """(n, H, W, C)"""
    files: Sequence[bytes | None] = ()
    """The picture files that they are decoded from; none where they came as numbers."""
    bad: Mapping[int, BadRow] = field(default_factory=dict[int, BadRow])
    """Those that cannot be read, by their indices; their pixels are 0."""


class Fragment(Protocol):
    """Successive rows of a source. It can be pickled; it opens what it reads when it is asked for something."""

    @property
    def num_rows(self) -> int: ...

    def describe(self, row: int) -> str:
        """What to call one of its rows in a message: its file, and its place in it."""
        ...

    def labels(self) -> ArrowArray:
        """The labels as an Arrow array (rows,). Raises: DataError."""
        ...

    def spec(self) -> ImageSpec:
        """What its first image is. Raises: DataError."""
        ...

    def decode(self, spec: ImageSpec) -> Iterator[Images]:
        """Its rows in order, about `spec.batch_rows` at a time.
        Raises: DataError if one is not as `spec`."""
        ...


@dataclass(frozen=True)
class FoundFragments:
    """What a source has."""

    by_split: dict[SplitName, list[Fragment]]
    """Sorted by path, under `train` unless it is split by itself."""
    unread: Unread = field(default_factory=Unread)
    """Files that are not read."""


class Source(Protocol):
    """One URI of data."""

    @property
    def pictures(self) -> bool:
        """Whether it may hold picture files, so that their rule decides the content too."""
        ...

    @property
    def listing(self) -> list[tuple[str, int, float]]:
        """What its content is known by, cheaply: (location, size, mtime) of each file, sorted."""
        ...

    def contents(self) -> list[str]:
        """Hashes of what is in its files, cheaply; none where its content never changes."""
        ...

    def fragments(self) -> FoundFragments:
        """Raises: DataError."""
        ...


def different(found: tuple[int, ...], spec: ImageSpec, name: str) -> DataError:
    """The error for an image that is not as the first."""
    return DataError(f"{name} is {size(found)}, the first image is {size(spec.shape)} (height x width x channels): all "
                     "images must have one size; resize them")


def size(shape: tuple[int, ...]) -> str:
    """28x28x1"""
    return "x".join(str(n) for n in shape)
