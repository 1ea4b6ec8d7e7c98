"""The PNG of a sweep: the page's panels of gains and of variances in one picture."""

import io
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator

from varloss_bench.config import TrialConfig
from varloss_bench.methods import display_name
from varloss_bench.records.redraws import enumerated, redraws
from varloss_bench.report.figures.charts import Chart, gain_metrics, gains, look_of, means, shows_controls
from varloss_bench.report.figures.drawings import Drawing, panels
from varloss_bench.report.figures.style import GREY, SETTINGS, Look
from varloss_bench.report.labels import backbone_label, capitalised, equal_words, split_words, weight_label
from varloss_bench.statistics.best import SCORE
from varloss_bench.statistics.summary import Summary

_THEN = {"epochs": ", so small batches take more steps", "steps": ", so large batches see more data"}
_WIDTH, _MOST_COLUMNS = 13.0, 5
_HEIGHT = 0.85  # of a panel, relative to its height on the page
_EQUALS = "\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}"


def sweep_png(summary: Summary, config: TrialConfig) -> bytes:
    """The figure as a PNG."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(SETTINGS):
        sweep_figure(summary, config).savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def sweep_figure(summary: Summary, config: TrialConfig) -> Figure:
    """Panels of gains and of variances: a row for each method, two where they are many."""
    look = look_of(summary, config)
    methods = list(dict.fromkeys(row.arm.method for row in summary.rows if row.arm.trained))
    metrics = gain_metrics(summary)
    gained = {m: [gains(summary, m, metric) for metric in metrics] for m in methods}
    variances = {m: [means(summary, m, "negative_variance")] for m in methods}
    left = {m: _headed("gain" if len(metrics) == 1 else "", panels(gained[m], look)) for m in methods}
    right = {m: _headed("variance of negatives", panels(variances[m], look)) for m in methods}
    columns, more_columns = (max(map(len, side.values()), default=0) for side in (left, right))
    rows: list[list[Drawing | None]] = []
    for method in methods:
        gap = [None] * (columns - len(left[method]))
        beside = columns + more_columns <= _MOST_COLUMNS
        of_method = [[*left[method], *gap, *right[method]]] if beside else [[*left[method]], [*right[method]]]
        rows += [_with_method(method, row) for row in of_method if any(row)]
    charts = [chart for side in (gained, variances) for of_method in side.values() for chart in of_method]
    with matplotlib.rc_context(SETTINGS):
        figure = _compose(rows)
        figure.legend(handles=_legend(charts, look), loc="outside right upper", fontsize=9, frameon=False)
        figure.suptitle(_title(summary, config), fontsize=12.5, x=0.01, ha="left")
        figure.supxlabel(caption(summary, config), fontsize=8.5, x=0.01, ha="left", color="#404040")
    return figure


def _headed(name: str, drawings: Sequence[Drawing]) -> list[Drawing]:
    """With headings that say what is shown."""
    return [replace(drawing, title=", ".join(filter(None, (name, drawing.title)))) for drawing in drawings]


def _with_method(method: str, row: Sequence[Drawing | None]) -> list[Drawing | None]:
    """With the method in the heading of the first panel."""
    first = next(number for number, drawing in enumerate(row) if drawing)
    return [
        replace(drawing, title=f"{display_name(method)}\n{drawing.title}") if drawing and number == first else drawing
        for number, drawing in enumerate(row)
    ]


def _compose(rows: Sequence[Sequence[Drawing | None]]) -> Figure:
    columns = max(map(len, rows), default=1)
    heights = [0.5 + _HEIGHT * max(drawing.size[1] for drawing in row if drawing) for row in rows] or [1.0]
    figure = Figure(figsize=(_WIDTH, 1.4 + sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(max(1, len(rows)), columns, squeeze=False, height_ratios=heights)
    for axis in axes.flat:
        axis.set_axis_off()
    for row, of_row in zip(rows, axes, strict=False):
        for drawing, axis in zip(row, of_row, strict=False):
            if drawing is None:
                continue
            axis.set_axis_on()
            drawing.draw(axis)
            lines = drawing.title.replace(" = ", _EQUALS).split("\n")
            title = "\n".join(textwrap.fill(line, 110 // columns, break_on_hyphens=False) for line in lines)
            axis.set_title(title, fontsize=9.5, loc="left", fontweight="bold")
    for of_row in axes:
        for before, axis in reversed(list(pairwise(of_row))):
            _share_labels(before, axis)
    for of_column in axes.T:
        for above, axis in pairwise(of_column):
            if above.get_xlabel() == axis.get_xlabel():
                above.set_xlabel("")
    return figure


def _share_labels(before: Axes, axis: Axes) -> None:
    """Of two panels beside each other, the second one does not repeat the names of rows and the label of the axis."""
    if isinstance(axis.yaxis.get_major_locator(), FixedLocator) and _row_names(before) == _row_names(axis):
        axis.tick_params(labelleft=False)
    if before.get_ylabel() == axis.get_ylabel() and before.axison:
        axis.yaxis.label.set_visible(False)


def _row_names(axis: Axes) -> list[str]:
    return [text.get_text() for text in axis.get_yticklabels()]


def _legend(charts: Sequence[Chart], look: Look) -> list[Line2D]:
    def entry(label: str, colour: str = "black", style: str = "-", marker: str = "") -> Line2D:
        return Line2D([], [], color=colour, linestyle=style, marker=marker, ms=5.5, label=label)

    points = [point for chart in charts for point in chart.points]
    weights = {point.arm.weight for point in points}
    entries = [
        entry(weight_label(weight), colour, marker=look.marker(weight))
        for weight, colour in look.colours.items()
        if weight in weights
    ]
    if controls := dict.fromkeys(point.control for point in points if point.control is not None):
        entries += [entry("gain over:", style=""), entry("same t, no VRN")]
        entries += [entry(f"t={t:g}, no VRN", style=look.dashes[t]) for t in controls]
    failures = dict.fromkeys(point.failure for point in points if point.failure)
    return entries + [entry(failure, GREY, "", "x") for failure in failures]


def _title(summary: Summary, config: TrialConfig) -> str:
    batches = ", ".join(map(str, sorted({row.arm.batch_size for row in summary.rows if row.arm.trained})))
    return (
        f"Variance reduction (VRN) on {config.data}: batch size {batches}, {backbone_label(config)}, "
        f"{len(summary.seeds)} paired seeds"
    )


def caption(summary: Summary, config: TrialConfig) -> str:
    """The text below the panels: what is shown, and what marks and bars mean."""
    untrained = "; ".join(
        f"{row.arm.short_label()} {row.mean(SCORE):.1f}%"
        for row in summary.rows
        if not row.arm.trained and row.values.get(SCORE)
    )
    several = len({row.arm.batch_size for row in summary.rows if row.arm.trained}) > 1
    metric = " Gain: linear probe, 10 labels per class." if several else ""
    text = (
        f"{capitalised(equal_words(config))}{_THEN[config.equal] if several else ''}; last epoch; {split_words(config)}."
        f"{metric} Bars: 95% t intervals over seeds of the paired difference (gain) and of the mean (variance). A seed redraws "
        f"{enumerated(redraws(config))}; all arms share them. Filled gain: settled (significant after Holm's correction over "
        f"all {len(summary.comparisons)} comparisons); hollow: not settled. Cross: excluded from comparisons, because a seed "
        "collapsed, diverged or crashed. Arrow: beyond the axis. Similarities are of held-out images, not of training batches."
        + ("" if shows_controls(summary) else " Gains over the control temperatures are in the table.")
        + (f" 10-label probe without training: {untrained}." if untrained else "")
    )
    return textwrap.fill(text, 165)
