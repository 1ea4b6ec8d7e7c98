"""Weight x temperature as tables of coloured cells: the score, and the gain over the two baselines."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from matplotlib import colormaps
from matplotlib.colors import LinearSegmentedColormap, to_hex, to_rgb

from varloss_bench.config import Arm
from varloss_bench.statistics.best import SCORE, best_row, score_difference
from varloss_bench.statistics.inference import Interval
from varloss_bench.statistics.summary import Row, Summary

# Orange to blue through white: the ends differ in hue for every kind of colour blindness and are equally light.
_DIVERGING = LinearSegmentedColormap.from_list("gain", ["#B35806", "#F1A340", "#F7F7F7", "#74ADD1", "#2166AC"])
_SEQUENTIAL = colormaps["cividis"]
# The colours span at least this many percentage points, so that a tenth of a point does not look like a large difference.
_LEAST_SPREAD = 2.0


@dataclass(frozen=True)
class Cell:
    """A number with its 95% half width and its colours; a failure is a word without colour."""

    text: str
    half_width: str = ""
    background: str = ""
    ink: str = ""
    best: bool = False


@dataclass(frozen=True)
class Heat:
    """One table: rows are weights, columns temperatures."""

    title: str
    temperatures: tuple[float, ...]
    rows: tuple[tuple[float, tuple[Cell, ...]], ...]


def heat_maps(summary: Summary, method: str, batch_size: int) -> list[Heat]:
    """Score, gain over the same temperature without VRN, gain over the tuned temperature without VRN.

    Empty without at least two weights and two temperatures; the table of rows is clearer then. The scale of the gains is
    symmetric and common to all methods and batch sizes; the scale of the scores is that of this table.
    """
    rows = {row.arm: row for row in summary.rows if (row.arm.method, row.arm.batch_size) == (method, batch_size)}
    weights, temperatures = sorted({arm.weight for arm in rows}), sorted({arm.temperature for arm in rows})
    if len(weights) < 2 or len(temperatures) < 2:
        return []
    base = best_row(summary, method, batch_size, with_vrn=False)
    limit = _limit(summary)
    scores = {arm: row.interval(SCORE) for arm, row in rows.items() if row.values.get(SCORE) and not row.failure}
    means = [score.mean for score in scores.values()]
    highest = max(scores, key=lambda arm: scores[arm].mean, default=None)

    def score_cell(arm: Arm) -> Cell:
        value = scores[arm]
        spread = max(_LEAST_SPREAD, max(means) - min(means))
        return _cell(value, "", _SEQUENTIAL(1 - (max(means) - value.mean) / spread), best=arm == highest)

    def gain_cell(arm: Arm, over: Row | None) -> Cell:
        if over is None or over.failure or not over.values.get(SCORE):
            return Cell("-")
        if arm == over.arm:
            return Cell("base")
        value = score_difference(rows[arm], over)
        if math.isnan(value.mean):
            return Cell("-")
        return _cell(value, "+", _DIVERGING(0.5 + 0.5 * max(-1.0, min(1.0, value.mean / limit))))

    def table(title: str, kind: int) -> Heat:
        def cell(weight: float, temperature: float) -> Cell:
            arm = next((a for a in rows if (a.weight, a.temperature) == (weight, temperature)), None)
            if arm is None:
                return Cell("")
            if arm not in scores:
                return Cell(rows[arm].failure or "-")
            if kind == 0:
                return score_cell(arm)
            return gain_cell(arm, rows.get(replace(arm, weight=0.0)) if kind == 1 else base)

        return Heat(title, tuple(temperatures), tuple((w, tuple(cell(w, t) for t in temperatures)) for w in weights))

    best_title = "gain over the best temperature without VRN"
    if base is not None:
        best_title += f" (t\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{base.arm.temperature:g})"
    return [table("score", 0), table("gain over the same temperature without VRN", 1), table(best_title, 2)]


def _limit(summary: Summary) -> float:
    """End of the colour scale of gains: the 90th percentile of their sizes, so that one outlier does not bleach the others."""
    sizes = []
    for row in summary.rows:
        arm = row.arm
        base = best_row(summary, arm.method, arm.batch_size, with_vrn=False) if arm.trained else None
        if base and row.values.get(SCORE) and not row.failure:
            sizes.append(abs(score_difference(row, base).mean))
    sizes = sorted(size for size in sizes if size > 0)
    return max(_LEAST_SPREAD / 2, sizes[int(0.9 * (len(sizes) - 1))] if sizes else 0.0)


def _cell(value: Interval, sign: str, colour: Sequence[float], *, best: bool = False) -> Cell:
    background = to_hex(tuple(colour)[:3])
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(background))
    # WCAG's relative luminance; above 0.18 black has the higher contrast.
    ink = "#000" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.18 else "#fff"
    half_width = "" if math.isnan(value.half_width) else f"±{value.half_width:.1f}"
    mean = round(value.mean, 1) + 0.0  # no -0.0
    return Cell(f"{mean:{sign}.1f}", half_width, background, ink, best)
