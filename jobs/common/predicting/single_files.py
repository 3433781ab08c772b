"""Pieces whose rows are no lines of a table: pictures and plain texts, samples of tars, and what is embedded."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.core.storage import Store
from jobs.common.data.csv_config import conversion
from jobs.common.data.files import reading
from jobs.common.data.webdataset import samples
from jobs.common.picture import ENDINGS
from jobs.common.predicting.rows import BadRow, OfFile, Rows
from jobs.common.tables.sources import EmbeddedTable
from jobs.common.vision.sources.digits import DigitsFragment


@dataclass(frozen=True)
class FilesPiece:
    """Files that are a row each: pictures, or plain texts."""

    store: Store
    paths: tuple[str, ...]
    column: str
    """What their content is called: `image`, or `text`."""
    encoding: str | None = None
    """Of texts; None: the content stays bytes, of pictures."""

    @property
    def name(self) -> str:
        return self.store.location(self.paths[0])

    def count(self) -> int:
        return len(self.paths)

    def call(self, number: int) -> tuple[str, int]:
        return self.store.location(self.paths[number]), 0

    def rows(self, at_once: int) -> Iterator[Rows]:
        for start in range(0, len(self.paths), at_once):
            paths = list(self.paths[start : start + at_once])
            contents: list[bytes | str] = []
            bad: list[BadRow] = []
            for place, path in enumerate(paths):
                with reading(self.store.location(path)):
                    data = self.store.read_bytes(path)
                try:
                    contents.append(data if self.encoding is None else data.decode(self.encoding))
                except UnicodeDecodeError as error:
                    bad.append((start + place, f"is not {str(self.encoding).upper()} (byte {error.start}): "
                                               f"{conversion(data)}"))
            odd = {number for number, _ in bad}
            there = [number for number in range(start, start + len(paths)) if number not in odd]
            kind = pa.binary() if self.encoding is None else pa.string()
            batch = pa.RecordBatch.from_arrays([pa.array([self.paths[i] for i in there], pa.string()),
                                                pa.array(contents, kind)], names=["path", self.column])
            yield Rows(batch, np.array(there, np.int64), bad)


@dataclass(frozen=True)
class TarPiece(OfFile):
    """WebDataset's samples of pictures, with their `cls` where they have one."""

    def count(self) -> int:
        return sum(1 for _ in samples(self.store, self.path, lambda _: False))

    def rows(self, at_once: int) -> Iterator[Rows]:
        found = enumerate(samples(self.store, self.path, lambda ending: ending == "cls" or f".{ending}" in ENDINGS))
        while some := list(itertools.islice(found, at_once)):
            pictures = [[data for ending, data in sample.data.items() if ending != "cls"] for _, sample in some]
            good = [place for place, of in enumerate(pictures) if len(of) == 1]
            columns = [pa.array([some[place][1].key for place in good], pa.string()),
                       pa.array([some[place][1].data.get("cls", b"").decode(errors="replace").strip() or None
                                 for place in good], pa.string()),
                       pa.array([pictures[place][0] for place in good], pa.binary())]
            bad = [(some[place][0], f"has {len(of)} pictures: it needs one") for place, of in enumerate(pictures)
                   if len(of) != 1]
            yield Rows(pa.RecordBatch.from_arrays(columns, names=["key", "cls", "image"]),
                       np.array([some[place][0] for place in good], np.int64), bad)


@dataclass(frozen=True)
class EmbeddedPiece:
    """A set that comes with the libraries."""

    name: str

    def count(self) -> int:
        return self._batch().num_rows

    def call(self, number: int) -> tuple[str, int]:
        return self.name, number

    def rows(self, at_once: int) -> Iterator[Rows]:
        batch = self._batch()
        for start in range(0, batch.num_rows, at_once):
            part = batch.slice(start, at_once)
            yield Rows(part, np.arange(start, start + part.num_rows))

    def _batch(self) -> Any:
        if self.name != "digits":
            return next(EmbeddedTable(self.name).batches())
        digits = DigitsFragment()
        pixels = next(digits.decode(digits.spec())).pixels
        return pa.RecordBatch.from_arrays(
            [pa.FixedSizeListArray.from_arrays(pa.array(pixels.reshape(-1)), pixels[0].size), digits.labels()],
            names=["image", "label"])
