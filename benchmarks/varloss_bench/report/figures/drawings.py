"""What the panels of all figures show, drawn on matplotlib axes: for the page's SVGs and for the PNG of a sweep alike."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.ticker import MaxNLocator, NullLocator, ScalarFormatter

from varloss_bench.config import Arm
from varloss_bench.measures import HISTOGRAM_BINS
from varloss_bench.report.figures.charts import Chart, Point
from varloss_bench.report.figures.style import GREY, MARKERS, MUTED, SIZE, SURFACE, Look
from varloss_bench.report.groups import Group, Trial

# Colours of classes, repeated beyond ten classes.
_CLASSES = (
    "#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#999999", "#EE7733", "#009988", "#6633CC",
)  # fmt: skip


@dataclass(frozen=True)
class Drawing:
    """A panel: what is drawn on its axes, its heading, and its size in inches."""

    title: str
    draw: Callable[[Axes], None]
    size: tuple[float, float] = SIZE


def panels(charts: Sequence[Chart], look: Look) -> list[Drawing]:
    """The panels of a method's charts: over the batch size, or as a list of arms with a single batch size."""
    if len({point.arm.batch_size for chart in charts for point in chart.points}) > 1:
        return [drawing for chart in charts for drawing in over_batch(chart, look)]
    titles = [chart.title if len(charts) > 1 else "" for chart in charts]
    return [listed(chart, look, title) for chart, title in zip(charts, titles, strict=True) if chart.points]


def over_batch(chart: Chart, look: Look) -> list[Drawing]:
    """Values over the batch size: one panel per temperature, one line per weight.

    A temperature at which VRN was not run has no panel; its line is dotted in all others.
    """
    trained = {point.arm.temperature for point in chart.points}
    temperatures = {point.arm.temperature for point in chart.points if point.arm.weight} or trained
    return [
        Drawing(f"t = {temperature:g}", partial(_over_batch, chart, look, temperature, trained - temperatures))
        for temperature in sorted(temperatures)
    ]


def _over_batch(chart: Chart, look: Look, temperature: float, controls: set[float], axis: Axes) -> None:
    for number, control in enumerate(sorted(controls)):
        marker = MARKERS[(number + 1) % len(MARKERS)]
        line = [point for point in chart.points if point.arm.temperature == control]
        _line(axis, line, color=GREY, ls=":", marker=marker, ms=4, lw=1.3)
        for point in line:
            if point.failure:
                _mark(axis, chart, point, point.arm.batch_size, look, vertical=True)
    mine = [point for point in chart.points if point.arm.temperature == temperature]
    lines = sorted({(point.arm.weight, point.control or 0.0) for point in mine})
    for number, key in enumerate(lines):
        line = [point for point in mine if (point.arm.weight, point.control or 0.0) == key]
        shift = 2 ** (0.09 * (number - (len(lines) - 1) / 2))
        _line(axis, line, shift, color=look.colours[key[0]], ls=_dash(line[0], look), lw=1.5)
        for point in line:
            _mark(axis, chart, point, point.arm.batch_size * shift, look, vertical=True)
    axis.set_xscale("log", base=2)
    batch_sizes = sorted({point.arm.batch_size for point in chart.points})
    axis.set_xticks(batch_sizes)
    axis.set_xlim(batch_sizes[0] / 1.3, batch_sizes[-1] * 1.3)
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel(f"batch size · {look.equal}")
    axis.set_ylim(chart.ends)
    axis.set_ylabel(chart.axis)
    axis.grid(axis="y", color=MUTED, alpha=0.25, lw=0.6)
    if chart.zero_line:
        axis.axhline(0, color=MUTED, lw=1)


def listed(chart: Chart, look: Look, title: str = "") -> Drawing:
    """Values of the arms of a single batch size, one below the other."""
    rows = sum(1 if point.control is None else 2 for point in chart.points)
    size = SIZE[0], max(1.7, 1.0 + 0.19 * rows)
    return Drawing(title, partial(_listed, chart, look), size)


def _listed(chart: Chart, look: Look, axis: Axes) -> None:
    for y, point in enumerate(chart.points):
        _mark(axis, chart, point, y, look, vertical=False)
    axis.set_yticks(range(len(chart.points)), [_row_label(point) for point in chart.points])
    axis.set_ylim(len(chart.points) - 0.5, -0.5)
    axis.set_xlim(chart.ends)
    axis.xaxis.set_major_locator(MaxNLocator(4))
    axis.set_xlabel(f"{chart.axis}\n{look.equal}")
    axis.grid(axis="x", color=MUTED, alpha=0.25, lw=0.6)
    if chart.zero_line:
        axis.axvline(0, color=MUTED, lw=1)


def _row_label(point: Point) -> str:
    over = "" if point.control is None else f"\nover t={point.control:g}"
    return point.arm.short_label() + over + (f" ({point.failure})" if point.failure else "")


def _dash(point: Point, look: Look) -> str:
    return "-" if point.control is None else look.dashes[point.control]


def _line(axis: Axes, points: Sequence[Point], shift: float = 1.0, **style: Any) -> None:
    """Means over the batch size. NaN interrupts the line at a failed arm."""
    line = sorted(points, key=lambda point: point.arm.batch_size)
    means = [math.nan if point.failure else point.value.mean for point in line]
    axis.plot([point.arm.batch_size * shift for point in line], means, **style)


def _mark(axis: Axes, chart: Chart, point: Point, place: float, look: Look, *, vertical: bool) -> None:
    """Marker and bar of a point: a cross without a bar for a failed arm, an arrow at the edge beyond the axis."""
    colour = look.colours[point.arm.weight]
    if not chart.ends[0] <= point.value.mean <= chart.ends[1]:
        _arrow(axis, chart, point, place, colour, vertical=vertical)
        return
    x, y = (place, point.value.mean) if vertical else (point.value.mean, place)
    if point.failure:  # its interval would be that of the remaining seeds, or of a collapse
        axis.plot(x, y, marker="x", color=colour, ms=6, mew=1.8, ls="")
        return
    bar = float(np.nan_to_num(point.value.half_width))
    drawn = axis.errorbar(
        x, y, yerr=bar if vertical else None, xerr=None if vertical else bar, color=colour,
        marker=look.marker(point.arm.weight), mfc=colour if point.filled else SURFACE, ms=4.8, lw=1.5, capsize=2.5,
    )  # fmt: skip
    for line in drawn.lines[2]:
        line.set_linestyle(_dash(point, look))


def _arrow(axis: Axes, chart: Chart, point: Point, place: float, colour: str, *, vertical: bool) -> None:
    """An arrow at the end of the axis and the number that lies beyond it."""
    low, high = chart.ends
    up = point.value.mean > high
    edge, marker = (high, "^" if vertical else ">") if up else (low, "v" if vertical else "<")
    at = (place, edge) if vertical else (edge, place)
    axis.plot(*at, marker=marker, color=colour, ms=6, clip_on=False, zorder=5)
    # Numbers at one place stand above each other.
    same_place = [
        other
        for other in chart.points
        if (other.arm.batch_size, other.arm.temperature) == (point.arm.batch_size, point.arm.temperature)
        and (other.value.mean > high if up else other.value.mean < low)
    ]
    step = 9 * (1 + same_place.index(point))
    away = (0, -step if up else step) if vertical else (-8 if up else 8, 0)
    half_width = point.value.half_width
    text = f"{point.value.mean:+.1f}" + ("" if math.isnan(half_width) else f"±{half_width:.1f}")
    # Text at the largest batch size would leave the panel on its right.
    aligned = "right" if vertical or up else "left"
    axis.annotate(text, at, away, textcoords="offset points", ha=aligned, va="center", color=colour)


def histograms(group: Group, plain: Arm, treated: Arm, look: Look) -> Drawing | None:
    """Cosine similarities of held-out pairs, summed over seeds: positives dashed, negatives solid. None without records."""
    pairs = [(arm, [t for t in group.of(arm) if "drawn" in t.record]) for arm in (plain, treated)]
    if not all(trials for _, trials in pairs):
        return None
    edges = np.linspace(-1, 1, HISTOGRAM_BINS + 1)

    def draw(axis: Axes) -> None:
        for arm, trials in pairs:
            for kind, style in (("negatives", "-"), ("positives", "--")):
                counts = np.sum([t.record["drawn"]["similarity_histograms"][kind] for t in trials], axis=0, dtype=float)
                density = counts / max(counts.sum(), 1) / (edges[1] - edges[0])
                axis.stairs(density, edges, color=look.colours[arm.weight], ls=style, lw=1.5)
        axis.set_xlim(-1, 1)
        axis.set_ylim(bottom=0)
        axis.set_xlabel(f"cosine similarity, held out · {look.equal}")
        axis.set_ylabel("density")

    return Drawing(f"{_place(treated)}: VRN {treated.weight:g} and none", draw)


def losses(group: Group, arms: Sequence[Arm], look: Look) -> Drawing | None:
    """Training loss by epoch: the mean and, shaded, the standard deviation over seeds. None without records."""
    curves = {
        arm: _whole([t.record["epoch_losses"] for t in group.of(arm) if t.record.get("epoch_losses")]) for arm in arms
    }
    if not any(len(values) for values in curves.values()):
        return None

    def draw(axis: Axes) -> None:
        for arm, values in curves.items():
            if not len(values):
                continue
            epochs = np.arange(1, values.shape[1] + 1)
            mean, spread = values.mean(0), values.std(0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])
            axis.fill_between(epochs, mean - spread, mean + spread, color=look.colours[arm.weight], alpha=0.2, lw=0)
            axis.plot(epochs, mean, color=look.colours[arm.weight], lw=1.5)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_xlabel(f"epoch · {look.equal}")
        axis.set_ylabel("training loss, VRN included")
        axis.grid(axis="y", color=MUTED, alpha=0.25, lw=0.6)

    return Drawing(_place(arms[0]), draw)


def _whole(curves: Sequence[Sequence[float]]) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """The curves of the longest length; a shorter one comes from a record that was cut."""
    longest = max(map(len, curves), default=0)
    return np.array([curve for curve in curves if len(curve) == longest], dtype=float)


def components(trial: Trial, title: str, look: Look) -> Drawing:
    """First two principal components of held-out projections, coloured by class; the points are one raster image."""
    drawn = trial.record["drawn"]["principal_components"]
    points, labels = np.array(drawn["points"], dtype=float).reshape(-1, 2), np.array(drawn["labels"], dtype=int)

    def draw(axis: Axes) -> None:
        axis.scatter(
            points[:, 0], points[:, 1], c=labels % len(_CLASSES), cmap=ListedColormap(list(_CLASSES)), s=9, lw=0,
            vmin=0, vmax=len(_CLASSES) - 1, rasterized=True,
        )  # fmt: skip
        axis.set_aspect("equal")
        axis.set_xlim(-1.05, 1.05)
        axis.set_ylim(-1.05, 1.05)
        axis.set_xlabel(f"first component · {look.equal}")
        axis.set_ylabel("second component")

    return Drawing(title, draw, (3.6, 3.2))


def _place(arm: Arm) -> str:
    return f"B = {arm.batch_size}, t = {arm.temperature:g}"
