"""How a model does on changed data, drawn for the report: accuracy by kind of change, against the untouched rows.

    section({"untouched": evaluation, "typos": evaluation_of_typos, …})    # the others are compared with the first
"""

from collections.abc import Mapping
from typing import Protocol

from jobs.common.report.html import Section, render


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
    first = next(iter(results.values())).accuracy
    rows = [(name, f"{r.accuracy:.2%}", f"{r.accuracy_low:.2%} – {r.accuracy_high:.2%}",
             f"{100 * (r.accuracy - first):+.2f}" if place else "–") for place, (name, r) in enumerate(results.items())]
    changes = "; ".join(f"{name}: {text}" for name, text in (about or {}).items() if name in results)
    html = render("robustness.html", results=results, first=first, rows=rows, split=split, changes=changes)
    return Section(title, html)
