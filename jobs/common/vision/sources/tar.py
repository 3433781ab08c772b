"""WebDataset as a source of pictures: tar files whose samples have one picture and a label.

A label is a sample's `.cls`, a number or a name; or what its `.json` has under the label column; or its folder.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false

import itertools
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import pyarrow as pa

from cluster.core.documents import parse_json
from cluster.core.errors import DataError
from cluster.core.storage import FileInfo, Store
from jobs.common.config_groups.data import Layout
from jobs.common.data.arrow import ArrowArray
from jobs.common.data.dataset import SplitName
from jobs.common.data.files import Listing, plain_name
from jobs.common.data.found.split_names import by_split, not_read
from jobs.common.data.source import FoundFragments, Fragment, Images, ImageSpec
from jobs.common.data.webdataset import Part, Sample, samples
from jobs.common.picture import ENDINGS
from jobs.common.picture_rule import PictureRule
from jobs.common.vision.sources.encoded import decode_images, encoded_spec

FRAGMENT_BYTES = 64 << 20
"""A tar that is not packed is read in parts of about this size."""
_THREADS = 8
_LABELS = {"cls", "json"}
Label = int | str


@dataclass(frozen=True)
class TarSource:
    files: Listing
    """All files there,"""
    tars: tuple[FileInfo, ...]
    """and those that are read."""
    label_column: str
    rule: PictureRule
    layout: Layout = "auto"
    pictures = True

    @property
    def listing(self) -> list[tuple[str, int, float]]:
        return replace(self.files, files=self.tars).identity

    def contents(self) -> list[str]:
        return replace(self.files, files=self.tars).contents()

    def fragments(self) -> FoundFragments:
        """Reads the labels, and with them the names of all members."""
        found: dict[SplitName, list[Fragment]] = {}
        groups, unread = by_split(self.files.uri, self.tars, self.layout)
        with ThreadPoolExecutor(_THREADS) as pool:
            for split, files in groups.items():
                found[split] = [fragment for part in pool.map(self._fragments_of, files) for fragment in part]
        return FoundFragments(found, unread | not_read(self.files.files, self.tars, "files of another format"))

    def _fragments_of(self, file: FileInfo) -> list[Fragment]:
        store, starts, labels = self.files.store, list[int](), list[Label]()
        kind: str | None = None
        for sample in samples(store, file.path, _LABELS.__contains__):
            name = f"{store.location(file.path)}, sample {sample.key}"
            _picture(sample, name)
            kind = kind or _kind(sample, self.label_column, name)
            labels.append(_label(sample, kind, self.label_column, name))
            starts.append(sample.start)
        column = _as_column(labels)
        firsts = [0] if plain_name(file.path) != file.path.lower() else _cut(starts)
        ends = itertools.pairwise([*firsts, len(labels)])
        return [TarFragment(store, file.path, self.rule, (starts[first], starts[end] if end < len(starts)
                                                          else file.size) if len(firsts) > 1 else None,
                            first, end - first, column.slice(first, end - first)) for first, end in ends]


def _cut(starts: list[int]) -> list[int]:
    """The first samples of parts of about `FRAGMENT_BYTES`."""
    firsts = [0]
    for row, start in enumerate(starts):
        if start - starts[firsts[-1]] >= FRAGMENT_BYTES:
            firsts.append(row)
    return firsts


def _is_picture(ending: str) -> bool:
    return f".{ending}" in ENDINGS


def _picture(sample: Sample, name: str) -> str:
    """The ending of its picture. Raises: DataError."""
    found = [ending for ending in sample.members if _is_picture(ending)]
    if len(found) != 1:
        there = ", ".join(f".{ending}" for ending in sample.members)
        raise DataError(f"{name} has {len(found) or 'no'} picture{'s' * (len(found) > 1)} ({there}): it needs one, and "
                        "its members must lie one after another in the tar (tar --sort=name)")
    return found[0]


# ── labels ──
def _kind(sample: Sample, column: str, name: str) -> str:
    """Where the labels of a tar are: where those of its first sample are."""
    if "cls" in sample.data:
        return "cls"
    if "json" in sample.data and column in _object(sample, name):
        return "json"
    if "/" in sample.key:
        return "folder"
    raise DataError(f"{name} has no label: give each sample a .cls, or a .json with {column!r} (another name: "
                    "--data.label-column), or lay it in a folder of its class")


def _label(sample: Sample, kind: str, column: str, name: str) -> Label:
    """Raises: DataError."""
    if kind == "folder" and "/" in sample.key:
        return sample.key.split("/")[-2]
    value: object = None
    if kind == "cls" and "cls" in sample.data:
        try:
            value = sample.data["cls"].decode().strip()
        except UnicodeDecodeError as error:
            raise DataError(f"{name}: its .cls is not UTF-8: write the number or the name of its class") from error
        if re.fullmatch(r"[+-]?\d{1,18}", str(value)):
            value = int(str(value))
    if kind == "json" and "json" in sample.data:
        value = _object(sample, name).get(column)
        value = int(value) if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()) else value
    if not isinstance(value, int | str) or value == "" or (isinstance(value, int) and value.bit_length() > 63):
        what = {"cls": "a .cls with a number or a name", "folder": "a folder of its class",
                "json": f"a .json with a text or a whole number in {column!r}"}[kind]
        raise DataError(f"{name} has no label: it needs {what}, as the first of its tar has"
                        + (f", and has {value!r:.50}" if value is not None else ""))
    return value


def _object(sample: Sample, name: str) -> dict[str, object]:
    try:
        return parse_json(sample.data["json"].decode())
    except ValueError as error:
        raise DataError(f"{name}: its .json is no JSON object ({error}): mend it, or leave it out") from error


def _as_column(labels: list[Label]) -> ArrowArray:
    """Numbers where all are, else texts."""
    if all(isinstance(label, int) for label in labels):
        return pa.array(labels, pa.int64())
    return pa.array([str(label) for label in labels], pa.string())


@dataclass(frozen=True)
class TarFragment:
    store: Store
    path: str
    rule: PictureRule
    part: Part | None
    first_row: int
    num_rows: int
    column: ArrowArray = field(compare=False)
    """The labels."""

    def describe(self, row: int) -> str:
        return f"sample {self.first_row + row} of {self.store.location(self.path)}"

    def labels(self) -> ArrowArray:
        return self.column

    def spec(self) -> ImageSpec:
        return encoded_spec(self._pictures(), self.rule)

    def decode(self, spec: ImageSpec) -> Iterator[Images]:
        pictures = self._pictures()
        while batch := list(itertools.islice(pictures, spec.batch_rows)):
            names = [name for name, _ in batch]
            yield decode_images([data for _, data in batch], spec, self.rule, names.__getitem__)

    def _pictures(self) -> Iterator[tuple[str, bytes]]:
        """What to call each, and its bytes."""
        for sample in samples(self.store, self.path, _is_picture, self.part):
            ending = _picture(sample, f"{self.store.location(self.path)}, sample {sample.key}")
            yield f"{self.store.location(self.path)}, member {sample.members[ending]}", sample.data[ending]
