"""The look of all figures: colours, markers, dashes, and the matplotlib settings they share."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import colormaps
from matplotlib.colors import to_hex

# Okabe-Ito: distinguishable for colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#707070"
MARKERS = "osD^vP*X"
DASHES = ("--", ":", "-.")
# Text, lines of the frame, and the inside of hollow markers. A page replaces these colours by those of its theme.
TEXT, MUTED, SURFACE = "#010203", "#040506", "#fdfcfb"
SIZE = (4.1, 2.9)  # inches
SETTINGS: dict[str, Any] = {
    # Text stays text: smaller, searchable, in the page's font. A `$` in a record is not mathematics.
    "svg.fonttype": "none",
    # Names inside an SVG are digests of what they name, equal in every run.
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


@dataclass(frozen=True)
class Look:
    """What all figures of a sweep share.

    Attributes:
        colours: By VRN weight, in the order of the legend.
        dashes: Of the lines of gains, by the base's temperature where that is another one than the arm's.
        equal: The length that all trials share.
    """

    colours: dict[float, str]
    dashes: dict[float, str]
    equal: str

    def marker(self, weight: float) -> str:
        """Of a weight, beside its colour."""
        return MARKERS[list(self.colours).index(weight) % len(MARKERS)]


def weight_colours(weights: Iterable[float]) -> dict[float, str]:
    """Grey without VRN and a colour for each weight; beyond six weights the colours are those of viridis."""
    positive = sorted({weight for weight in weights if weight})
    colours = (
        COLOURS
        if len(positive) <= len(COLOURS)
        else [to_hex(colormaps["viridis"](i / len(positive))) for i in range(len(positive))]
    )
    return {0.0: GREY, **dict(zip(positive, colours, strict=False))}


def base_dashes(temperatures: Sequence[float]) -> dict[float, str]:
    """A dash pattern for each temperature of a base."""
    return {t: DASHES[number % len(DASHES)] for number, t in enumerate(dict.fromkeys(temperatures))}
