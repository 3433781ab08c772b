"""What a picture file means: one function from its bytes to pixels, wherever it is met: in data that a model is
trained and judged on, and in a request to an endpoint, such as the playground's.

    pixels = decode_picture(data, PictureRule(size=(224, 224), fit="crop", channels=3))

- Of an animation it is the first frame; it is turned as its EXIF orientation says, and one that is broken says nothing.
- Of 16 bits the upper 8 are kept. Pixels of 32 bits, which have no range of their own, are refused.
- CMYK and palettes become RGB, black and white becomes gray. Colour profiles are not applied.
- What is transparent lies on the rule's background, unless the pixels have an alpha channel themselves.
- Another size is reached by bilinear interpolation over all the pixels that a new one covers.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

import functools
import io
import re
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from jobs.common.picture_rule import MOST_PIXELS, Background, PictureRule

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

VERSION = 1
"""Raised when the same file would give other pixels by the same rule: prepared data is made again then."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Those that are read, by name: Pillow knows forty more, some of which run programs (EPS: Ghostscript)."""
SENT_FORMATS = FORMATS[:3]
"""Those that a stranger may send: decoders with more to them (TIFF), or slow ones (PPM), are for one's own data."""
ENDINGS = (".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".pbm", ".pgm",
           ".ppm", ".pnm", ".pfm")
"""Those that Pillow has for `FORMATS`."""
BEGINNING = re.compile(rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|RIFF....WEBP|GIF8[79]a|BM....\0\0\0\0|II\*\0|MM\0\*|P[1-6]\s",
                       re.DOTALL)
"""What the first 16 bytes of such files match, for those whose names have no ending."""
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_MOST_PARTS: Mapping[bytes, tuple[int, tuple[bytes, ...]]] = {
    b"\x89PNG": (8, (b"iCCP", b"iTXt", b"zTXt")), b"\xff\xd8\xff": (32, (b"\xff\xda",))}
"""By a file's beginning, how many it may have of what Pillow works through whatever the pixels are: a PNG's compressed
texts and profiles, of which each kilobyte becomes a megabyte, and a JPEG's scans,
of which a few bytes go over the whole picture again."""
_PIECE = 4096
"""Bytes of a file that a stranger sent which are unpacked in one go, in which Python's lock is held. Of one's own
files Pillow's own number are, which is a fifth faster."""


class PictureError(ValueError):
    """A picture that is not read. The text goes after its name: what is wrong with it, and what to do."""


def decode_picture(data: bytes, rule: PictureRule, formats: Sequence[str] = FORMATS) -> npt.NDArray[np.uint8]:
    """(H, W, C) of a file in one of the formats. Raises: PictureError."""
    return picture_pixels(open_picture(data, formats), rule)


def open_picture(data: bytes, formats: Sequence[str] = FORMATS) -> "ImageFile":
    """A picture whose pixels are still packed. Raises: PictureError."""
    for beginning, (most, parts) in _MOST_PARTS.items():
        if data.startswith(beginning) and sum(map(data.count, parts)) > most:
            raise PictureError("has too many compressed texts or scans: save it again without them")
    with _readable(*formats):
        image = _pillow().open(io.BytesIO(data), formats=formats)
    if image.width * image.height > MOST_PIXELS:
        raise PictureError(f"has {image.width:,} × {image.height:,} pixels, more than the {MOST_PIXELS:,} that are "
                           "read: make it smaller")
    if formats == SENT_FORMATS:
        image.decodermaxblock = _PIECE
    return image


def picture_pixels(image: "ImageFile", rule: PictureRule) -> npt.NDArray[np.uint8]:
    """(H, W, C) of an opened picture, which is closed then. Raises: PictureError."""
    with _readable(str(image.format)), image:
        image.load()  # turns a TIFF file by itself
        flat = _flat(image, MODES[rule.channels] if rule.channels else _own_mode(image), rule.background)
        picture = _fitted(_upright(flat, image), rule)
        return np.asarray(picture).reshape(picture.height, picture.width, len(picture.getbands()))


@functools.cache
def _pillow() -> Any:
    """Its module `Image`. It would warn of sizes that are refused here, and of EXIF that is cut short."""
    from PIL import Image

    warnings.filterwarnings("ignore", module="PIL")
    return Image


@contextmanager
def _readable(*formats: str) -> Generator[None]:
    """Whatever a file makes Pillow raise is said of that file. formats: what it must be. Raises: PictureError."""
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except PictureError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise PictureError(f"has more than the {MOST_PIXELS:,} pixels that are read: make it smaller") from None
    except Exception as error:  # decoders let through what they meet: struct.error, NotImplementedError, …
        why = "unknown or broken" if isinstance(error, UnidentifiedImageError) else " ".join(str(error).split())
        *most, last = formats
        wanted = f"{', '.join(most)} or {last}" if most else last
        raise PictureError(f"cannot be decoded as an image ({why}): give a whole {wanted} file, or leave it out") \
            from error


def _own_mode(image: "ImageFile") -> str:
    """The one of `MODES` that loses nothing of a picture but transparent colours of a palette, and 16 bits."""
    if (own := image.mode.upper()) in MODES.values():  # La and RGBa have colours multiplied by alpha
        return own
    return "L" if image.mode == "1" or image.mode.startswith("I") else "RGB"


def _flat(image: "ImageFile", mode: str, background: Background) -> "Image":
    """Its pixels in 8 bits, in one of `MODES`."""
    from PIL import Image

    picture = _eight_bits(image)
    if picture.has_transparency_data:
        picture = picture.convert("LA" if picture.mode in ("1", "L", "LA", "La") else "RGBA")
        if not mode.endswith("A"):
            paper = Image.new(picture.mode[:-1], picture.size, background)
            paper.paste(picture, mask=picture)
            picture = paper
    return picture if picture.mode == mode else picture.convert(mode)


def _eight_bits(image: "ImageFile") -> "Image":
    from PIL import Image

    if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):  # PNM's 16 bits are kept in 32
        raise PictureError(f"has pixels of 32 bits (mode {image.mode}): save it with 8 or 16")
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    gray = Image.fromarray((values >> 8).astype(np.uint8))
    if (clear := image.info.get("transparency")) is not None:
        gray.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return gray


def _upright(picture: "Image", image: "ImageFile") -> "Image":
    """picture: what was made of the image, as it lies in the file."""
    from PIL.Image import Transpose

    turns = {2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM,
             5: Transpose.TRANSPOSE, 6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90}
    try:
        turn = turns.get(image.getexif().get(0x0112, 1))
    except Exception:  # noqa: BLE001  (EXIF is often broken; whoever looks at the picture does not notice)
        turn = None
    return picture if turn is None else picture.transpose(turn)


def _fitted(picture: "Image", rule: PictureRule) -> "Image":
    """Of the rule's size."""
    from PIL import ImageOps
    from PIL.Image import Resampling

    if rule.size is None:
        return picture
    height, width = rule.size
    if picture.size == (width, height):
        return picture
    size = width, height
    if rule.fit == "crop":
        return ImageOps.fit(picture, size, Resampling.BILINEAR)
    if rule.fit == "pad":
        return ImageOps.pad(picture, size, Resampling.BILINEAR, rule.background)
    return picture.resize(size, Resampling.BILINEAR)
