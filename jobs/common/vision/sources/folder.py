"""A folder of image files, one sub-folder a class, perhaps below folders named after the splits."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false

import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from cluster.core.errors import DataError
from cluster.core.storage import FileInfo, Store
from jobs.common.config_groups.data import ClassFolder, Layout
from jobs.common.data.arrow import ArrowArray
from jobs.common.data.dataset import SplitName
from jobs.common.data.files import FORMATS, Listing, is_litter, reading
from jobs.common.data.found.split_names import by_split, not_read
from jobs.common.data.source import FoundFragments, Fragment, Images, ImageSpec
from jobs.common.picture import BEGINNING, ENDINGS
from jobs.common.picture_rule import PictureRule
from jobs.common.vision.sources.encoded import decode_images, encoded_spec

FRAGMENT_FILES = 512
_SHOWN, _THREADS = 5, 8


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
    layout: Layout = "auto"
    class_folder: ClassFolder = "auto"
    pictures = True

    @property
    def listing(self) -> list[tuple[str, int, float]]:
        return self.files.identity

    def contents(self) -> list[str]:
        return self.files.contents()

    def fragments(self) -> FoundFragments:
        pictures = self._pictures()
        splits, unread = by_split(self.files.uri, pictures, self.layout, by_name=False)
        depth = self._class_depth([file.path for file in splits["train"]])
        found: dict[SplitName, list[Fragment]] = {}
        for split, files in splits.items():
            self._check_classes(files, depth)
            found[split] = [FolderFragment(self.files.store, tuple(file.path for file in files[i:i + FRAGMENT_FILES]),
                                           depth, self.rule)
                            for i in range(0, len(files), FRAGMENT_FILES)]
        return FoundFragments(found, unread | not_read(self.files.files, pictures, "files that are no pictures"))

    def _pictures(self) -> list[FileInfo]:
        files = self.files.files
        with ThreadPoolExecutor(_THREADS) as pool:
            taken = list(pool.map(functools.partial(is_picture, self.files.store), [file.path for file in files]))
        return [file for file, is_taken in zip(files, taken, strict=True) if is_taken]

    def _class_depth(self, paths: Sequence[str]) -> int:
        """Which folder of a training picture's path is its class: the first that is not the same for all."""
        folders = [path.split("/")[:-1] for path in paths]
        least = min(map(len, folders))
        depth = next((i for i in range(least) if len({of[i] for of in folders}) > 1), max(0, least - 1))
        inner = _inner_names(folders, depth)
        if inner is None or self.class_folder == "outer":
            return depth
        if self.class_folder == "auto":
            outer = sorted({of[depth] for of in folders})
            raise DataError(f"data {self.files.uri!r} could mean two things: its folders {_listed(outer)} each hold "
                            f"the folders {_listed(inner)}. Pass --data.class-folder inner if those are the classes, "
                            "or --data.class-folder outer if the folders above them are")
        return depth + 1

    def _check_classes(self, files: Sequence[FileInfo], depth: int) -> None:
        """Every image is in a class's folder, and every folder has one."""
        store = self.files.store
        loose = next((file.path for file in files if file.path.count("/") <= depth), None)
        if loose is not None:
            raise DataError(f"{store.location(loose)} is in no sub-folder, so it has no class: move it into one. Data "
                            f"may be {FORMATS}")
        present = {tuple(file.path.split("/")[:depth + 1]) for file in files}
        for above in sorted({path[:-1] for path in present}):
            known = {path[-1] for path in present if path[:-1] == above}
            empty = [name for name in store.folders("/".join(above)) if name not in known and not is_litter(name)]
            if empty:
                where = store.location("/".join((*above, empty[0])))
                raise DataError(f"folder {where} holds no image: a sub-folder is a class; fill it or remove it")


def _inner_names(folders: Sequence[Sequence[str]], depth: int) -> list[str] | None:
    """The folders below every class's folder, where those are the same two or more, and no picture lies beside them."""
    below: dict[str, set[str]] = {}
    for of in folders:
        if len(of) < depth + 2:
            return None
        below.setdefault(of[depth], set()).add(of[depth + 1])
    same = {frozenset(names) for names in below.values()}
    return sorted(same.pop()) if len(below) > 1 and len(same) == 1 and len(next(iter(same))) > 1 else None


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (" …" if len(names) > _SHOWN else "")


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
        return encoded_spec(((self.describe(row), self._read(path)) for row, path in enumerate(self.paths)), self.rule)

    def decode(self, spec: ImageSpec) -> Iterator[Images]:
        for row in range(0, len(self.paths), spec.batch_rows):
            paths = self.paths[row:row + spec.batch_rows]
            files = [self._read(path) for path in paths]
            yield decode_images(files, spec, self.rule, lambda i, row=row: self.describe(row + i))

    def _read(self, path: str) -> bytes:
        with reading(self.store.location(path)):
            return self.store.read_bytes(path)
