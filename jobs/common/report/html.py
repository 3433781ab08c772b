"""The pages that reports are: Jinja2 templates, in the folder `templates/` of the package that shows something.

A value is escaped where a template puts it in; what a template or a chart has made is Markup, which stays as it is.
Every page extends `templates/page.html` of this package, and finds its macros.
"""

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from markupsafe import Markup

from jobs.common.formatting import shown
from jobs.common.provenance import without_secrets

if TYPE_CHECKING:
    from jinja2 import Environment

_HERE = "jobs.common.report"


class Section(NamedTuple):
    """A part of a page under a heading."""

    title: str
    html: Markup


def section(title: str, intro: str = "", headings: Sequence[str] = (),
            rows: Sequence[Sequence[object]] = ()) -> Section:
    """A sentence, a table below it, or both. All columns but the first are numbers."""
    return Section(title, render("section.html", intro=intro, headings=headings, rows=rows))


def figures(title: str, intro: str, charts: Sequence[tuple[str, Markup]]) -> Section:
    """A sentence, and charts below it, each under its title."""
    return Section(title, render("figures.html", intro=intro, figures=charts))


def render(template: str, package: str = _HERE, /, **values: object) -> Markup:
    """A page, or the HTML of a section. package: whose `templates/` the template is in."""
    return Markup(_environment(package).get_template(template).render(values))


def number(value: float | None, style: str = ".4f") -> str:
    """A number as Python formats it; a dash for none."""
    return "–" if value is None else format(value, style)


@cache
def _environment(package: str) -> "Environment":
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined  # not needed by --help

    loader = ChoiceLoader([PackageLoader(each) for each in dict.fromkeys((package, _HERE))])
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"shown": shown, "number": number, "without_secrets": without_secrets}
    return environment
