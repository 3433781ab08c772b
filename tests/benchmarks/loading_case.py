"""What the readers of `loading` read, and what each of them can do."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingImports=false, reportUnknownParameterType=false

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import pyarrow.parquet as pq

from cluster.core.documents import JsonObject
from jobs.common.data.arrow import numpy_column
from tests.benchmarks.photographs import files_of

OURS, TORCH, MOSAICML, LITDATA = "Trainyard", "torch over datasets", "MosaicML Streaming", "LitData"


@dataclass(frozen=True, kw_only=True)
class Case:
    """Pictures, and how a reader keeps them: `pixels`, or JPEG files that it decodes whenever a row is read."""

    rows: int
    side: int
    channels: int
    batch_size: int
    kept: Literal["pixels", "files"]

    @property
    def name(self) -> str:
        return f"{self.side} × {self.side} × {self.channels}, kept as {self.kept}"

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.side, self.side, self.channels

    @property
    def steps(self) -> int:
        return self.rows // self.batch_size


class Reader(Protocol):
    """A loader. The first epoch and step are 0."""

    def epoch(self) -> Iterator[Any]:
        """The next epoch's batches of images, (rows, H, W, C) uint8, or what is left of one after `resume`."""
        ...

    def state(self, epoch: int, step: int) -> JsonObject:
        """From where to go on; called when so many batches of an epoch were taken."""
        ...

    def resume(self, state: JsonObject) -> None: ...


def rows_of(path: str, case: Case) -> Iterator[tuple[Any, int]]:
    """(pixels, or a JPEG file, and label) of each row of a Parquet file."""
    for batch in pq.ParquetFile(path).iter_batches():
        labels = batch.column("label").to_pylist()
        column = batch.column("image")
        images = (column.field("bytes").to_pylist() if case.kept == "files"
                  else numpy_column(column.flatten()).reshape(-1, *case.shape))
        yield from zip(images, labels, strict=True)


def every_row(source: str, case: Case) -> Iterator[tuple[Any, int]]:
    return itertools.chain.from_iterable(rows_of(path, case) for path in files_of(Path(source) / "train"))
