"""Whatever is wrong with the data is one clear DataError, raised before or while preparing,
and nothing stays in storage."""

import gzip
import io
import math
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cluster.core.errors import ConfigError, DataError
from cluster.core.storage import Store
from jobs.common.vision.config import ImageDataConfig
from jobs.common.vision.prepare import prepare

ROWS = 12
IMAGES = np.arange(ROWS * 9, dtype=np.uint8).reshape(ROWS, 3, 3)
LABELS = [n % 2 for n in range(ROWS)]


def _table(path: Path, images: Any = None, labels: Any = None, **options: int) -> None:
    path.parent.mkdir(exist_ok=True)
    images = pa.array(IMAGES.tolist()) if images is None else images
    pq.write_table(pa.table({"image": images, "label": LABELS if labels is None else labels}), path, **options)


def _encoded(pixels: np.ndarray, form: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def _png(shape: tuple[int, ...] = (3, 3)) -> bytes:
    return _encoded(np.zeros(shape, np.uint8), "PNG")


def _picture(path: Path, data: bytes | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_png() if data is None else data)


def _pictures(folder: Path) -> None:
    for row in range(ROWS):
        _picture(folder / str(row % 2) / f"{row}.png")


def _idx(folder: Path, images: bytes | None = None, labels: bytes | None = None, ending: str = "") -> None:
    folder.mkdir()
    header = struct.pack(">4B3I", 0, 0, 8, 3, ROWS, 3, 3)
    (folder / f"train-images-idx3-ubyte{ending}").write_bytes(images or header + IMAGES.tobytes())
    (folder / "train-labels-idx1-ubyte").write_bytes(labels or struct.pack(">4BI", 0, 0, 8, 1, ROWS) + bytes(LABELS))


def _with(row: int, value: Any) -> pa.Array:
    """Images of floats, one pixel of a row replaced."""
    images = IMAGES.astype(float).tolist()
    images[row][1][1] = value
    return pa.array(images)


def _replaced(row: int, value: Any) -> list[Any]:
    images: list[Any] = IMAGES.tolist()
    images[row] = value
    return images


def _corrupt_page(path: Path) -> None:
    _table(path, pa.array([bytes(IMAGES[0].tobytes()) * 400] * ROWS))
    data = bytearray(path.read_bytes())
    data[8:40] = b"\xff" * 32
    path.write_bytes(data)


def _whole_gzip() -> bytes:
    return gzip.compress(struct.pack(">4B3I", 0, 0, 8, 3, ROWS, 3, 3) + IMAGES.tobytes())


def _bad_checksum() -> bytes:
    data = bytearray(_whole_gzip())
    data[-6] ^= 0xFF
    return bytes(data)


Case = tuple[Callable[[Path], Any], str]
CASES: dict[str, Case] = {
    "missing path": (lambda p: None, r"no such file or folder \(.*/in\)"),
    "empty folder": (lambda p: p.mkdir(), r"no files in .*/in: give Parquet"),
    "unknown format": (lambda p: _picture(p / "a.csv"), r"cannot tell .*\(a\.csv .*give Parquet"),
    "no rows": (lambda p: _table(p / "a.parquet", pa.array([], pa.list_(pa.uint8())), []), r"holds no rows"),
    "no rows, one row group": (lambda p: (_table(p / "a.parquet"),
                                          _table(p / "b.parquet", pa.array([], pa.list_(pa.uint8())), []),
                                          (p / "a.parquet").unlink()), r"holds no rows"),
    "not parquet": (lambda p: _picture(p / "a.parquet", b"nonsense" * 10),
                    r"a\.parquet cannot be read .*not whole Parquet"),
    "cut parquet": (lambda p: (_table(p / "a.parquet"),
                               _picture(p / "a.parquet", (p / "a.parquet").read_bytes()[:-20])),
                    r"a\.parquet cannot be read"),
    "corrupt page": (lambda p: (p.mkdir(), _corrupt_page(p / "a.parquet")), r"a\.parquet"),
    "image column missing": (lambda p: _table(p / "a.parquet"),
                             r"no column 'imagr' .*has image, label: .*image-column image"),
    "class with one row": (lambda p: _table(p / "a.parquet", labels=["a"] * 11 + ["rare"]),
                           r"class 'rare' has 1 row, too few.* 3"),
    "class with two rows": (lambda p: _table(p / "a.parquet", labels=["a"] * 10 + ["b"] * 2), r"class 'b' has 2 rows"),
    "one class": (lambda p: _table(p / "a.parquet", labels=["a"] * ROWS), r"one class only \('a'\)"),
    "negative label": (lambda p: _table(p / "a.parquet", labels=[*LABELS[:7], -1, *LABELS[8:]]),
                       r"is -1 in row 7 of .*a\.parquet"),
    "label gap": (lambda p: _table(p / "a.parquet", labels=[n * 2 for n in LABELS]),
                  r"up to 2 but never is 1 .*2.* row 1 "),
    "labels from one": (lambda p: _table(p / "a.parquet", labels=[n + 1 for n in LABELS]), r"up to 2 but never is 0"),
    "fraction": (lambda p: _table(p / "a.parquet", labels=[0.5, *map(float, LABELS[1:])]), r"is 0\.5 in row 0 of"),
    "NaN label": (lambda p: _table(p / "a.parquet", labels=[*map(float, LABELS[1:]), math.nan]),
                  r"is nan in row 11 of"),
    "null label": (lambda p: _table(p / "a.parquet", labels=[*LABELS[:5], None, *LABELS[6:]], row_group_size=4),
                   r"empty \(null\) in row 5 of"),
    "list label": (lambda p: _table(p / "a.parquet", labels=[[n] for n in LABELS]),
                   r"of type list.*integers 0 to C-1 or text"),
    "text and numbers": (lambda p: (_table(p / "a.parquet"), _table(p / "b.parquet", labels=["x", "y"] * 6)),
                         r"text .* numbers"),
    "pixel too large": (lambda p: _table(p / "a.parquet", pa.array(_replaced(4, [[0, 300, 0]] * 3))),
                        r"row 4 of .* value 300: .*255"),
    "pixel negative": (lambda p: _table(p / "a.parquet", pa.array(_replaced(4, [[0, -1, 0]] * 3)), row_group_size=3),
                       r"row 4 of .* value -1"),
    "NaN pixel": (lambda p: _table(p / "a.parquet", _with(6, math.nan), row_group_size=4),
                  r"row 6 of .*not a number \(NaN\)"),
    "infinite pixel": (lambda p: _table(p / "a.parquet", _with(7, -math.inf)), r"row 7 of .*infinite"),
    "too large for float32": (lambda p: _table(p / "a.parquet", _with(8, 1e300)), r"row 8 of .*infinite"),
    "null image": (lambda p: _table(p / "a.parquet", pa.array(_replaced(3, None))), r"row 3 of .*empty \(null\)"),
    "null pixel": (lambda p: _table(p / "a.parquet", pa.array(_replaced(3, [[1, None, 3]] * 3))),
                   r"row 3 of .*empty \(null\)"),
    "two sizes": (lambda p: _table(p / "a.parquet", pa.array(_replaced(5, [[1, 2, 3]] * 4))),
                  r"row 5 of .* is 4x3, .* is 3x3"),
    "two widths": (lambda p: _table(p / "a.parquet", pa.array(_replaced(5, [[1, 2]] * 3))),
                   r"row 5 of .* is 3x2, .* is 3x3"),
    "two sizes in two files": (lambda p: (_table(p / "a.parquet"),
                                          _table(p / "b.parquet", pa.array([[[1, 2]] * 2] * ROWS))),
                               r"row 0 of .*b\.parquet is 2x2x1, the first image is 3x3x1"),
    "ragged": (lambda p: _table(p / "a.parquet", pa.array(_replaced(5, [[1, 2, 3], [1, 2], [1, 2, 3]]))),
               r"row 5 of .*ragged"),
    "two types": (lambda p: (_table(p / "a.parquet"), _table(p / "b.parquet", _with(0, 1.0))),
                  r"row 0 of .*b\.parquet has .*float"),
    "not square": (lambda p: _table(p / "a.parquet", pa.array([[1] * 10] * ROWS)),
                   r"flat list of 10 values.*--data\.image-shape"),
    "channels first": (lambda p: _table(p / "a.parquet", pa.array([[[[1] * 9] * 9] * 3] * ROWS)),
                       r"3x9x9.*channels x height"),
    "too deep": (lambda p: _table(p / "a.parquet", pa.array([[[[[1]]]]] * ROWS)),
                 r"row 0 of .* is 1x1x1x1, which is not height"),
    "no image at all": (lambda p: _table(p / "a.parquet", pa.array(["text"] * ROWS)), r"holds string, not pixels"),
    "numbers for images": (lambda p: _table(p / "a.parquet", pa.array(range(ROWS))), r"row 0 of .* is "),
    "undecodable bytes": (lambda p: _table(p / "a.parquet", pa.array([_png()] * 11 + [b"no image"])),
                          r"row 11 .*cannot be decoded"),
    "null bytes": (lambda p: _table(p / "a.parquet", pa.array([_png()] * 11 + [None])),
                   r"row 11 .*no image \(null\)"),
    "undecodable file": (lambda p: (_pictures(p), _picture(p / "1/9.png", _png()[:40])),
                         r"/in/1/9\.png cannot be decoded"),
    "EPS, which Ghostscript would run": (
        lambda p: (_pictures(p),
                   _picture(p / "1/9.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 5\n%%EndComments\n")),
        r"/in/1/9\.png cannot be decoded as an image \(unknown or broken\): give"),
    "empty file": (lambda p: (_pictures(p), _picture(p / "1/9.png", b"")), r"/in/1/9\.png cannot be decoded"),
    "file of another size": (lambda p: (_pictures(p), _picture(p / "1/9.png", _png((3, 4)))),
                             r"1/9\.png is 3x4x1, .* is 3x3x1.*: pass --data\.resize 224, and each"),
    "file of another kind": (lambda p: (_pictures(p), _picture(p / "1/9.png", _png((3, 3, 3)))),
                             r"1/9\.png is 3x3x3, .* 3x3x1.*: pass --data\.channels gray\|rgb\|rgba, and each"),
    "32 bits": (lambda p: (_pictures(p), _picture(p / "1/9.png", _encoded(np.zeros((3, 3), np.int32), "TIFF"))),
                r"1/9\.png has pixels of 32 bits \(mode I\): save it with 8 or 16"),
    "image without a class": (lambda p: (_pictures(p), _picture(p / "z.png")), r"/in/z\.png is in no sub-folder"),
    "class without images": (lambda p: (_pictures(p), (p / "empty").mkdir()), r"folder .*/in/empty holds no image"),
    "idx without labels": (lambda p: (_idx(p), (p / "train-labels-idx1-ubyte").unlink()),
                           r"train-images-idx3-ubyte has no labels"),
    "idx cut short": (lambda p: _idx(p, struct.pack(">4B3I", 0, 0, 8, 3, ROWS, 3, 3) + IMAGES.tobytes()[:50]),
                      r"images-idx3-ubyte has 66 bytes, its header announces 124"),
    "idx header cut": (lambda p: _idx(p, b"\0\0\x08\x03\0\0"), r"images-idx3-ubyte ends inside its header"),
    "idx of nonsense": (lambda p: _idx(p, b"nonsense" * 20), r"images-idx3-ubyte does not begin like an IDX file"),
    "idx labels short": (lambda p: _idx(p, labels=struct.pack(">4BI", 0, 0, 8, 1, 5) + bytes(5)),
                         r"has 5 labels for the 12 images"),
    "idx labels cut": (lambda p: _idx(p, labels=struct.pack(">4BI", 0, 0, 8, 1, 12) + bytes(5)),
                       r"labels-idx1-ubyte has 13 bytes, its header announces 20"),
    "idx without end": (lambda p: _idx(p, struct.pack(">4B3I", 0, 0, 14, 3, *[2**32 - 1] * 3) + bytes(99)),
                        r"images-idx3-ubyte has 115 bytes, its header announces [\d,]{39}:"),
    "idx without end in gzip": (lambda p: _idx(p, gzip.compress(struct.pack(">4B4I", 0, 0, 14, 4, *[2**32 - 1] * 4)),
                                               ending=".gz"),
                                r"ubyte\.gz has \d+ bytes of gzip, its header announces [\d,]+:"),
    "idx labels without end": (lambda p: _idx(p, labels=struct.pack(">4BI", 0, 0, 8, 1, 2**32 - 1) + bytes(LABELS)),
                               r"labels-idx1-ubyte has 20 bytes, its header announces 4,294,967,303"),
    "gzip of nonsense": (lambda p: _idx(p, b"nonsense", ending=".gz"), r"images-idx3-ubyte\.gz cannot be read .*gzip"),
    "gzip cut short": (lambda p: _idx(p, _whole_gzip()[:-30], ending=".gz"), r"images-idx3-ubyte\.gz cannot be read"),
    "gzip corrupt": (lambda p: _idx(p, _whole_gzip()[:30] + b"\xff" * 20 + _whole_gzip()[50:], ending=".gz"),
                     r"ubyte\.gz cannot be"),
    "gzip checksum": (lambda p: _idx(p, _bad_checksum(), ending=".gz"), r"ubyte\.gz cannot be read \(CRC"),
    "idx in gzip too long": (lambda p: _idx(p, gzip.compress(gzip.decompress(_whole_gzip()) + b"more"), ending=".gz"),
                             r"is longer"),
}
OPTIONS = {"image column missing": {"image_column": "imagr"}}


@pytest.mark.parametrize("case", CASES)
def test_bad_data_is_one_clear_error_and_leaves_nothing(tmp_path: Path, case: str) -> None:
    make, message = CASES[case]
    make(tmp_path / "in")
    with pytest.raises(DataError) as caught:
        prepare(ImageDataConfig(uri=str(tmp_path / "in"), **OPTIONS.get(case, {})), Store.open(str(tmp_path / "out")),
                use_ray=False)
    assert re.search(message, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_class_that_only_the_test_rows_have_is_refused(tmp_path: Path) -> None:
    _table(tmp_path / "a.parquet", labels=["x", "y"] * 6)
    _table(tmp_path / "b.parquet", labels=["x", "z"] * 6)
    config = ImageDataConfig(uri=f"{tmp_path}/a.parquet", test_uri=f"{tmp_path}/b.parquet")
    with pytest.raises(DataError, match="class 'z' has no training rows"):
        prepare(config, Store.open(str(tmp_path / "out")), use_ray=False)


def test_a_pattern_without_a_match_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file in .* matches"):
        prepare(ImageDataConfig(uri=f"{tmp_path}/*.parquet"), Store.open(str(tmp_path / "out")), use_ray=False)


def test_an_image_shape_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    _table(tmp_path / "a.parquet", pa.array(IMAGES.reshape(ROWS, 9).tolist()))
    with pytest.raises(DataError, match=r"row 0 .* is 9, which is not --data\.image-shape 4x4x1"):
        prepare(ImageDataConfig(uri=f"{tmp_path}/a.parquet", image_shape="4x4"), Store.open(f"{tmp_path}/out"),
                use_ray=False)
    with pytest.raises(ConfigError, match="image-shape 28: use HEIGHTxWIDTHxCHANNELS"):
        ImageDataConfig(image_shape="28")
