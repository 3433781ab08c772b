"""Pictures that compress like photographs: cuts of random fields with a spectrum of 1/f³, one field a class."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import functools
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

CLASSES = 10
QUALITY = 90
_FIELD = 512
_GROUP_ROWS = 64
Pixels = npt.NDArray[np.uint8]


@functools.cache
def fields(channels: int) -> npt.NDArray[np.float32]:
    """(classes, side, side, channels): mean 0, standard deviation 1; gray for the most part."""
    draw = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(_FIELD)[:, None], np.fft.rfftfreq(_FIELD)[None])
    frequency[0, 0] = np.inf
    noise = draw.normal(size=(CLASSES, 1 + channels, _FIELD, _FIELD))
    smooth = np.fft.irfft2(np.fft.rfft2(noise) / frequency**1.5)
    smooth /= smooth.std(axis=(2, 3), keepdims=True)
    return np.moveaxis(0.9 * smooth[:, :1] + 0.3 * smooth[:, 1:], 1, -1).astype(np.float32)


def cut(draw: np.random.Generator, label: int, height: int, width: int, channels: int) -> Pixels:
    """(height, width, channels) of a class."""
    of_class = fields(channels)[label]
    y, x = draw.integers(0, _FIELD - height), draw.integers(0, _FIELD - width)
    picture = of_class[y : y + height, x : x + width] * draw.uniform(35, 55) + draw.uniform(90, 160)
    grain = draw.integers(-2, 3, picture.shape)
    return np.clip(picture + grain, 0, 255).astype(np.uint8)


def pictures(rows: int, sides: tuple[int, int], channels: int, seed: int) -> Iterator[tuple[Pixels, int]]:
    """(pixels, label): each side is drawn from the two given, inclusive."""
    draw = np.random.default_rng(seed)
    for _ in range(rows):
        height, width = draw.integers(sides[0], sides[1] + 1, 2)
        label = int(draw.integers(CLASSES))
        yield cut(draw, label, int(height), int(width), channels), label


def as_jpeg(pixels: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def write_parquet(path: Path, found: Iterator[tuple[Pixels, int]], *, as_files: bool) -> int:
    """A Parquet file with the columns image and label, in row groups of 64. Returns the bytes of the images.

    as_files: image is a struct with the JPEG file as `bytes`, or else a flat list of numbers.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    images, labels = list[bytes](), list[int]()
    for pixels, label in found:
        images.append(as_jpeg(pixels) if as_files else pixels.tobytes())
        labels.append(label)
    if as_files:
        column = pa.array([{"bytes": image, "path": None} for image in images],
                          pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    else:
        values = pa.array(np.frombuffer(b"".join(images), np.uint8))
        column = pa.FixedSizeListArray.from_arrays(values, len(images[0]))
    pq.write_table(pa.table({"image": column, "label": pa.array(labels, pa.int64())}), path,
                   row_group_size=_GROUP_ROWS, use_dictionary=False, compression="none")
    return sum(map(len, images))


def files_of(folder: Path) -> Sequence[str]:
    return sorted(map(str, folder.glob("*.parquet")))
