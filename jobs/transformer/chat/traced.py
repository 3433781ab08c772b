"""Text that knows where each of its characters comes from: from a message, or from the template that wrote it.

A template cuts, strips, splits and joins what it is given. `Traced` is a `str` whose own methods keep account of that.
What a method here does not follow loses its origin and counts as the template's, so that whoever looks for it misses it
and says so: nothing is taken for a message's that is not.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, SupportsIndex, cast

_NAMES = ("role", "type", "id", "tool_call_id")
"""Fields whose values say what something is, and are no text of anybody's."""
Source = tuple[int, int]
"""Which message, and which of the texts that a `Tracer` has wrapped: -1 for several of the message."""
SEVERAL = -2
"""In the place of a message, for what was made of more than one."""


@dataclass(frozen=True)
class Run:
    """Successive characters of one origin."""

    length: int
    source: Source | None = None
    """None: the template's own."""
    start: int | None = None
    """Where the first of them is in the source; None where a filter wrote the source anew, such as `tojson`."""
    block: int | None = None
    """The generation block that they stand in, by number."""

    def cut(self, first: int, last: int) -> "Run":
        """Those from `first` on, before `last`."""
        return replace(self, length=last - first, start=None if self.start is None else self.start + first)


class Traced(str):
    """A text with its runs, which have its length together."""

    runs: tuple[Run, ...]

    def __new__(cls, text: str, runs: Iterable[Run] | None = None) -> "Traced":
        """runs: None for the template's own."""
        made = super().__new__(cls, text)
        made.runs = tuple(runs if runs is not None else [Run(len(text))] if text else ())
        return made

    def part(self, first: int, last: int) -> "Traced":
        """The characters from `first` on, before `last`."""
        runs: list[Run] = []
        place = 0
        for run in self.runs:
            start, stop = max(first, place), min(last, place + run.length)
            if start < stop:
                runs.append(run.cut(start - place, stop - place))
            place += run.length
        return Traced(str.__getitem__(self, slice(first, last)), runs)

    def in_block(self, number: int) -> "Traced":
        """The same as part of a generation block."""
        return Traced(self, [replace(run, block=number) for run in self.runs])

    # ── what a template does with a text ──
    def __str__(self) -> str:
        return self

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        if isinstance(key, slice):
            first, last, step = key.indices(len(self))
            return (self.part(first, max(first, last)) if step == 1
                    else rewritten(str.__getitem__(self, key), self))
        place = range(len(self))[key]
        return self.part(place, place + 1)

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts([(place, place + 1) for place in range(len(self))]))

    def __add__(self, other: str) -> str:
        return joined((self, other))

    def __radd__(self, other: str) -> str:
        return joined((other, self))

    def strip(self, chars: str | None = None, /) -> str:
        return cast(Traced, self.lstrip(chars)).rstrip(chars)

    def lstrip(self, chars: str | None = None, /) -> str:
        return self.part(len(self) - len(super().lstrip(chars)), len(self))

    def rstrip(self, chars: str | None = None, /) -> str:
        return self.part(0, len(super().rstrip(chars)))

    def removeprefix(self, prefix: str, /) -> str:
        return self.part(len(self) - len(super().removeprefix(prefix)), len(self))

    def removesuffix(self, suffix: str, /) -> str:
        return self.part(0, len(super().removesuffix(suffix)))

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._found(super().split(sep, maxsplit), sep or "")

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._found(super().rsplit(sep, maxsplit), sep or "")

    def splitlines(self, keepends: bool = False) -> list[str]:
        return self._found(super().splitlines(keepends), "")

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        return cast("tuple[str, str, str]", tuple(self._found(super().partition(sep), "")))

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        return cast("tuple[str, str, str]", tuple(self._found(super().rpartition(sep), "")))

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str:
        if not old:
            return super().replace(old, new, count)
        return joined(itertools.chain.from_iterable(
            (new, piece) if number else (piece,) for number, piece in enumerate(self.split(old, count))))

    def _found(self, pieces: Iterable[str], between: str) -> list[str]:
        """Pieces that follow each other, each where it begins first behind the one before."""
        places: list[tuple[int, int]] = []
        place = 0
        for piece in pieces:
            place = self.index(piece, place)
            places.append((place, place + len(piece)))
            place += len(piece) + len(between)
        return self._parts(places)

    def _parts(self, places: Sequence[tuple[int, int]]) -> list[str]:
        """(start, stop) of each, one after the other: the runs are gone through once."""
        made: list[str] = []
        number = begin = 0
        for start, stop in places:
            while number < len(self.runs) and begin + self.runs[number].length <= start:
                begin += self.runs[number].length
                number += 1
            runs: list[Run] = []
            after, place = number, begin
            while after < len(self.runs) and place < stop:
                run = self.runs[after]
                runs.append(run.cut(max(start, place) - place, min(stop, place + run.length) - place))
                place += run.length
                after += 1
            made.append(Traced(str.__getitem__(self, slice(start, stop)), runs if start < stop else ()))
        return made


def traced(text: str) -> Traced:
    """A text of the template's own, unless it is traced already."""
    return text if isinstance(text, Traced) else Traced(text)


def joined(pieces: Iterable[object]) -> str:
    """The texts in one: traced if one of them is."""
    texts = [piece if isinstance(piece, str) else str(piece) for piece in pieces]
    if not any(isinstance(text, Traced) for text in texts):
        return "".join(texts)
    runs: list[Run] = []
    for text in texts:
        runs += traced(text).runs
    return Traced("".join(texts), _merged(runs))


def _merged(runs: Iterable[Run]) -> Iterator[Run]:
    """Fewer runs, of the same characters."""
    before: Run | None = None
    for run in runs:
        if before is None:
            before = run
        elif (run.source, run.block) == (before.source, before.block) and (
                run.start is None if before.start is None else run.start == before.start + before.length):
            before = replace(before, length=before.length + run.length)
        else:
            yield before
            before = run
    if before is not None:
        yield before


def sources_in(value: object) -> set[Source]:
    """All sources of the texts in a JSON value."""
    if isinstance(value, Traced):
        return {run.source for run in value.runs if run.source is not None}
    inside: Iterable[object] = ()
    if isinstance(value, dict):
        inside = itertools.chain.from_iterable(cast("dict[object, object]", value).items())
    elif isinstance(value, list | tuple):
        inside = cast("list[object]", value)
    return set[Source]().union(*map(sources_in, inside))


def rewritten(text: str, value: object) -> str:
    """What was made of a value in another way than is followed here: of the value's message, or of `SEVERAL`."""
    sources = sources_in(value)
    if not sources or not text:
        return text
    (message, number), *more = sources
    several = any(other != message for other, _ in more)
    return Traced(text, [Run(len(text), (SEVERAL, -1) if several else (message, -1 if more else number))])


class Tracer:
    """Wraps the texts of messages, each as a source of its own."""

    def __init__(self) -> None:
        self.texts: list[tuple[str, str]] = []
        """By number: the field of the message that each stands in, and the text."""

    def wrap(self, message: int, field: str, value: Any) -> Any:
        """A copy of a JSON value, of traced texts. field: of the message, that it is the value of."""
        if isinstance(value, str) and value:
            self.texts.append((field, value))
            return Traced(value, [Run(len(value), (message, len(self.texts) - 1), 0)])
        if isinstance(value, dict):
            items = cast("dict[str, Any]", value).items()
            return {key: each if key in _NAMES else self.wrap(message, field, each) for key, each in items}
        if isinstance(value, list):
            return [self.wrap(message, field, each) for each in cast("list[Any]", value)]
        return value


def alike(text: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    if text.startswith(other) or other.startswith(text):
        return min(len(text), len(other))
    return next(place for place, (one, two) in enumerate(zip(text, other, strict=False)) if one != two)
