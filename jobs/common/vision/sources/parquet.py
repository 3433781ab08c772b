"""Parquet as a source: a file, a folder or a pattern;
each fragment is some row groups of one file, read as a stream."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import difflib
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import pyarrow.parquet as pq

from cluster.core.errors import DataError
from cluster.core.storage import FileInfo, Store
from jobs.common.config_groups.data import Layout
from jobs.common.data.arrow import ArrowArray
from jobs.common.data.dataset import SplitName
from jobs.common.data.files import Listing, reading
from jobs.common.data.found.split_names import by_split, not_read
from jobs.common.data.source import FoundFragments, Fragment, Images, ImageSpec, Shape
from jobs.common.picture_rule import PictureRule
from jobs.common.vision.sources.encoded import is_encoded
from jobs.common.vision.sources.pixels import decode_column, first_spec

FRAGMENT_BYTES = 64 << 20
"""Row groups are joined up to this size."""
_STREAM_BYTES = 4 << 20
_THREADS = 8


@dataclass(frozen=True)
class Columns:
    """Which columns hold what, and how picture files in them are decoded."""

    image: str
    label: str
    shape: Shape | None = None
    rule: PictureRule = field(default_factory=PictureRule)


@dataclass(frozen=True)
class ParquetSource:
    files: Listing
    """All files there,"""
    parquet: tuple[FileInfo, ...]
    """and those that are read."""
    columns: Columns
    layout: Layout = "auto"

    @property
    def pictures(self) -> bool:
        path = self.parquet[0].path
        with _opened(self.files.store, path) as file:
            self._check_columns(file.schema_arrow.names, path)
            return is_encoded(file.schema_arrow.field(self.columns.image).type)

    @property
    def listing(self) -> list[tuple[str, int, float]]:
        return replace(self.files, files=self.parquet).identity

    def contents(self) -> list[str]:
        return replace(self.files, files=self.parquet).contents()

    def fragments(self) -> FoundFragments:
        found: dict[SplitName, list[Fragment]] = {}
        groups, unread = by_split(self.files.uri, self.parquet, self.layout)
        with ThreadPoolExecutor(_THREADS) as pool:
            for split, files in groups.items():
                parts = pool.map(self._fragments_of, [file.path for file in files])
                found[split] = [fragment for part in parts for fragment in part]
        return FoundFragments(found, unread | not_read(self.files.files, self.parquet, "files of another format"))

    def _fragments_of(self, path: str) -> list[Fragment]:
        with _opened(self.files.store, path) as file:
            self._check_columns(file.schema_arrow.names, path)
            groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
            sizes = [(group.num_rows, group.total_byte_size) for group in groups]
        fragments: list[Fragment] = []
        start = first = rows = size = 0
        for index, (group_rows, group_bytes) in enumerate(sizes):
            rows, size = rows + group_rows, size + group_bytes
            if size >= FRAGMENT_BYTES or index == len(sizes) - 1:
                groups = tuple(range(start, index + 1))
                fragments.append(ParquetFragment(self.files.store, path, self.columns, groups, first, rows))
                start, first, rows, size = index + 1, first + rows, 0, 0
        return fragments

    def _check_columns(self, present: list[str], path: str) -> None:
        for wanted, option in ((self.columns.image, "image-column"), (self.columns.label, "label-column")):
            if wanted not in present:
                near = difflib.get_close_matches(wanted, present, 1)
                example = near[0] if near else "NAME"
                raise DataError(f"there is no column {wanted!r} in {self.files.store.location(path)}, which has "
                                f"{', '.join(present)}: name it, as in --data.{option} {example}")


@dataclass(frozen=True)
class ParquetFragment:
    store: Store
    path: str
    columns: Columns
    groups: tuple[int, ...]
    first_row: int
    num_rows: int

    def describe(self, row: int) -> str:
        return f"row {self.first_row + row} of {self.store.location(self.path)}"

    def labels(self) -> ArrowArray:
        with _opened(self.store, self.path) as file:
            return file.read_row_groups(self.groups, [self.columns.label], use_threads=False).column(0).combine_chunks()

    def spec(self) -> ImageSpec:
        with _opened(self.store, self.path) as file:
            return first_spec(self._images(file, 1), self.columns.shape, self.columns.rule, self.describe)

    def decode(self, spec: ImageSpec) -> Iterator[Images]:
        row = 0
        with _opened(self.store, self.path) as file:
            for column in self._images(file, spec.batch_rows):
                first = row
                yield decode_column(column, spec, self.columns.shape, self.columns.rule,
                                    lambda i, first=first: self.describe(first + i))
                row += len(column)

    def _images(self, file: pq.ParquetFile, batch_rows: int) -> Iterator[ArrowArray]:
        name = self.columns.image
        kind = file.schema_arrow.field(name).type
        wanted = f"{name}.bytes" if is_encoded(kind) and kind.num_fields else name
        for batch in file.iter_batches(batch_rows, row_groups=list(self.groups), columns=[wanted], use_threads=False):
            yield batch.column(0)


@contextmanager
def _opened(store: Store, path: str) -> Generator[pq.ParquetFile]:
    """An open ParquetFile that is read as a stream. Raises: DataError that names the file, also for errors inside."""
    remedy = "it is not whole Parquet; write it again"
    with reading(store.location(path), remedy), store.reading(path) as stream:
        yield pq.ParquetFile(stream, buffer_size=_STREAM_BYTES, pre_buffer=False)
