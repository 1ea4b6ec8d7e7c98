"""One picture for each group of the theory: curves are predictions, dots are measurements."""

import io
import textwrap
from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, ScalarFormatter

from varloss_bench.report.figures.style import COLOURS, GREY
from varloss_bench.studies.theory.rows import Curve, Group


def draw(group: Group) -> bytes:
    """A PNG."""
    panels = 2 if group.key in ("vrn", "temperature") else 1
    figure = Figure(figsize=(5.2 * panels + 1.8, 4.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    _DRAWINGS[group.key](group, axes)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=9)
    figure.suptitle(
        textwrap.fill(group.title, 58 * panels + 20, break_on_hyphens=False), fontsize=11, x=0.01, ha="left"
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _line(axis: Axes, curve: Curve, label: str, colour: str, style: str = "-") -> None:
    axis.plot(*zip(*curve, strict=True), style, color=colour, label=label, lw=1.6)


def _dots(axis: Axes, curve: Curve, label: str, colour: str) -> None:
    axis.plot(*zip(*curve, strict=True), "o", color=colour, label=label, ms=6, mfc="white", mew=1.6)


def _labels(axis: Axes, x: str, y: str, legend: bool = True) -> None:
    axis.set_xlabel(x, fontsize=9.5)
    axis.set_ylabel(y, fontsize=9.5)
    if legend:
        axis.legend(fontsize=8.5, frameon=False)


def _batch_ticks(axis: Axes, curve: Curve) -> None:
    axis.set_xscale("log")
    axis.set_xticks([x for x, _ in curve])
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.xaxis.set_minor_locator(NullLocator())


def _full_batch(group: Group, axes: list[Axes]) -> None:
    axis = axes[0]
    names = [key.removeprefix("label:") for key in group.curves if key.startswith("label:")]
    target = next(row.predicted for row in group.rows if "negatives" in row.name)
    axis.axhline(1.0, color=GREY, lw=1)
    axis.axhline(target, color=GREY, lw=1, ls="--", label=f"-1/(n-1) = {target:.4f}")
    for label, colour, marker, size in (
        ("positives", COLOURS[0], "o", 7),
        ("cross-view negatives", COLOURS[1], "s", 9),
        ("within-view negatives", COLOURS[2], "x", 6),
    ):
        curve = group.curves[label]
        axis.plot(*zip(*curve, strict=True), marker, color=colour, label=label, ms=size, mfc="none", mew=1.6)
    axis.set_xticks(range(len(names)), names, rotation=40, ha="right")
    axis.set_ylim(-0.3, 1.15)
    _labels(axis, "", "mean similarity at the optimum")
    axis.legend(fontsize=8.5, frameon=False, loc="center right", bbox_to_anchor=(1.0, 0.55))


def _fixed_batches(group: Group, axes: list[Axes]) -> None:
    axis, curves = axes[0], group.curves
    # At m = n the variance is 0, which a logarithmic axis cannot show.
    shown = {label: [(x, y) for x, y in curve if x < 24] for label, curve in curves.items()}
    for label, style in (("lower bound", "--"), ("upper bound", "-."), ("expected, d = 24", "-")):
        _line(axis, shown[label], label, GREY if "bound" in label else COLOURS[0], style)
    _dots(axis, shown["measured, d = 24"], "measured, d = 24 (6 starts)", COLOURS[1])
    axis.set_yscale("log")
    _batch_ticks(axis, shown["lower bound"])
    _labels(axis, "batch size m (m = n has variance 0)", "variance of all cross-view negatives")


def _reshuffled(group: Group, axes: list[Axes]) -> None:
    for (label, curve), colour in zip(group.curves.items(), COLOURS, strict=False):
        axes[0].plot(*zip(*curve, strict=True), "o-", color=colour, label=label, ms=5)
    axes[0].set_yscale("log")
    _batch_ticks(axes[0], next(iter(group.curves.values())))
    _labels(axes[0], "batch size m", "variance of all cross-view negatives")


def _rank_floor(group: Group, axes: list[Axes]) -> None:
    floor, found = group.curves.items()
    _line(axes[0], floor[1], floor[0], GREY, "--")
    _dots(axes[0], found[1], found[0], COLOURS[0])
    _labels(axes[0], "dimension d", "VRN of aligned views")


def _separation(group: Group, axes: list[Axes]) -> None:
    axis, curves = axes[0], group.curves
    axis.plot(*zip(*curves["random views"], strict=True), ".", color="#c8c8c8", ms=4, label="random views")
    _line(axis, curves["tight bound"], "tight bound", COLOURS[2])
    _line(axis, curves["published bound"], "published bound (loose)", GREY, "--")
    _dots(axis, curves["SigLIP, cross-view negatives"], "SigLIP, cross-view negatives", COLOURS[1])
    _dots(axis, curves["SigLIP, within-view negatives"], "SigLIP, within-view negatives", COLOURS[0])
    axis.set_ylim(-1.05, 1.08)
    axis.set_xlim(-1, 1)
    _labels(axis, "mean similarity of cross-view negatives", "mean similarity of positives", legend=False)
    axis.legend(fontsize=8.5, frameon=False, loc="lower right")


def _vrn(group: Group, axes: list[Axes]) -> None:
    left, right = axes
    _line(left, group.curves["predicted, n = 32, m = 4"], "predicted equilibrium", COLOURS[0])
    _dots(left, group.curves["measured, n = 32, m = 4"], "measured", COLOURS[1])
    left.axhline(-1 / 3, color=GREY, lw=1, ls=":", label="-1/(m-1), without VRN")
    left.axhline(-1 / 31, color=GREY, lw=1, ls="--", label="-1/(n-1), VRN's target")
    left.set_xscale("log")
    _labels(left, "VRN weight (InfoNCE, t = 0.5, n = 32, m = 4)", "in-batch negative similarity")
    right.plot(*zip(*group.curves["alignment, d = 8, cross-view VRN"], strict=True), "o-", color=COLOURS[1], ms=5)
    right.set_xscale("log")
    right.set_ylim(0, 1.05)
    right.axhline(1.0, color=GREY, lw=1, ls="--")
    _labels(right, "VRN weight (cross-view; n = 32, full batch, d = 8)", "mean similarity of positives", legend=False)
    right.set_title("few dimensions: alignment is lost", fontsize=9.5, loc="left")
    left.set_title("many dimensions: negatives balance", fontsize=9.5, loc="left")


def _temperature(group: Group, axes: list[Axes]) -> None:
    left, right = axes
    _line(left, group.curves["entropy"], "entropy of relative penalties", COLOURS[0])
    _line(left, group.curves["entropy of uniform penalties"], "log(n-1): all negatives alike", GREY, "--")
    cold = slice(0, next(at for at, (t, _) in enumerate(group.curves["t·L"]) if t > 0.2))
    _line(right, group.curves["t·L"][cold], "t·L", COLOURS[1])
    _line(right, group.curves["limit t → 0"][cold], "mean of max(S_max - S_ii, 0)", GREY, "--")
    for axis, name in ((left, "nats"), (right, "t · loss")):
        axis.set_xscale("log")
        _labels(axis, "temperature t", name)


_DRAWINGS: dict[str, Callable[[Group, list[Axes]], None]] = {
    "full-batch": _full_batch,
    "fixed-batches": _fixed_batches,
    "reshuffled-batches": _reshuffled,
    "rank-floor": _rank_floor,
    "separation": _separation,
    "vrn": _vrn,
    "temperature": _temperature,
}
