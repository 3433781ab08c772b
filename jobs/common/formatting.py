"""Values as people read them, in pages, tables and model cards, and durations as they write them."""

import re
from collections.abc import Mapping, Sequence
from typing import cast

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def shown(value: object) -> str:
    """A value for people: numbers short, nothing as a dash, lists and dicts on one line, cut where they are endless."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return _cut(", ".join(f"{k} {shown(v)}" for k, v in cast(Mapping[object, object], value).items()))
    if isinstance(value, list | tuple):
        return _cut(", ".join(shown(item) for item in cast(Sequence[object], value)))
    return _cut(str(value))


def size_shown(size: int) -> str:
    """Bytes: `340 kB`, `12 MB`, `2.9 GB`."""
    value, unit = float(size), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.1f} {_UNITS[unit]}" if unit > 2 and value < 100 else f"{value:.0f} {_UNITS[unit]}"


def seconds_in(text: str) -> float | None:
    """What a person writes as `90s`, `10m` or `2h`; None where it is none of these."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]] if found else None


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Lines for a terminal, of rows of equal length, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                     for row in rows)


def _cut(text: str, most: int = 300) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
