"""What the report's panels show: accuracies and gains over the batch size, histograms, losses, projections.

What is shared by all panels of a figure (legend, caption, method) is HTML around them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any, get_args

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.ticker import MaxNLocator, NullLocator, ScalarFormatter

from varloss_bench.config import Arm
from varloss_bench.measures import HISTOGRAM_BINS, METRICS
from varloss_bench.report.groups import Group, Trial
from varloss_bench.report.panel import MUTED, SIZE, SURFACE, Look, Panel, panel
from varloss_bench.report.style import GREY, MARKERS
from varloss_bench.statistics import inference as stats
from varloss_bench.statistics.summary import Summary

# Gains this many times as large as the median one are beyond the axis, unless they are within these percentage points.
_OUTLIER, _NO_OUTLIER = 4.0, 2.0
_MOST = 100.4  # per cent: an interval of few seeds may go on beyond all that there is
# Colours of classes, repeated beyond ten: what a point's class is called is not the figure's matter.
_CLASSES = (
    "#4477AA",
    "#EE6677",
    "#228833",
    "#CCBB44",
    "#66CCEE",
    "#AA3377",
    "#999999",
    "#EE7733",
    "#009988",
    "#6633CC",
)


@dataclass(frozen=True)
class Values:
    """Intervals of a method's arms and how they are shown.

    Attributes:
        hollow: Arms whose marker is not filled.
        ends: Of the axis, one for all panels, so that they can be compared by eye.
        failed: Arms with a failed seed, drawn as a cross: a collapsed one has the smallest variance of all.
    """

    title: str
    of: Mapping[Arm, stats.Interval]
    hollow: frozenset[Arm]
    ends: tuple[float, float]
    zero_line: bool = False
    failed: Mapping[Arm, stats.Failure] = field(default_factory=dict)


def scores(summary: Summary, method: str, metric: str) -> Values:
    """Means over seeds of a method's arms."""
    rows = [row for row in summary.rows if row.arm.method == method and row.values.get(metric)]
    arms = {row.arm: row.interval(metric) for row in rows}
    failed = {row.arm: row.failure for row in rows if row.failure}
    hollow = frozenset(arm for arm in arms if not arm.weight)
    title = f"{METRICS[metric].title}{', %' if METRICS[metric].unit else ''}"
    means = [value.mean for value in arms.values()] or [0.0]
    # An interval of two seeds can be twelve times the spread: it may leave the axis, the means may not.
    reach = max(_NO_OUTLIER if METRICS[metric].unit else 0.0, 1.5 * (max(means) - min(means)))
    everything = [end for value in arms.values() for end in _ends(value)] or [0.0]
    low, high = max(min(everything), min(means) - reach), min(max(everything), max(means) + reach)
    margin = 0.05 * (high - low) or 1.0
    ends = (low - margin, min(high + margin, _MOST)) if METRICS[metric].unit else (0.0, high + margin)
    return Values(title, arms, hollow, ends, failed=failed)


def gains(summary: Summary, method: str, metric: str, *, over_tuned: bool = False) -> Values:
    """Paired differences to the same temperature without VRN; hollow where they are not settled, none of failed arms.

    `over_tuned`: to the tuned baseline instead, where the sweep has chosen one, be it at the same temperature or not.
    """
    found = {
        c.treated: c
        for c in summary.comparisons
        if (c.treated.method, c.metric) == (method, metric)
        and (c.role == "tuned baseline" if over_tuned else not c.against_control)
        and c.verdict not in get_args(stats.Failure)
        and c.result.difference.count
    }
    arms = {arm: c.result.difference for arm, c in found.items()}
    sizes = [abs(value.mean) for value in arms.values()] or [0.0]
    # A ruinous arm does not squeeze all others into a line: it is an arrow at the edge.
    most = max(_NO_OUTLIER, _OUTLIER * median(sizes))
    ends = [end for value in arms.values() for end in _ends(value) if abs(value.mean) <= most] + [0.0]
    low, high = max(min(ends), -most), min(max(ends), most)
    margin = 0.08 * (high - low) or 1.0
    hollow = frozenset(arm for arm, c in found.items() if c.verdict != "settled")
    return Values("gain, percentage points", arms, hollow, (low - margin, high + margin), zero_line=True)


def over_batch(values: Values, look: Look) -> list[Panel]:
    """One panel per temperature, one line per weight; with a single batch size the arms stand below each other instead.

    A temperature at which VRN was not run has no panel: its line is dotted in all others.
    """
    arms, batch_sizes = values.of, sorted({arm.batch_size for arm in values.of})
    if not arms:
        return []
    if len(batch_sizes) == 1:
        return [panel("", lambda axis: _arms(axis, values, look), (SIZE[0], max(1.7, 1.0 + 0.19 * len(arms))))]
    with_vrn = sorted({arm.temperature for arm in arms if arm.weight}) or sorted({arm.temperature for arm in arms})
    controls = sorted({arm.temperature for arm in arms} - set(with_vrn))

    def draw(axis: Axes, temperature: float) -> None:
        for number, control in enumerate(controls):
            marker = MARKERS[(number + 1) % len(MARKERS)]
            line = [arm for arm in arms if arm.temperature == control]
            _line(axis, values, line, color=GREY, ls=":", marker=marker, ms=4, lw=1.3)
            for arm in set(line) & set(values.failed):
                _point(axis, values, arm, arm.batch_size, look, vertical=True)
        weights = sorted({arm.weight for arm in arms if arm.temperature == temperature})
        for number, weight in enumerate(weights):
            line = [arm for arm in arms if (arm.temperature, arm.weight) == (temperature, weight)]
            shift = 2 ** (0.09 * (number - (len(weights) - 1) / 2))
            _line(axis, values, line, shift, color=look.colours[weight], lw=1.5)
            for arm in line:
                _point(axis, values, arm, arm.batch_size * shift, look, vertical=True)
        axis.set_xscale("log", base=2)
        axis.set_xticks(batch_sizes)
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xlabel(f"batch size · {look.equal}")
        axis.set_ylim(values.ends)
        axis.set_ylabel(values.title)
        axis.grid(axis="y", color=MUTED, alpha=0.25, lw=0.6)
        if values.zero_line:
            axis.axhline(0, color=MUTED, lw=1)

    return [panel(f"t = {temperature:g}", partial(draw, temperature=temperature)) for temperature in with_vrn]


def _line(axis: Axes, values: Values, arms: Sequence[Arm], shift: float = 1.0, **style: Any) -> None:
    """Means over the batch size. A failed arm's is on no line: NaN interrupts it."""
    line = sorted(arms, key=lambda arm: arm.batch_size)
    means = [math.nan if arm in values.failed else values.of[arm].mean for arm in line]
    axis.plot([arm.batch_size * shift for arm in line], means, **style)


def _point(axis: Axes, values: Values, arm: Arm, place: float, look: Look, *, vertical: bool) -> None:
    """Marker and bar of an arm; beyond the axis an arrow at its edge, with the number."""
    value, colour = values.of[arm], look.colours[arm.weight]
    low, high = values.ends
    if not low <= value.mean <= high:
        up = value.mean > high
        edge, marker = (high, "^" if vertical else ">") if up else (low, "v" if vertical else "<")
        at = (place, edge) if vertical else (edge, place)
        axis.plot(*at, marker=marker, color=colour, ms=6, clip_on=False, zorder=5)
        # Numbers of several arms at one place stand above each other.
        beyond = [a for a, v in values.of.items() if (a.batch_size, a.temperature) == (arm.batch_size, arm.temperature)
                  and (v.mean > high if up else v.mean < low)]  # fmt: skip
        step = 9 * (1 + beyond.index(arm))
        away = (0, -step if up else step) if vertical else (-8 if up else 8, 0)
        alignment = "right" if vertical or up else "left"
        axis.annotate(
            f"{value.mean:+.1f}", at, away, textcoords="offset points", ha=alignment, va="center", color=colour
        )
        return
    x, y = (place, value.mean) if vertical else (value.mean, place)
    if arm in values.failed:  # without a bar: the interval of a failed arm is that of its survivors, or of a collapse
        axis.plot(x, y, marker="x", color=colour, ms=6, mew=1.8, ls="")
        return
    bar = float(np.nan_to_num(value.half_width))
    axis.errorbar(
        x, y, yerr=bar if vertical else None, xerr=None if vertical else bar, color=colour, marker=look.marker(arm.weight),
        mfc=SURFACE if arm in values.hollow else colour, ms=4.8, lw=1.5, capsize=2.5,
    )  # fmt: skip


def _arms(axis: Axes, values: Values, look: Look) -> None:
    arms = list(values.of)
    for y, arm in enumerate(arms):
        _point(axis, values, arm, y, look, vertical=False)
    labels = [f"t={arm.temperature:g}" + (f", VRN {arm.weight:g}" if arm.weight else "") for arm in arms]
    failures = [f" ({values.failed[arm]})" if arm in values.failed else "" for arm in arms]
    axis.set_yticks(range(len(arms)), [label + failure for label, failure in zip(labels, failures, strict=True)])
    axis.set_ylim(len(arms) - 0.5, -0.5)
    axis.set_xlim(values.ends)
    axis.set_xlabel(f"{values.title}\n{look.equal}")
    axis.grid(axis="x", color=MUTED, alpha=0.25, lw=0.6)
    if values.zero_line:
        axis.axvline(0, color=MUTED, lw=1)


def _ends(value: stats.Interval) -> tuple[float, float]:
    half_width = float(np.nan_to_num(value.half_width))
    return value.mean - half_width, value.mean + half_width


def histograms(group: Group, plain: Arm, treated: Arm, look: Look) -> Panel | None:
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

    return panel(_versus(treated), draw)


def losses(group: Group, arms: Sequence[Arm], look: Look) -> Panel | None:
    """Training loss by epoch: mean and, shaded, the standard deviation over seeds. None without records."""
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

    first = arms[0]
    return panel(f"B = {first.batch_size}, t = {first.temperature:g}", draw)


def _whole(curves: Sequence[Sequence[float]]) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """Curves of the longest length there is; a shorter one comes from a record that was cut."""
    longest = max(map(len, curves), default=0)
    return np.array([curve for curve in curves if len(curve) == longest], dtype=float)


def components(trial: Trial, title: str, look: Look) -> Panel:
    """First two principal components of held-out projections, coloured by class; points are one raster image."""
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

    return panel(title, draw, (3.6, 3.2))


def _versus(treated: Arm) -> str:
    return f"B = {treated.batch_size}, t = {treated.temperature:g}: VRN {treated.weight:g} and none"
