"""The report as one HTML page and as Markdown, from its sections and the templates."""

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from varloss_bench.messages import counted
from varloss_bench.report.figures.svg import Panel
from varloss_bench.report.groups import Found
from varloss_bench.report.sections import Section


def html(found: Found, sections: Sequence[Section], folder: Path, command: str) -> str:
    """The page: one file without scripts that loads nothing. Everything from a record is escaped."""
    return _render("report.html.j2", found, sections, folder, command, escape=True)


def markdown(found: Found, sections: Sequence[Section], folder: Path, command: str) -> str:
    """The same as Markdown, without figures."""
    return _render("report.md.j2", found, sections, folder, command, escape=False)


def _render(
    template: str, found: Found, sections: Sequence[Section], folder: Path, command: str, *, escape: bool
) -> str:
    environment = Environment(
        loader=PackageLoader("varloss_bench.report"),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = _trusted_svg
    environment.filters["cell"] = _markdown_cell
    environment.filters["counted"] = counted
    return environment.get_template(template).render(
        sections=sections, left_out=found.left_out, folder=str(folder), command=command, num_trials=len(found.trials)
    )


def _trusted_svg(panel: Panel) -> Markup:
    """Matplotlib's own output, which has every text escaped."""
    return Markup(panel.svg)


def _markdown_cell(text: object) -> str:
    """Text that stays in its cell and is no markup, neither of Markdown nor of HTML."""
    one_line = " ".join(str(text).split())
    for character, replacement in (("\\", "\\\\"), ("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        one_line = one_line.replace(character, replacement)
    return "".join(f"\\{c}" if c in "|`*_[]#~" else c for c in one_line)
