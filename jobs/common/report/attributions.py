"""What a model's answers rest on, drawn for the report: pictures and texts with what speaks for an answer,
and against it.

    image_section([ImageAttribution(pixels=…, attribution=…, label="7", predicted="1", confidence=0.8, gap=0.001), …])

How the attributions were found does not matter here; they are signed, and add up to the change of the answer's log odds
from a baseline. Shapes: H × W × C pixels, n tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.common.arrays import Array
from jobs.common.report.html import Section, render
from jobs.common.report.images import PIXELATED_SIDE, data_uri

MAX_TOKENS, MAX_SHARE, LARGE_QUANTILE = 256, 0.5, 0.99
"""The strongest colour below a word is half of it: letters keep a contrast of 4.5 to 1,
in dark mode too (WCAG 2, 1.4.3)."""
_RED, _BLUE = (214, 30, 40), (20, 90, 230)

TITLE = "What the answers rest on"


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """A row, and the answer that is explained."""

    label: str
    """The true class."""
    predicted: str
    """The class that the attributions are of."""
    confidence: float
    """Probability of the predicted class."""
    gap: float | None = None
    """Completeness gap: how far the attributions' sum is from the change of the log odds;
    None where that is not known."""


@dataclass(frozen=True, kw_only=True)
class ImageAttribution(Attribution):
    """Of an image."""

    pixels: Array
    """(H, W, C), uint8 or float."""
    attribution: NDArray[np.floating]
    """(H, W), or (H, W, C), which are added up over the channels."""
    region: NDArray[np.floating] | None = None
    """(H, W), 0 or more: where the network looked, coarsely (Grad-CAM); None: not known."""


@dataclass(frozen=True, kw_only=True)
class TextAttribution(Attribution):
    """Of a text."""

    tokens: Sequence[str]
    """As they are to be read, one after the other, with the spaces between words in them."""
    attributions: NDArray[np.floating]
    """(n,), one a token."""


def image_section(rows: Sequence[ImageAttribution], *, baseline: str = "the mean training image",
                  title: str = TITLE) -> Section:
    """Each image beside itself in gray with the attributions on it.
    baseline: what the images were compared with, plain text.

    Raises: ValueError if an attribution is not of its image's size.
    """
    return _section("image_attributions.html", title, rows, baseline, strongest=100, overlay=overlay, data_uri=data_uri)


def text_section(rows: Sequence[TextAttribution], *, baseline: str = "a text of nothing but padding",
                 title: str = TITLE) -> Section:
    """Each text with its tokens coloured, its first 256 where there are more. baseline: as in `image_section`.

    Raises: ValueError if a row has not one attribution for each token.
    """
    return _section("text_attributions.html", title, rows, baseline, strongest=round(100 * MAX_SHARE), tokens=_tokens,
                    most=MAX_TOKENS)


def overlay(pixels: Array, attribution: NDArray[np.floating]) -> NDArray[np.uint8]:
    """(H, W, 3): the image in gray, pale where it is dark so that colours show, with red and blue over it; where
    nothing counts, no colour. pixels: (H, W, C). attribution: (H, W) or (H, W, C).
    Raises: ValueError if the sizes differ.
    """
    strength = _strength(attribution if attribution.ndim == 2 else attribution.sum(axis=2))
    if strength.shape != pixels.shape[:2]:
        raise ValueError(f"an attribution of {strength.shape} pixels for an image of {pixels.shape[:2]}")
    gray = _gray(pixels)[:, :, None].repeat(3, axis=2)
    colour = np.where(strength[:, :, None] > 0, _RED, _BLUE)
    share = np.abs(strength)[:, :, None] ** 0.7
    return ((1 - share) * gray + share * colour).round().astype(np.uint8)


def _strength(attribution: NDArray[np.floating]) -> NDArray[np.float64]:
    """In [-1, 1], by the greatest; of a large image by a quantile, so that one pixel does not outshine all others."""
    values = np.nan_to_num(attribution.astype(np.float64), posinf=0.0, neginf=0.0)
    sizes = np.abs(values)
    most = float(np.quantile(sizes, LARGE_QUANTILE)) if values.size > PIXELATED_SIDE ** 2 else 0.0
    most = most or float(sizes.max(initial=0.0))
    return np.clip(values / most, -1, 1) if most else values


def _gray(pixels: Array) -> NDArray[np.float64]:
    """(H, W), from 90 to 255: the channels' mean, stretched.
    Of 2 or 4 channels the last, which is opacity, is left out."""
    channels = pixels.shape[2] - (pixels.shape[2] in (2, 4))
    values = np.nan_to_num(pixels[:, :, :channels].astype(np.float64)).mean(axis=2)
    spread = values.max() - values.min()
    return 90 + (values - values.min()) / (spread or 1.0) * 165


def _tokens(row: TextAttribution) -> list[tuple[str, float, int]]:
    """Each with its attribution, and its share of the colour in percent, signed."""
    if len(row.tokens) != len(row.attributions):
        raise ValueError(f"{len(row.attributions)} attributions for {len(row.tokens)} tokens: one for each")
    shares: list[int] = np.rint(_strength(row.attributions) * MAX_SHARE * 100).astype(int).tolist()
    return list(zip(map(_printable, row.tokens[:MAX_TOKENS]), row.attributions.tolist(), shares, strict=False))


def _printable(token: str) -> str:
    """What a page can hold: control characters,
    surrogates and what turns the direction of the page's text become a mark."""
    return "".join(char if char.isprintable() or char.isspace() else "\N{REPLACEMENT CHARACTER}" for char in token)


def _section(template: str, title: str, rows: Sequence[Attribution], baseline: str, **values: object) -> Section:
    gap = max((row.gap for row in rows if row.gap is not None), default=None)
    return Section(title, render(template, rows=rows, baseline=baseline, gap=gap, **values))
