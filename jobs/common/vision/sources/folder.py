"""A folder of image files, one sub-folder a class, perhaps below folders named after the splits."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false

import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from cluster.core.errors import DataError
from cluster.core.storage import FileInfo, Store
from jobs.common.arrays import Array
from jobs.common.data.arrow import ArrowArray
from jobs.common.data.dataset import SplitName
from jobs.common.data.files import FORMATS, Listing, by_split, reading
from jobs.common.data.prepared import Say
from jobs.common.data.source import Fragment, ImageSpec
from jobs.common.vision.picture import BEGINNING, ENDINGS
from jobs.common.vision.picture_rule import PictureRule
from jobs.common.vision.sources.encoded import decode_images, encoded_spec

FRAGMENT_FILES = 512
LITTER = ("thumbs.db", "ehthumbs.db", "desktop.ini")
"""What Windows puts into folders, beside hidden files such as .DS_Store."""
_SAID, _THREADS = 5, 8


def is_picture(store: Store, path: str) -> bool:
    """By its ending, or if its name has none by its first bytes."""
    name = path.rpartition("/")[2].lower()
    if "." in name:
        return name.endswith(ENDINGS)
    with reading(store.location(path)), store.reading(path) as stream:
        return BEGINNING.match(stream.read(16)) is not None


@dataclass(frozen=True)
class FolderSource:
    files: Listing
    rule: PictureRule
    say: Say | None = None
    """Hears which files are left out."""
    pictures = True

    @property
    def listing(self) -> list[tuple[str, int, float]]:
        return self.files.identity

    def fragments(self) -> dict[SplitName, list[Fragment]]:
        splits = by_split(self._pictures(), by_name=False)
        depth = 1 if len(splits) > 1 else 0
        found: dict[SplitName, list[Fragment]] = {}
        for split, files in splits.items():
            self._check_classes(files, depth)
            found[split] = [FolderFragment(self.files.store, tuple(file.path for file in files[i:i + FRAGMENT_FILES]),
                                           depth, self.rule)
                            for i in range(0, len(files), FRAGMENT_FILES)]
        return found

    def _pictures(self) -> list[FileInfo]:
        files = self.files.files
        with ThreadPoolExecutor(_THREADS) as pool:
            taken = list(pool.map(functools.partial(is_picture, self.files.store), [file.path for file in files]))
        left = [file.path for file, is_taken in zip(files, taken, strict=True) if not is_taken]
        if left and self.say:
            more = ", …" if len(left) > _SAID else ""
            self.say(f"{self.files.uri}: {len(left):,} of {len(files):,} files are no pictures that are read, and left "
                     f"out: {', '.join(left[:_SAID])}{more}")
        return [file for file, is_taken in zip(files, taken, strict=True) if is_taken]

    def _check_classes(self, files: Sequence[FileInfo], depth: int) -> None:
        """Every image is in a class's folder, and every folder has one."""
        store = self.files.store
        loose = next((file.path for file in files if file.path.count("/") <= depth), None)
        if loose is not None:
            raise DataError(f"{store.location(loose)} is in no sub-folder, so it has no class: move it into one. Data "
                            f"may be {FORMATS}")
        above = files[0].path.rsplit("/")[0] if depth else ""
        present = {file.path.split("/")[depth] for file in files}
        empty = [name for name in store.folders(above) if name not in present and not name.startswith((".", "_"))]
        if empty:
            where = store.location(f"{above}/{empty[0]}".lstrip("/"))
            raise DataError(f"folder {where} holds no image: a sub-folder is a class; fill it or remove it")


@dataclass(frozen=True)
class FolderFragment:
    store: Store
    paths: tuple[str, ...]
    depth: int
    """Which part of a path is the class."""
    rule: PictureRule

    @property
    def num_rows(self) -> int:
        return len(self.paths)

    def describe(self, row: int) -> str:
        return self.store.location(self.paths[row])

    def labels(self) -> ArrowArray:
        return pa.array([path.split("/")[self.depth] for path in self.paths], pa.string())

    def spec(self) -> ImageSpec:
        return encoded_spec(self._read(self.paths[0]), self.describe(0), self.rule)

    def decode(self, spec: ImageSpec) -> Iterator[Array]:
        for row in range(0, len(self.paths), spec.batch_rows):
            paths = self.paths[row:row + spec.batch_rows]
            encoded = (self._read(path) for path in paths)
            yield decode_images(encoded, len(paths), spec, self.rule, lambda i, row=row: self.describe(row + i))

    def _read(self, path: str) -> bytes:
        with reading(self.store.location(path)):
            return self.store.read_bytes(path)
