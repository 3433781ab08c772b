"""The embedded default: scikit-learn's 1,797 scans of handwritten digits, bilinear to 28x28, no download."""
# pyright: reportMissingTypeStubs=false

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from jobs.common.data.arrow import ArrowArray, arrow_column
from jobs.common.data.source import FoundFragments, Images, ImageSpec


@dataclass(frozen=True)
class DigitsSource:
    """Always the same rows, so there is nothing to list."""

    pictures = False

    @property
    def listing(self) -> list[tuple[str, int, float]]:
        return [("digits", 1797, 0.0)]

    def contents(self) -> list[str]:
        return []

    def fragments(self) -> FoundFragments:
        return FoundFragments({"train": [DigitsFragment()]})


@dataclass(frozen=True)
class DigitsFragment:
    """All rows of the digits."""

    @property
    def num_rows(self) -> int:
        return 1797

    def describe(self, row: int) -> str:
        return f"row {row} of the embedded digits"

    def labels(self) -> ArrowArray:
        return arrow_column(_table()[:, 64])

    def spec(self) -> ImageSpec:
        return ImageSpec((28, 28, 1), "uint8")

    def decode(self, spec: ImageSpec) -> Iterator[Images]:
        yield Images(enlarge(_table()[:, :64].reshape(-1, 8, 8))[..., None])


def enlarge(scans: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """(n, 8, 8) of 0..16 to (n, 28, 28) of 0..255: bilinear between pixel centres, in integers,
    so the same everywhere."""
    weights = np.zeros((28, 8), np.int64)
    low, rest = np.divmod(4 * np.arange(28) - 5, 14)  # (i + 1/2) * 8/28 - 1/2 = (4 i - 5) / 14
    for i in range(28):
        weights[i, np.clip(low[i], 0, 7)] += 14 - rest[i]
        weights[i, np.clip(low[i] + 1, 0, 7)] += rest[i]
    unit = 14 * 14 * 16
    return ((weights @ scans.astype(np.int64) @ weights.T * 255 + unit // 2) // unit).astype(np.uint8)


def _table() -> npt.NDArray[np.uint8]:
    """(1797, 65): 64 values of 0..16 and the digit.
    The file behind `load_digits`: importing scikit-learn takes 1 to 3 s."""
    spec = importlib.util.find_spec("sklearn")
    assert spec is not None and spec.origin is not None
    return np.loadtxt(Path(spec.origin).parent / "datasets/data/digits.csv.gz", np.uint8, delimiter=",")
