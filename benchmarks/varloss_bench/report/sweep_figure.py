"""The picture of a sweep: accuracy gained with VRN, and the variance of held-out negatives, both with intervals."""

import io
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import get_args

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator, ScalarFormatter

from varloss_bench.config import TrialConfig
from varloss_bench.measures import ACCURACIES, METRICS
from varloss_bench.methods import display_name
from varloss_bench.records.redraws import enumerated, redraws
from varloss_bench.report.style import GREY, MARKERS, equal_words, split_words, weight_colours
from varloss_bench.statistics.inference import Failure
from varloss_bench.statistics.summary import Comparison, Summary

_CONTROL_STYLES = ("--", ":", "-.")
_THEN = {"epochs": ": small batches take more steps", "steps": ": large batches see more data"}
_FAILED = "#B00000"
# With more weights than this, differences from the controls as well are too many to be read; they are in the table.
_MAX_WEIGHTS_WITH_CONTROLS = 3
# Differences this many times as large as the median one do not set the scale of all others, unless they are within these
# percentage points: that much is no outlier, however small the others are.
_OUTLIER, _NO_OUTLIER = 4.0, 2.0


@dataclass(frozen=True)
class _Look:
    """What stands for what, in all panels: colour for the weight, marker for the temperature, dashes for the base."""

    colours: dict[float, str]
    markers: dict[float, str]
    styles: dict[float, str]
    with_controls: bool

    def style(self, comparison: Comparison) -> str:
        return self.styles[comparison.base.temperature] if comparison.against_control else "-"


def _look(summary: Summary) -> _Look:
    trained = [row.arm for row in summary.rows if row.arm.trained]
    colours = weight_colours(arm.weight for arm in trained)
    # Bars have their temperature written beside them: with a single batch size markers are of arms with VRN only.
    curves = len({arm.batch_size for arm in trained}) > 1
    temperatures = list(dict.fromkeys(arm.temperature for arm in trained if curves or arm.weight))
    controls = list(dict.fromkeys(c.base.temperature for c in summary.comparisons if c.against_control))
    return _Look(
        colours,
        {t: MARKERS[number % len(MARKERS)] for number, t in enumerate(temperatures)},
        {t: _CONTROL_STYLES[number % len(_CONTROL_STYLES)] for number, t in enumerate(controls)},
        with_controls=len(colours) - 1 <= _MAX_WEIGHTS_WITH_CONTROLS,
    )


def draw(summary: Summary, config: TrialConfig) -> bytes:
    """The figure as a PNG."""
    buffer = io.BytesIO()
    build(summary, config).savefig(buffer, format="png")
    return buffer.getvalue()


def build(summary: Summary, config: TrialConfig) -> Figure:
    """One row of panels per method; over several batch sizes the horizontal axis is the batch size."""
    methods = list(dict.fromkeys(row.arm.method for row in summary.rows if row.arm.trained))
    batch_sizes = sorted({row.arm.batch_size for row in summary.rows if row.arm.trained})
    look = _look(summary)
    shown = [c for c in summary.comparisons if look.with_controls or not c.against_control]
    figure = Figure(figsize=(12, 1.7 + 2.6 * len(methods)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(methods), 2, squeeze=False, sharex="col", width_ratios=(1.35, 1))
    for (gain, variance), method in zip(axes, methods, strict=True):
        if len(batch_sizes) == 1:
            _forest(gain, shown, method, look)
            _variances(variance, summary, method, look)
        else:
            _gain_over_batch(gain, shown, method, look)
            _variance_over_batch(variance, summary, method, look)
            for axis in (gain, variance):
                _over_batch(axis, batch_sizes)
        name = display_name(method)
        gain.set_title(f"{name}: accuracy gained with VRN", fontsize=10.5, loc="left", fontweight="bold")
        variance.set_title(f"{name}: variance of negatives", fontsize=10.5, loc="left", fontweight="bold")
        for axis in (gain, variance):
            axis.spines[["top", "right"]].set_visible(False)
            axis.tick_params(labelsize=9)
    if len(batch_sizes) == 1:
        axes[-1, 0].set_xlabel("paired difference, percentage points", fontsize=9)
        axes[-1, 1].set_xlabel("variance of held-out negative similarities", fontsize=9)
        axes[-1, 1].set_xlim(left=0)
    else:
        for axis in axes[-1]:
            axis.set_xlabel(f"batch size ({equal_words(config)}{_THEN[config.equal]})", fontsize=9)
    figure.legend(handles=_legend(shown, look), loc="outside right upper", fontsize=9, frameon=False)
    figure.suptitle(_title(config, batch_sizes, len(summary.seeds)), fontsize=12.5, x=0.01, ha="left")
    figure.supxlabel(_caption(summary, config, look), fontsize=8.5, x=0.01, ha="left", color="#404040")
    return figure


def _legend(shown: Sequence[Comparison], look: _Look) -> list[Line2D]:
    def entry(label: str, colour: str = "black", style: str = "-", marker: str = "") -> Line2D:
        return Line2D([], [], color=colour, linestyle=style, marker=marker, ms=5.5, label=label)

    entries = [entry(f"VRN {w:g}" if w else "without VRN", colour) for w, colour in look.colours.items()]
    if len(look.markers) > 1:
        entries += [entry(f"t={t:g}", style="", marker=marker) for t, marker in look.markers.items()]
    if shown:
        entries += [entry("left: gain over", style=""), entry("same t, no VRN")]
    bases = dict.fromkeys(c.base.temperature for c in shown if c.against_control)
    return entries + [entry(f"t={t:g}, no VRN", style=look.styles[t]) for t in bases]


def _title(config: TrialConfig, batch_sizes: Sequence[int], seeds: int) -> str:
    batches = ", ".join(map(str, batch_sizes))
    backbone = "3-convolution net" if config.backbone == "small" else config.backbone
    return f"Variance reduction (VRN) on {config.data}: batch size {batches}, {backbone}, {seeds} paired seeds"


def _caption(summary: Summary, config: TrialConfig, look: _Look) -> str:
    baselines = "; ".join(
        f"{row.arm.method} {row.interval('few_label_probe').mean:.1f}%"
        for row in summary.rows
        if not row.arm.trained and "few_label_probe" in row.values
    )
    text = (
        f"{equal_words(config).capitalize()}, last epoch, {split_words(config)}. Bars: 95% t intervals over seeds of the "
        f"paired difference (left) and of the mean (right); a seed redraws {enumerated(redraws(config))}, shared by all "
        "arms. Filled: settled after Holm's correction over all comparisons; hollow: not; "
        "cross: no win whatever its value, a seed collapsed, diverged or crashed. Arrow: beyond the axis. "
        "Similarities are of held-out images, not of training batches."
        + ("" if look.with_controls else " Gains over the control temperatures are in the table.")
        + (f" 10-label probe without training: {baselines}." if baselines else "")
    )
    return textwrap.fill(text, 165)


def _point(axis: Axes, comparison: Comparison, x: float, y: float, look: _Look, *, vertical: bool) -> None:
    half_width = comparison.result.difference.half_width
    colour = look.colours[comparison.treated.weight]
    failed = comparison.verdict in get_args(Failure)
    drawn = axis.errorbar(
        x,
        y,
        xerr=None if vertical else half_width,
        yerr=half_width if vertical else None,
        fmt="x" if failed else look.markers[comparison.treated.temperature],
        color=colour,
        mfc=colour if comparison.verdict == "settled" else "white",
        capsize=3,
        ms=5.5,
        lw=1.6,
    )
    for bar in drawn.lines[2]:
        bar.set_linestyle(look.style(comparison))


def _ends(comparison: Comparison) -> tuple[float, float]:
    """The interval's ends; both the mean where there is no interval, NaN where there is nothing."""
    difference = comparison.result.difference
    half_width = 0.0 if math.isnan(difference.half_width) else difference.half_width
    return difference.mean - half_width, difference.mean + half_width


def _scale(shown: Sequence[Comparison]) -> tuple[tuple[float, float] | None, list[Comparison]]:
    """Ends of the axis of differences, and those left out of it: they would squeeze all others into a line."""
    reach = {c: max(map(abs, _ends(c))) for c in shown if not math.isnan(c.result.difference.mean)}
    if not any(reach.values()):
        return None, []
    outliers = [c for c in reach if reach[c] > max(_NO_OUTLIER, _OUTLIER * median(reach.values()))]
    ends = [end for c in reach if c not in outliers for end in _ends(c)]
    low, high = min(0.0, *ends), max(0.0, *ends)
    margin = 0.1 * (high - low) or 1.0  # all that are no outliers can be 0
    return (low - margin, high + margin), outliers


def _arrow(axis: Axes, comparison: Comparison, place: float, look: _Look, *, number: int, vertical: bool) -> None:
    """An arrow at the end of the axis with the number that lies beyond it; texts of several stand above each other."""
    difference = comparison.result.difference
    colour = look.colours[comparison.treated.weight]
    up = difference.mean > 0
    edge = (axis.get_ylim() if vertical else axis.get_xlim())[up]
    position = (place, edge) if vertical else (edge, place)
    marker = ("^" if up else "v") if vertical else (">" if up else "<")
    axis.plot(*position, marker=marker, color=colour, ms=7, clip_on=False, zorder=5)
    text = f"{difference.mean:+.1f}" + ("" if math.isnan(difference.half_width) else f"±{difference.half_width:.1f}")
    to_the_left = vertical or up
    axis.annotate(
        text,
        position,
        (-8 if to_the_left else 8, (-11 if up else 11) * number if vertical else 0),
        textcoords="offset points",
        ha="right" if to_the_left else "left",
        va="center" if not vertical else "top" if up else "bottom",
        color=colour,
        fontsize=8.5,
    )


def _forest(axis: Axes, shown: Sequence[Comparison], method: str, look: _Look) -> None:
    accuracies = [c for c in shown if c.metric in ACCURACIES]
    limits, outliers = _scale(accuracies)  # of all methods, whose panels share the axis
    if limits:
        axis.set_xlim(limits)
    mine = [c for c in accuracies if c.treated.method == method]
    pairs = list(dict.fromkeys((c.treated, c.base) for c in mine))
    for c in mine:
        shift = pairs.index((c.treated, c.base)) - (len(pairs) - 1) / 2
        y = ACCURACIES.index(c.metric) + shift * 0.7 / len(pairs)
        _point(axis, c, c.result.difference.mean, y, look, vertical=False)
        if c in outliers:
            _arrow(axis, c, y, look, number=0, vertical=False)
    axis.axvline(0, color=GREY, lw=1, zorder=0)
    axis.set_yticks(range(len(ACCURACIES)), [METRICS[name].title for name in ACCURACIES])
    axis.set_ylim(len(ACCURACIES) - 0.5, -0.5)


def _variances(axis: Axes, summary: Summary, method: str, look: _Look) -> None:
    rows = [row for row in summary.rows if row.arm.method == method]
    for y, row in enumerate(rows):
        value = row.interval("negative_variance")
        colour = look.colours[row.arm.weight]
        axis.barh(y, value.mean, xerr=value.half_width, color=colour, height=0.55, capsize=3, error_kw={"lw": 1.4})
        if row.failure:
            axis.text(0.02, y, row.failure, transform=axis.get_yaxis_transform(), va="center", color=_FAILED)
    labels = [f"t={row.arm.temperature:g}" + (f" + VRN {row.arm.weight:g}" if row.arm.weight else "") for row in rows]
    axis.set_yticks(range(len(rows)), labels)
    axis.set_ylim(len(rows) - 0.4, -0.6)


def _over_batch(axis: Axes, batch_sizes: Sequence[int]) -> None:
    axis.set_xscale("log", base=2)
    axis.set_xticks(list(batch_sizes))
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.xaxis.set_minor_locator(NullLocator())


def _gain_over_batch(axis: Axes, shown: Sequence[Comparison], method: str, look: _Look) -> None:
    """The few-label probe only: four metrics times weights times batch sizes cannot be read."""
    chosen = [c for c in shown if c.treated.method == method and c.metric == "few_label_probe"]
    limits, outliers = _scale(chosen)
    if limits:
        axis.set_ylim(limits)
    curves = list(dict.fromkeys(_curve(c) for c in chosen))
    for number, curve in enumerate(curves):
        shift = 2 ** (0.1 * (number - (len(curves) - 1) / 2))
        line = [c for c in chosen if _curve(c) == curve]
        xs, ys = [c.treated.batch_size * shift for c in line], [c.result.difference.mean for c in line]
        axis.plot(xs, ys, color=look.colours[line[0].treated.weight], ls=look.style(line[0]), lw=1, zorder=0)
        for c, x, y in zip(line, xs, ys, strict=True):
            _point(axis, c, x, y, look, vertical=True)
            if c in outliers:
                _arrow(axis, c, x, look, number=outliers.index(c), vertical=True)
    axis.axhline(0, color=GREY, lw=1, zorder=0)
    axis.set_ylabel(f"{METRICS['few_label_probe'].title}\ngain, percentage points", fontsize=9)


def _curve(comparison: Comparison) -> tuple[float, float, float]:
    return comparison.treated.temperature, comparison.treated.weight, comparison.base.temperature


def _variance_over_batch(axis: Axes, summary: Summary, method: str, look: _Look) -> None:
    rows = [row for row in summary.rows if row.arm.method == method]
    for temperature, weight in dict.fromkeys((row.arm.temperature, row.arm.weight) for row in rows):
        line = [row for row in rows if (row.arm.temperature, row.arm.weight) == (temperature, weight)]
        # A failed arm's value, be it the smallest of all, is a cross beside the line, which NaN interrupts.
        values = [row.interval("negative_variance") for row in line]
        axis.errorbar(
            [row.arm.batch_size for row in line],
            [math.nan if row.failure else value.mean for row, value in zip(line, values, strict=True)],
            yerr=[value.half_width for value in values],
            color=look.colours[weight],
            marker=look.markers[temperature],
            capsize=3,
            ms=5,
        )
        for row, value in zip(line, values, strict=True):
            if row.failure and not math.isnan(value.mean):
                at = (row.arm.batch_size, value.mean)
                axis.plot(*at, marker="x", color=look.colours[weight], ls="", ms=6.5, mew=2, clip_on=False)
                axis.annotate(
                    row.failure, at, (0, 7), textcoords="offset points", ha="center", color=_FAILED, fontsize=8
                )
    axis.set_ylim(bottom=0)
