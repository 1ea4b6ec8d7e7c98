"""The picture of a sweep: accuracy gained with VRN, and the variance of held-out negatives, both with intervals."""

import io
import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, ScalarFormatter

from varloss_bench.config import Arm, TrialConfig
from varloss_bench.measures import ACCURACIES, METRICS
from varloss_bench.summary import Comparison, Summary

# Okabe-Ito: told apart by colour-blind readers as well.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_GREY = "#8a8a8a"
_NAMES = {"simclr": "SimCLR", "moco": "MoCo v2", "dcl": "DCL", "dhel": "DHEL"}


def draw(summary: Summary, config: TrialConfig) -> bytes:
    """A PNG. One row of panels per method; over several batch sizes the horizontal axis is the batch size."""
    methods = list(dict.fromkeys(row.arm.method for row in summary.rows if row.arm.trained))
    batch_sizes = sorted({row.arm.batch_size for row in summary.rows if row.arm.trained})
    height = 1.7 + 2.4 * len(methods)
    figure = Figure(figsize=(10.5, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(methods), 2, squeeze=False, sharex="col", width_ratios=(1.35, 1))
    for (gain, variance), method in zip(axes, methods, strict=True):
        if len(batch_sizes) == 1:
            _forest(gain, summary, method)
            _variances(variance, summary, method)
        else:
            _gain_over_batch(gain, summary, method, batch_sizes)
            _variance_over_batch(variance, summary, method, batch_sizes)
        name = _NAMES.get(method, method)
        gain.set_title(f"{name}: accuracy gained with VRN", fontsize=10.5, loc="left", fontweight="bold")
        variance.set_title(f"{name}: variance of negatives", fontsize=10.5, loc="left", fontweight="bold")
        for axis in (gain, variance):
            axis.spines[["top", "right"]].set_visible(False)
            axis.tick_params(labelsize=9)
    if len(batch_sizes) == 1:
        axes[-1, 0].set_xlabel("paired difference, percentage points", fontsize=9)
        axes[-1, 1].set_xlabel("variance of held-out negative similarities", fontsize=9)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        if handles:
            # Into the second, empty line of the title: the layout knows of titles, not of two things above the panels.
            below_title = (0.0, 1 - 0.27 / height)
            figure.legend(
                handles, labels, loc="upper left", bbox_to_anchor=below_title, ncols=2, fontsize=9, frameon=False
            )
        axes[-1, 1].set_xlim(left=0)
    figure.suptitle(_title(config, batch_sizes, len(summary.seeds)) + "\n", fontsize=12.5, x=0.01, ha="left")
    figure.supxlabel(_caption(summary, config), fontsize=8.5, x=0.01, ha="left", color="#404040")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _title(config: TrialConfig, batch_sizes: Sequence[int], seeds: int) -> str:
    batches = ", ".join(map(str, batch_sizes))
    backbone = "3-convolution net" if config.backbone == "small" else config.backbone
    return f"Variance reduction (VRN) on {config.data}: batch size {batches}, {backbone}, {seeds} paired seeds"


def _caption(summary: Summary, config: TrialConfig) -> str:
    baselines = "; ".join(
        f"{row.arm.method} {row.interval('few_label_probe').mean:.1f}%"
        for row in summary.rows
        if not row.arm.trained and "few_label_probe" in row.values
    )
    text = (
        f"Equal epochs ({config.epochs}), last epoch, {config.evaluate_on} split. Bars: 95% t intervals over seeds of the "
        "paired difference (left) and of the mean (right); a seed redraws split, labels, weights, order and "
        "augmentations, shared by all arms. Filled: settled after Holm's correction over all comparisons; hollow: not. "
        "Similarities are of held-out images, not of training batches."
        + (f" 10-label probe without training: {baselines}." if baselines else "")
    )
    return textwrap.fill(text, 140)


def _pairs(summary: Summary, method: str) -> list[tuple[Arm, Arm]]:
    return list(dict.fromkeys((c.treated, c.base) for c in summary.comparisons if c.treated.method == method))


def _pair_label(treated: Arm, base: Arm) -> str:
    label = f"t={treated.temperature:g} + VRN {treated.weight:g}"
    return f"{label} minus t={base.temperature:g} without VRN"


def _point(axis: Axes, comparison: Comparison, x: float, y: float, colour: str, *, vertical: bool) -> None:
    half_width = comparison.result.difference.half_width
    axis.errorbar(
        x,
        y,
        xerr=None if vertical else half_width,
        yerr=half_width if vertical else None,
        fmt="o",
        color=colour,
        mfc=colour if comparison.verdict == "settled" else "white",
        capsize=3,
        ms=5.5,
        lw=1.6,
    )


def _forest(axis: Axes, summary: Summary, method: str) -> None:
    pairs = _pairs(summary, method)
    step = 0.7 / max(1, len(pairs))
    for number, (treated, base) in enumerate(pairs):
        colour = _COLOURS[number % len(_COLOURS)]
        for c in summary.comparisons:
            if (c.treated, c.base) == (treated, base) and c.metric in ACCURACIES:
                y = ACCURACIES.index(c.metric) + (number - (len(pairs) - 1) / 2) * step
                _point(axis, c, c.result.difference.mean, y, colour, vertical=False)
        axis.plot([], [], "o-", color=colour, label=_pair_label(treated, base), ms=5)
    axis.axvline(0, color=_GREY, lw=1, zorder=0)
    axis.set_yticks(range(len(ACCURACIES)), [METRICS[name].title for name in ACCURACIES])
    axis.set_ylim(len(ACCURACIES) - 0.5, -0.5)


def _variances(axis: Axes, summary: Summary, method: str) -> None:
    rows = [row for row in summary.rows if row.arm.method == method]
    for y, row in enumerate(rows):
        value = row.interval("negative_variance")
        colour = _COLOURS[0] if row.arm.weight else _GREY
        axis.barh(y, value.mean, xerr=value.half_width, color=colour, height=0.55, capsize=3, error_kw={"lw": 1.4})
        if row.failure:
            axis.text(0.02, y, row.failure, transform=axis.get_yaxis_transform(), va="center", color="#B00000")
    labels = [f"t={row.arm.temperature:g}" + (f" + VRN {row.arm.weight:g}" if row.arm.weight else "") for row in rows]
    axis.set_yticks(range(len(rows)), labels)
    axis.set_ylim(len(rows) - 0.4, -0.6)


def _over_batch(axis: Axes, batch_sizes: Sequence[int]) -> None:
    axis.set_xscale("log", base=2)
    axis.set_xticks(list(batch_sizes))
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("batch size (equal epochs: small batches take more steps)", fontsize=9)
    axis.legend(fontsize=8, frameon=False)


def _gain_over_batch(axis: Axes, summary: Summary, method: str, batch_sizes: Sequence[int]) -> None:
    """The few-label probe only: four metrics times weights times batch sizes cannot be read."""
    chosen = [c for c in summary.comparisons if c.treated.method == method and c.metric == "few_label_probe"]
    labels = list(dict.fromkeys(_pair_label(c.treated, c.base) for c in chosen))
    for number, label in enumerate(labels):
        colour = _COLOURS[number % len(_COLOURS)]
        shift = 2 ** (0.08 * (number - (len(labels) - 1) / 2))
        line = [c for c in chosen if _pair_label(c.treated, c.base) == label]
        for c in line:
            _point(axis, c, c.treated.batch_size * shift, c.result.difference.mean, colour, vertical=True)
        xs, ys = [c.treated.batch_size * shift for c in line], [c.result.difference.mean for c in line]
        axis.plot(xs, ys, color=colour, lw=1, label=label, zorder=0)
    axis.axhline(0, color=_GREY, lw=1, zorder=0)
    axis.set_ylabel(f"{METRICS['few_label_probe'].title}\ngain, percentage points", fontsize=9)
    _over_batch(axis, batch_sizes)


def _variance_over_batch(axis: Axes, summary: Summary, method: str, batch_sizes: Sequence[int]) -> None:
    rows = [row for row in summary.rows if row.arm.method == method]
    curves = list(dict.fromkeys((row.arm.temperature, row.arm.weight) for row in rows))
    for number, (temperature, weight) in enumerate(curves):
        line = [row for row in rows if (row.arm.temperature, row.arm.weight) == (temperature, weight)]
        values = [row.interval("negative_variance") for row in line]
        axis.errorbar(
            [row.arm.batch_size for row in line],
            [value.mean for value in values],
            yerr=[value.half_width for value in values],
            color=_COLOURS[number % len(_COLOURS)],
            fmt="o-" if weight else "o--",
            capsize=3,
            ms=5,
            label=f"t={temperature:g}" + (f" + VRN {weight:g}" if weight else ""),
        )
    axis.set_ylim(bottom=0)
    _over_batch(axis, batch_sizes)
