"""How a model does on changed data, drawn for the report: accuracy by kind of change, against the untouched rows.

    section({"untouched": evaluation, "typos": evaluation_of_typos, …})    # the first is what the others are compared with
"""

from collections.abc import Mapping
from typing import Protocol

from jobs.common.report.html import Section, escape, figure, figures, note, table


class Measured(Protocol):
    """What is needed of an `evaluation.Evaluation`: fractions in [0, 1], the last two the ends of the 95% interval."""

    @property
    def accuracy(self) -> float: ...
    @property
    def accuracy_low(self) -> float: ...
    @property
    def accuracy_high(self) -> float: ...


def section(results: Mapping[str, Measured], *, about: Mapping[str, str] | None = None, split: str = "test",
            title: str = "Robustness") -> Section:
    """A table and a bar chart. about: what a change does to a row, by its name, where the name does not say it all.

    Raises: ValueError if there are no results.
    """
    if not results:
        raise ValueError("no results to show: give those of the untouched rows first, then those of each change")
    said = note(f"Accuracy on the rows of the {split} split, and on the same rows changed. The whiskers are 95% intervals.")
    chart = figure(_bars(results), "Accuracy by change; the line is that of the untouched rows")
    changes = "; ".join(f"{name}: {text}" for name, text in (about or {}).items() if name in results)
    numbers = _table(results) + (note(f"{changes}.") if changes else "")
    return Section(title=title, html=said + figures([f"<div>{numbers}</div>", chart]))


def _table(results: Mapping[str, Measured]) -> str:
    first = next(iter(results.values())).accuracy
    rows = [(name, f"{r.accuracy:.2%}", f"{r.accuracy_low:.2%} – {r.accuracy_high:.2%}",
             f"{100 * (r.accuracy - first):+.2f}" if place else "–") for place, (name, r) in enumerate(results.items())]
    return table(["change", "accuracy", "95% interval", "points"], rows)


_LEFT, _WIDTH, _ROW, _TOP = 130, 460, 30, 8
"""Of the chart, in its own units: room for the names, width of 100%, height of a bar with its gap, room above."""


def _bars(results: Mapping[str, Measured]) -> str:
    """Inline SVG in the page's colours."""
    bottom = _TOP + _ROW * len(results)
    bars = "".join(_bar(place, name, r) for place, (name, r) in enumerate(results.items()))
    at = _x(next(iter(results.values())).accuracy)
    line = f'<line x1="{at}" x2="{at}" y1="{_TOP}" y2="{bottom}" stroke="var(--soft)" stroke-dasharray="3 3"/>'
    axis = "".join(f'<line x1="{_x(t)}" x2="{_x(t)}" y1="{_TOP}" y2="{bottom}" stroke="var(--line)"/>'
                   f'<text x="{_x(t)}" y="{bottom + 16}" text-anchor="middle" fill="var(--ink)">{t:.0%}</text>'
                   for t in (0.0, 0.25, 0.5, 0.75, 1.0))
    return (f'<svg role="img" aria-label="Accuracy by change" viewBox="0 0 {_LEFT + _WIDTH + 24} {bottom + 24}" font-size="13">'
            f"{axis}{bars}{line}</svg>")


def _bar(place: int, name: str, measured: Measured) -> str:
    y, end = _TOP + _ROW * place + 5, _x(measured.accuracy)
    low, high, middle = _x(measured.accuracy_low), _x(measured.accuracy_high), y + 10
    short = name if len(name) <= 18 else f"{name[:17]}…"
    whisker = f"M{low} {middle}H{high}M{low} {middle - 5}v10M{high} {middle - 5}v10"
    return (f"<g><title>{escape(name)}: {measured.accuracy:.2%}</title>"
            f'<text x="{_LEFT - 8}" y="{y + 14}" text-anchor="end" fill="var(--ink)">{escape(short)}</text>'
            f'<rect x="{_LEFT}" y="{y}" width="{end - _LEFT:.1f}" height="20" rx="2" fill="var(--series-{int(place > 0)})" '
            f'fill-opacity="0.75"/><path d="{whisker}" stroke="var(--ink)" stroke-width="1.5" fill="none"/></g>')


def _x(fraction: float) -> float:
    return round(_LEFT + _WIDTH * fraction, 1)
