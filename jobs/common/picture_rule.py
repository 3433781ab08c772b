"""The rule by which pictures become pixels. Imports nothing heavy: the config makes it, and an artifact keeps it."""

import json
from dataclasses import asdict, dataclass
from typing import Literal

from cluster.core.documents import JsonObject, parse_json

MOST_PIXELS = 25_000_000
"""Of a picture, and of all pictures of a request together, by what they say of themselves: more are refused before any
is unpacked."""
CHANNELS = {"gray": 1, "rgb": 3, "rgba": 4}
Fit = Literal["stretch", "crop", "pad"]
Background = Literal["black", "white"]


@dataclass(frozen=True, kw_only=True)
class PictureRule:
    """How pictures become pixels. The artifact's manifest has it, so that an endpoint does what training did."""

    size: tuple[int, int] | None = None
    """Height and width that each picture is made to; None: as it is."""
    fit: Fit = "stretch"
    """How: `stretch` changes its proportions, `crop` cuts off what is too long, `pad` adds background."""
    channels: int | None = None
    """1 (gray), 2 (gray, alpha), 3 (RGB) or 4 (RGB, alpha); None: as the picture has."""
    background: Background = "black"
    """What shows through where it is transparent, and what `pad` adds."""

    def to_dict(self) -> JsonObject:
        """Plain JSON values."""
        return {**asdict(self), "size": None if self.size is None else list(self.size)}

    @staticmethod
    def from_dict(values: JsonObject) -> "PictureRule":
        """The rule of these values; what an earlier version did not write is as by default. Raises: DocumentError."""
        return parse_json(json.dumps(values), PictureRule)
