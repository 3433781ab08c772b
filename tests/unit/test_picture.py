"""One picture has one meaning: the same file gives the same pixels, or the same refusal, through every door."""

import io
import json
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cluster.core.errors import ArtifactError, ConfigError, DataError, InputError
from cluster.core.storage import Store
from jobs.common.data.cache import BlockCache
from jobs.common.data.dataset import SPLITS, Dataset, SplitName
from jobs.common.data.found.account import lines_of
from jobs.common.data.reader import Reader
from jobs.common.picture_rule import MOST_PIXELS
from jobs.common.vision.config import ImageDataConfig
from jobs.common.vision.job import describe_images
from jobs.common.vision.predictor import GraphPredictor
from jobs.common.vision.prepare import prepare
from jobs.mlp.config import MlpConfig

RNG = np.random.default_rng(0)
HEIGHT, WIDTH = 6, 9
GRAY = RNG.integers(0, 256, (HEIGHT, WIDTH), np.uint8)
COLOUR = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
CLEAR = RNG.random((HEIGHT, WIDTH)) < 0.5
"""Where a picture is transparent, all through."""
ALPHA = np.where(CLEAR, 0, 255).astype(np.uint8)
CODES = np.where(CLEAR, 0, RNG.integers(1, 4, (HEIGHT, WIDTH))).astype(np.uint8)
PALETTE = np.array([[250, 5, 70], [0, 0, 255], [9, 200, 30], [255, 255, 255]], np.uint8)
LABELS = ["ant", "bee"] * 3


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def of(pixels: np.ndarray, form: str = "PNG", **options: Any) -> bytes:
    return encoded(Image.fromarray(pixels), form, **options)


def paletted(**options: Any) -> bytes:
    image = Image.fromarray(CODES, "P")
    image.putpalette(PALETTE.tobytes())
    return encoded(image, **options)


def turned(orientation: int, form: str = "PNG", **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return of(COLOUR, form, exif=exif, **options)


def on(background: int, pixels: np.ndarray) -> np.ndarray:
    return np.where(CLEAR[..., None] if pixels.ndim == 3 else CLEAR, background, pixels)


def by_pillow(data: bytes, mode: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert(mode))


TURNED = {1: COLOUR, 2: COLOUR[:, ::-1], 3: COLOUR[::-1, ::-1], 4: COLOUR[::-1], 5: COLOUR.swapaxes(0, 1),
          6: np.rot90(COLOUR, -1), 7: COLOUR[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(COLOUR)}
OTHERS = [Image.fromarray(255 - COLOUR)]
JPEG, CMYK = of(COLOUR, "JPEG"), encoded(Image.fromarray(COLOUR).convert("CMYK"), "JPEG")
SHEER = of(np.dstack([COLOUR, ALPHA]))
WIDE = GRAY.astype(np.uint16) * 256 + RNG.integers(0, 256, GRAY.shape).astype(np.uint16)
BITS = np.where(CLEAR, 0, 255).astype(np.uint8)

Options = dict[str, Any]
KINDS: dict[str, tuple[bytes, np.ndarray, Options]] = {
    "RGB": (of(COLOUR), COLOUR, {}),
    "gray": (of(GRAY), GRAY, {}),
    "palette": (paletted(), PALETTE[CODES], {}),
    "palette with transparency": (paletted(transparency=0), on(0, PALETTE[CODES]), {}),
    "palette on white": (paletted(transparency=bytes([0, 255])), on(255, PALETTE[CODES]), {"background": "white"}),
    "palette as RGBA": (paletted(transparency=0), np.dstack([PALETTE[CODES], ALPHA]), {"channels": "rgba"}),
    "RGBA": (SHEER, np.dstack([COLOUR, ALPHA]), {}),
    "RGBA as RGB": (SHEER, on(0, COLOUR), {"channels": "rgb"}),
    "RGBA as RGB, on white": (SHEER, on(255, COLOUR), {"channels": "rgb", "background": "white"}),
    "RGBA as gray": (SHEER, on(0, by_pillow(of(COLOUR), "L")), {"channels": "gray"}),
    "RGB as RGBA": (of(COLOUR), np.dstack([COLOUR, np.full_like(ALPHA, 255)]), {"channels": "rgba"}),
    "LA": (of(np.dstack([GRAY, ALPHA])), np.dstack([GRAY, ALPHA]), {}),
    "LA as gray": (of(np.dstack([GRAY, ALPHA])), on(0, GRAY), {"channels": "gray"}),
    "one transparent colour": (of(on(0, COLOUR), transparency=(0, 0, 0)), on(255, COLOUR), {"background": "white"}),
    "16 bits": (of(WIDE), GRAY, {}),
    "16 bits as RGB": (of(WIDE), np.dstack([GRAY] * 3), {"channels": "rgb"}),
    "one of 16 bits": (of(np.where(CLEAR, 4660, WIDE | 1).astype(np.uint16), transparency=4660), on(0, GRAY), {}),
    "black and white": (encoded(Image.fromarray(~CLEAR)), BITS, {}),
    "JPEG": (JPEG, by_pillow(JPEG, "RGB"), {}),
    "CMYK": (CMYK, by_pillow(CMYK, "RGB"), {}),
    "WebP": (of(COLOUR, "WEBP", lossless=True), COLOUR, {}),
    "animated WebP": (of(COLOUR, "WEBP", lossless=True, save_all=True, append_images=OTHERS), COLOUR, {}),
    "animated PNG": (of(COLOUR, save_all=True, append_images=OTHERS), COLOUR, {}),
    "broken EXIF": (of(COLOUR, exif=b"Exif\0\0nonsense"), COLOUR, {}),
    **{f"EXIF {turn}": (turned(turn), pixels, {}) for turn, pixels in TURNED.items()},
    "EXIF 6 in WebP": (turned(6, "WEBP", lossless=True), TURNED[6], {}),
    "EXIF 6 in JPEG": (turned(6, "JPEG"), np.rot90(by_pillow(of(COLOUR, "JPEG"), "RGB"), -1), {}),
}
ON_DISK: dict[str, tuple[bytes, np.ndarray, Options]] = {
    "animated GIF": (encoded(Image.fromarray(GRAY), "GIF", save_all=True, append_images=OTHERS), GRAY,
                     {"channels": "gray"}),
    "EXIF 6 in TIFF": (turned(6, "TIFF"), TURNED[6], {}),
    "BMP": (of(COLOUR, "BMP"), COLOUR, {}),
    "16 bits of TIFF": (of(WIDE, "TIFF"), GRAY, {}),
    "16 bits of PNM": (of(WIDE, "PPM"), GRAY, {}),
}


# ── the doors ──
def of_folder(folder: Path, files: list[bytes], options: Options, say: Any = None) -> Dataset:
    ending = {b"\xff\xd8": ".jfif", b"II": ".tif", b"P5": ".pnm", b"BM": ".bmp"}.get(files[0][:2], ".png")
    for place, (data, label) in enumerate(zip(files, LABELS, strict=True)):
        (folder / "in" / label).mkdir(parents=True, exist_ok=True)
        (folder / f"in/{label}/{place}{ending}").write_bytes(data)
    return prepared(folder, "in", options, say)


def of_parquet(folder: Path, files: list[bytes], options: Options, kind: str = "bytes") -> Dataset:
    column = (pa.array([{"bytes": data, "path": "x.png"} for data in files]) if kind == "struct"
              else pa.array(files, pa.binary()))
    pq.write_table(pa.table({"image": column, "label": LABELS}), folder / "rows.parquet")
    return prepared(folder, "rows.parquet", options)


def prepared(folder: Path, name: str, options: Options, say: Any = None) -> Dataset:
    return prepare(ImageDataConfig(uri=str(folder / name), **options), Store.open(str(folder / "out")), use_ray=False,
                   say=say)


DOORS: dict[str, Callable[..., Dataset]] = {
    "folder": of_folder, "Parquet": of_parquet, "Parquet of structs": partial(of_parquet, kind="struct")}


def rows(dataset: Dataset, folder: Path, split: SplitName = "train", column: str = "image") -> np.ndarray:
    """All rows of a split."""
    (folder / "cache").mkdir(exist_ok=True)
    return Reader(dataset, split, BlockCache(folder / "cache", 10**8)).rows(0, dataset.splits[split].num_rows)[column]


def endpoint(dataset: Dataset, options: Options, **changed: Any) -> GraphPredictor:
    """What answers by the artifact of a model of these data, without the model."""
    trained: Any = SimpleNamespace(job="mlp", dataset=dataset, config=MlpConfig(data=ImageDataConfig(**options)))
    about = describe_images(trained, SimpleNamespace(metrics={}), about="", how_to_load="",  # type: ignore[arg-type]
                            preprocessing={})
    about = replace(about, preprocessing=json.loads(json.dumps({**about.preprocessing, **changed})))
    return GraphPredictor(None, SimpleNamespace(manifest=SimpleNamespace(description=about), uri="/a"))  # type: ignore


def sent(predictor: GraphPredictor, *files: bytes) -> np.ndarray:
    return predictor.decode({"image": np.array([*files, None], object)[:-1]})


# ── the same pixels ──
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_file_gives_the_same_pixels_through_every_door(tmp_path: Path, kind: str) -> None:
    data, pixels, options = KINDS[kind]
    expected = pixels[..., None] if pixels.ndim == 2 else pixels
    for door in DOORS.values():
        dataset = door(tmp_path, [data] * 6, options)
        assert np.array_equal(np.unique(rows(dataset, tmp_path), axis=0), expected[None])
        assert np.array_equal(sent(endpoint(dataset, options), data, data), np.stack([expected] * 2))


@pytest.mark.parametrize("kind", ON_DISK)
def test_more_formats_are_read_of_data_than_an_endpoint_takes(tmp_path: Path, kind: str) -> None:
    data, pixels, options = ON_DISK[kind]
    dataset = of_folder(tmp_path, [data] * 6, options)
    assert np.array_equal(rows(dataset, tmp_path)[0].squeeze(), pixels)
    with pytest.raises(InputError, match=r"unknown or broken\): give a whole PNG, JPEG or WEBP file"):
        sent(endpoint(dataset, options), data)


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad", None])
def test_pictures_of_all_sizes_become_one_size_by_one_rule(tmp_path: Path, fit: str | None) -> None:
    """Each is 3 squares beside each other, dark, gray and bright."""
    files = [of(np.repeat([50, 100, 150], side)[None].repeat(side, axis=0).astype(np.uint8)) for side in (12, 24) * 3]
    options = {"resize": 12, "fit": fit, "background": "white", "channels": "gray"}
    dataset = of_folder(tmp_path, files, options)
    got = rows(dataset, tmp_path)
    assert got.shape[1:] == (12, 12, 1)
    kept = of_folder(tmp_path, files, {**options, "keep": "encoded"})
    assert kept.store.uri != dataset.store.uri
    assert (kept.fingerprint, kept.splits, kept.details) == (dataset.fingerprint, dataset.splits, dataset.details)
    assert np.array_equal(rows(kept, tmp_path), got)
    paths = [path for path in kept.store.files() if "/train/" in path.path]
    table = pq.read_table(io.BytesIO(kept.store.read_bytes(paths[0].path)))
    assert set(table.column("image").to_pylist()) <= set(files), "the very files"
    assert np.array_equal(np.unique(got, axis=0), np.unique(sent(endpoint(dataset, options), *files), axis=0))
    for picture in got[..., 0].astype(int):
        middle = picture[6]
        if fit == "crop":
            assert (picture[:, 1:-1] == 100).all()
        elif fit == "pad":
            assert (picture[:4] == 255).all() and (picture[-4:] == 255).all()
            assert abs(middle[[1, 6, 10]] - [50, 100, 150]).max() <= 1
        else:
            assert (picture == middle).all()
            assert abs(middle[[1, 6, 10]] - [50, 100, 150]).max() <= 1


def test_a_file_of_another_size_is_turned_first_and_then_fitted(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    tall = np.arange(0, 240, 10, dtype=np.uint8)[:, None].repeat(4, axis=1)
    model = endpoint(of_folder(tmp_path, [of(tall[:8])] * 6, {}), {})
    assert np.array_equal(sent(model, of(np.rot90(tall), exif=exif)), sent(model, of(tall)))


def test_an_artifact_of_an_earlier_version_answers_as_it_did(tmp_path: Path) -> None:
    model = endpoint(of_folder(tmp_path, [of(GRAY)] * 6, {}), {}, picture={})
    assert np.array_equal(sent(model, of(GRAY)), GRAY[None, ..., None])
    large = Image.fromarray(COLOUR.repeat(3, axis=0))
    expected = np.asarray(large.convert("L").resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR))
    assert np.array_equal(sent(model, encoded(large)), expected[None, ..., None])
    assert sent(model, of(GRAY)).dtype == np.uint8


def test_an_artifact_whose_rule_is_damaged_and_a_file_of_odd_channels_are_refused(tmp_path: Path) -> None:
    dataset = of_folder(tmp_path, [of(GRAY)] * 6, {})
    for damaged in ({"fit": "tile"}, {"size": "large"}, 7):
        with pytest.raises(ArtifactError, match="artifact /a is refused"):
            endpoint(dataset, {}, picture=damaged)
    with pytest.raises(InputError, match="no picture file has 7 channels, as this model takes: send pixels"):
        sent(endpoint(dataset, {}, shape=[6, 9, 7]), of(GRAY))


def test_how_pictures_are_decoded_is_in_the_data_and_decides_their_key(tmp_path: Path) -> None:
    first = of_folder(tmp_path, [of(GRAY)] * 6, {})
    assert first.describe()["picture"] == {"size": None, "fit": "stretch", "channels": None, "background": "black"}
    again = prepared(tmp_path, "in", {"resize": 3, "fit": "pad", "channels": "rgb"})
    assert again.store != first.store
    assert again.describe()["picture"] == {"size": [3, 3], "fit": "pad", "channels": 3, "background": "black"}
    digits = [prepare(ImageDataConfig(background=each), Store.open(str(tmp_path)), use_ray=False)  # type: ignore
              for each in (None, "white")]
    assert digits[0] == digits[1], "they are no picture files"


# ── the same refusals ──
def claiming(width: int, height: int) -> bytes:
    """A small PNG that says of itself that it is large."""
    head = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\0\0\0\0"
    return of(GRAY)[:12] + head + zlib.crc32(head).to_bytes(4, "big") + of(GRAY)[33:]


def with_texts(count: int) -> bytes:
    body = b"zTXta\0\0" + zlib.compress(bytes(1000))
    chunk = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    return of(GRAY)[:33] + chunk * count + of(GRAY)[33:]


REFUSED = {
    "20,000 x 20,000": (claiming(20_000, 20_000), r"has more than the 25,000,000 pixels that are read: make it"),
    "one that Pillow would warn of": (claiming(10_000, 10_000), r"more than the 25,000,000 .*that are read: make it"),
    "one row more than may be": (claiming(5000, 5001), r"has 5,000 × 5,001 pixels, more than the"),
    "a decompression bomb": (with_texts(9), r"has too many compressed texts or scans: save it again without them"),
    "half a file": (of(COLOUR)[:-60], r"cannot be decoded as an image \(.*\): give a whole PNG file, or leave it out"),
    "no picture": (b"no picture", r"cannot be decoded as an image \(unknown or broken\): give a whole PNG, JPEG"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_the_same_file_is_refused_through_every_door(tmp_path: Path, kind: str) -> None:
    data, says = REFUSED[kind]
    dataset = of_folder(tmp_path, [of(GRAY)] * 6, {})
    with pytest.raises(InputError, match=f"^an image file of the request .*{says}"):
        sent(endpoint(dataset, {}), data)
    for name, door, place in (("in/bee/5.png", of_folder, 5), ("row 4 of .*", of_parquet, 4)):
        files = [of(GRAY)] * 6
        files[place] = data
        with pytest.raises(DataError, match=f"^{name if door is of_parquet else tmp_path / name} .*{says}"):
            door(tmp_path, files, {})


def test_as_many_pixels_and_texts_as_may_be_are_taken(tmp_path: Path) -> None:
    model = endpoint(of_folder(tmp_path, [with_texts(8)] * 6, {}), {})
    assert sent(model, encoded(Image.new("1", (5000, MOST_PIXELS // 5000)))).shape == (1, HEIGHT, WIDTH, 1)


def test_pictures_of_several_kinds_are_refused_with_what_makes_them_one(tmp_path: Path) -> None:
    mixed = [of(GRAY), of(np.dstack([COLOUR, ALPHA])[:3])] * 3
    says = (r"bee/1\.png is 3x9x4, the first image is 6x9x1 .*pass --data\.resize 224 and --data\.channels "
            r"gray\|rgb\|rgba, and each is made so")
    with pytest.raises(DataError, match=says):
        of_folder(tmp_path, mixed, {})
    assert rows(of_folder(tmp_path, mixed, {"resize": 4, "channels": "rgb"}), tmp_path).shape[1:] == (4, 4, 3)


@pytest.mark.parametrize("options", [{"resize": 32}, {"channels": "rgb"}, {"keep": "encoded"}])
def test_what_is_for_files_is_refused_of_numbers(tmp_path: Path, options: Options) -> None:
    (option,) = options
    with pytest.raises(DataError, match=f"--data.{option}.* is for picture files .*digits are numbers .28x28x1 uint8"):
        prepare(ImageDataConfig(**options), Store.open(str(tmp_path)), use_ray=False)
    for bad in (0, 5001):
        with pytest.raises(ConfigError, match=f"--data.resize {bad}: must be from 1 to 5000 pixels"):
            ImageDataConfig(resize=bad)


# ── pictures that cannot be read ──
@pytest.mark.parametrize("unread", [0, 2])
@pytest.mark.parametrize("door", DOORS)
def test_bad_pictures_are_named_all_at_once_or_left_out_and_listed(tmp_path: Path, door: str, unread: int) -> None:
    files = [of(RNG.integers(0, 256, (HEIGHT, WIDTH), np.uint8)) for _ in LABELS]
    files[unread], files[5] = b"no picture", of(COLOUR[:3])
    with pytest.raises(DataError, match=r"2 rows cannot be read: mend them; or leave them out with --data\.bad-rows "
                                        r"skip\n  .* cannot be decoded .*\n  .* is 3x9x3, the first image is 6x9x1"):
        DOORS[door](tmp_path, files, {})
    with pytest.raises(DataError, match=r"2 of 6 rows of .* more than --data\.bad-rows-most 0\.2 allows"):
        DOORS[door](tmp_path, files, {"bad_rows": "skip", "bad_rows_most": 0.2})
    dataset = DOORS[door](tmp_path, files, {"bad_rows": "skip", "bad_rows_most": 0.5})
    assert sum(split.num_rows for split in dataset.splits.values()) == 4
    assert "left out: 2 rows that cannot be read" in "\n".join(lines_of(dataset))
    listed = dataset.store.read_text(f"{dataset.blocks}/skipped.csv").splitlines()
    assert listed[0] == "row,why" and "cannot be decoded" in listed[1] and "is 3x9x3" in listed[2] and len(listed) == 3
    left = np.concatenate([rows(dataset, tmp_path, split, "row_id") for split in SPLITS])
    assert sorted(left.tolist()) == sorted({*range(5)} - {unread // 2 if door == "folder" else unread}), \
        "the others keep their ids"
