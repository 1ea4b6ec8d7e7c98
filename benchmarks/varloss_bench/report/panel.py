"""A panel of the report: one small SVG that lies inside the page and takes its colours.

It is drawn in a handful of stand-in colours which become the page's CSS variables, so that the same picture suits a light
and a dark page.
"""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from varloss_bench.report.style import COLOURS, GREY, MARKERS

# Stand-ins, replaced by CSS. Text, lines of the frame, and the inside of hollow markers.
TEXT, MUTED, SURFACE = "#010203", "#040506", "#fdfcfb"
_CSS = {TEXT: "currentColor", MUTED: "var(--muted)", SURFACE: "var(--surface)", GREY: "var(--plain)"} | {
    colour: f"var(--s{number})" for number, colour in enumerate(COLOURS)
}
_GLYPHS = dict(zip(MARKERS, "●■▲◆▼✚★✖", strict=True)) | {"D": "◆", "^": "▲"}
_STYLE = {
    # Text stays text: smaller, searchable, in the page's font. Nothing in a record is mathematics to be typeset.
    "svg.fonttype": "none",
    # Names inside an SVG are then digests of what they name: equal in every run, and in one page the same only for the same.
    "svg.hashsalt": "varloss-bench",
    "text.parse_math": False,
    "font.size": 9,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": TEXT,
    "text.color": TEXT,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": TEXT,
    "ytick.labelcolor": TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
}
CROSS = "✕"  # the glyph of failed arms
SIZE = (4.1, 2.9)


@dataclass(frozen=True)
class Panel:
    """One SVG with its heading."""

    title: str
    svg: str


@dataclass(frozen=True)
class Look:
    """What all panels of a group share: a colour per weight, and the words that say what was equal."""

    colours: dict[float, str]
    equal: str

    def marker(self, weight: float) -> str:
        """Of a weight, beside its colour."""
        return MARKERS[list(self.colours).index(weight) % len(MARKERS)]


class Key(NamedTuple):
    """An entry of a legend in HTML."""

    colour: str
    glyph: str
    label: str


def css(colour: str) -> str:
    """The CSS value that stands for a colour of the figures."""
    return _CSS.get(colour, colour)


def glyph(number: int) -> str:
    """The character that looks like the marker of this number."""
    return _GLYPHS[MARKERS[number % len(MARKERS)]]


def panel(title: str, draw: Callable[[Axes], None], size: tuple[float, float] = SIZE) -> Panel:
    """A panel of this size in inches, with what `draw` puts on its axes."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, dpi=72, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.subplots())
        buffer = io.StringIO()
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata, dpi=160)
    text = buffer.getvalue()
    text = re.sub(r"<!--.*?-->\s*|<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'\bid="(?:figure|axes|patch|line2d|text|matplotlib\.axis|[xy]tick)_\d+"', "", text)
    for colour, value in _CSS.items():
        text = re.sub(re.escape(colour), value, text, flags=re.IGNORECASE)
    return Panel(title, text)
