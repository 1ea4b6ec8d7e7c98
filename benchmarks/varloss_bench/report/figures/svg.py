"""A drawing as a small SVG that lies inside the page and takes the page's colours, light or dark."""

import io
import re
from dataclasses import dataclass

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from varloss_bench.report.figures.drawings import Drawing
from varloss_bench.report.figures.style import COLOURS, GREY, MARKERS, MUTED, SETTINGS, SURFACE, TEXT

_CSS = {TEXT: "currentColor", MUTED: "var(--muted)", SURFACE: "var(--surface)", GREY: "var(--plain)"} | {
    colour: f"var(--s{number})" for number, colour in enumerate(COLOURS)
}
_GLYPHS = dict(zip(MARKERS, "●■▲◆▼✚★✖", strict=True)) | {"D": "◆", "^": "▲"}
CROSS = "✕"  # the glyph of failed arms


@dataclass(frozen=True)
class Panel:
    """One SVG with its heading."""

    title: str
    svg: str


def css(colour: str) -> str:
    """The CSS value that stands for a colour of the figures."""
    return _CSS.get(colour, colour)


def glyph(marker: str) -> str:
    """The character that looks like a marker."""
    return _GLYPHS[marker]


def panel(drawing: Drawing) -> Panel:
    """The drawing on a separate figure."""
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=drawing.size, dpi=72, layout="constrained")
        FigureCanvasSVG(figure)
        drawing.draw(figure.subplots())
        buffer = io.StringIO()
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata, dpi=160)
    text = buffer.getvalue()
    text = re.sub(r"<!--.*?-->\s*|<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'\bid="(?:figure|axes|patch|line2d|text|matplotlib\.axis|[xy]tick)_\d+"', "", text)
    for colour, value in _CSS.items():
        text = re.sub(re.escape(colour), value, text, flags=re.IGNORECASE)
    return Panel(drawing.title, text)
