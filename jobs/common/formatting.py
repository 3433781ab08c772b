"""Values as people read them, in pages, tables and model cards."""

from collections.abc import Mapping, Sequence
from typing import cast


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


def _cut(text: str, most: int = 300) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
