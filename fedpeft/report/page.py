"""What all pages have in common: their style sheet, and how their templates are read."""

import importlib.resources
from functools import cache

import jinja2
from markupsafe import Markup

from fedpeft.report import text


@cache
def template(name: str) -> jinja2.Template:
    """Returns a template of this package; everything that it is given is escaped."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        count=text.count,
        delta=text.delta,
        duration=text.duration,
        epsilon=text.epsilon,
        printable=text.printable,
    )
    return environment.from_string(_resource(name))


@cache
def house_style_sheet() -> Markup:
    """The style sheet of report.html, which is the only place where it is written."""
    _, start, rest = _resource("report.html.j2").partition("<style>")
    sheet, end, _ = rest.partition("</style>")
    assert start, "report.html.j2 has no style sheet"
    assert end
    assert "{{" not in sheet
    assert "{%" not in sheet
    return Markup(sheet)  # noqa: S704


def _resource(name: str) -> str:
    return importlib.resources.files("fedpeft.report").joinpath(name).read_text(encoding="utf-8")
