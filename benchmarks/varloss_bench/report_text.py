"""The terminal's tables and the verdict in words."""

import math

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from varloss_bench.config import COLLAPSE_MEAN, Arm, TrialConfig
from varloss_bench.evaluate import METRICS, Metric
from varloss_bench.stats import Interval
from varloss_bench.summary import COMPARED, Comparison, Row, Summary

_COLUMNS = (
    ("few_label_probe", "10-label\nprobe %"),
    ("linear_probe", "linear\nprobe %"),
    ("knn", "kNN\nbackbone %"),
    ("projection_knn", "kNN\nprojection %"),
    ("negative_variance", "negatives'\nvariance"),
    ("negative_mean", "negatives'\nmean"),
    ("positive_mean", "positives'\nmean"),
)
_MARKS = {
    "settled": "✓",
    "suggestive": "~",
    "open": "·",
    "no spread": "=",
    "collapsed": "✗ collapsed",
    "diverged": "✗ diverged",
}


def format_interval(value: Interval, metric: Metric, signed: bool = False) -> str:
    """`96.40 ± 0.52`, without the interval where there is none, a dash where there is nothing."""
    if math.isnan(value.mean):
        return "-"
    mean = f"{value.mean:{'+' if signed else ''}.{metric.digits}f}"
    return mean if math.isnan(value.half_width) else f"{mean} ± {value.half_width:.{metric.digits}f}"


def render(summary: Summary, config: TrialConfig) -> Group:
    """Everything that is said about a sweep: rows, paired differences, verdict, and what it stands for."""
    parts: list[RenderableType] = [rows_table(summary, config)]
    if summary.comparisons:
        parts += [differences_table(summary), Padding(Text("\n".join(verdict_lines(summary))), (0, 1))]
    parts.append(Padding(Text("\n".join(notes(summary, config)), style="dim"), (1, 1)))
    return Group(*parts)


def rows_table(summary: Summary, config: TrialConfig) -> Table:
    """One line per arm, mean ± 95% t interval over seeds."""
    table = Table(title=f"{config.data}, {config.evaluate_on} split: mean ± 95% t interval over seeds", expand=False)
    for title in ("method", "B", "t", "VRN", "seeds"):
        table.add_column(title, justify="left" if title == "method" else "right")
    for _, title in _COLUMNS:
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("s/run", justify="right")
    last: Arm | None = None
    for row in summary.rows:
        if last and (last.method, last.batch_size) != (row.arm.method, row.arm.batch_size) and row.arm.trained:
            table.add_section()
        table.add_row(*_row_cells(row, len(summary.seeds)))
        last = row.arm
    return table


def _row_cells(row: Row, wanted: int) -> list[str]:
    arm = row.arm
    finished = wanted - len(row.diverged) - len(row.crashed)
    seeds = f"{finished}" if finished == wanted else f"{finished}/{wanted}"
    if row.collapsed:
        seeds += f" ({len(row.collapsed)} collapsed)"
    described = [f"{arm.batch_size}", f"{arm.temperature:g}", f"{arm.weight:g}"] if arm.trained else ["", "", ""]
    cells = [format_interval(row.interval(name), METRICS[name]) for name, _ in _COLUMNS]
    return [arm.method, *described, seeds, *cells, f"{row.seconds:.1f}" if arm.trained and finished else ""]


def differences_table(summary: Summary) -> Table:
    """One line per comparison, mean paired difference ± 95% t interval, with its mark."""
    table = Table(title="paired differences, seed by seed", expand=False)
    table.add_column("with VRN")
    table.add_column("minus")
    titles = dict(_COLUMNS)
    for name in COMPARED:
        table.add_column(titles[name], justify="right", no_wrap=True)
    for treated, base in dict.fromkeys((c.treated, c.base) for c in summary.comparisons):
        cells = {
            c.metric: f"{format_interval(c.result.difference, METRICS[c.metric], signed=True)} {_MARKS[c.verdict]}"
            for c in summary.comparisons
            if (c.treated, c.base) == (treated, base)
        }
        table.add_row(treated.label(), f"no VRN, t={base.temperature:g}", *(cells[name] for name in COMPARED))
    table.caption = (
        f"✓ settled after Holm's correction over all {len(summary.comparisons)} comparisons, ~ only its own interval "
        "excludes 0, · interval holds 0, = no spread"
    )
    return table


def verdict_lines(summary: Summary) -> list[str]:
    """The comparisons in words, one line each for the metrics that matter, claiming what the intervals show."""
    lines = ["Verdict"]
    for treated, base in dict.fromkeys((c.treated, c.base) for c in summary.comparisons):
        versus = (
            "against no VRN" if treated.temperature == base.temperature else f"against t={base.temperature:g} alone"
        )
        lines.append(f"  {treated.label()} {versus}:")
        for c in summary.comparisons:
            if (c.treated, c.base) == (treated, base):
                lines.append(f"    {METRICS[c.metric].title}: {in_words(c)}")
    return lines


def in_words(comparison: Comparison) -> str:
    """One comparison as a sentence that follows from its interval."""
    metric = METRICS[comparison.metric]
    difference = comparison.result.difference
    seeds = f"{difference.count} seed{'s' if difference.count != 1 else ''}"
    if comparison.verdict == "diverged":
        return "training diverged in at least one seed of one arm; the rest of the seeds are survivors, no comparison"
    if comparison.verdict == "collapsed":
        return (
            f"collapsed (mean similarity of held-out negatives above {COLLAPSE_MEAN}) in at least one seed of one arm; "
            "a small variance is then no success"
        )
    if difference.count < 2:
        return f"not settled: {seeds} give no interval"
    direction = "higher" if difference.mean > 0 else "lower"
    size = f"{abs(difference.mean):.{metric.digits}f}{' points' if metric.unit else ''} {direction}"
    span = f"95% interval {difference.low:+.{metric.digits}f} to {difference.high:+.{metric.digits}f}"
    if comparison.verdict == "no spread":
        return f"{size} in each of {seeds}; without spread no t interval applies, not settled"
    if comparison.verdict == "settled":
        return f"{size} ({span}; Holm p = {comparison.adjusted_p:.2g}), settled at {seeds}"
    if comparison.verdict == "suggestive":
        return f"{size} ({span}), but not after correction for the number of comparisons: not settled at {seeds}"
    return f"not settled at {seeds} ({span})"


def notes(summary: Summary, config: TrialConfig) -> list[str]:
    """How to read the numbers."""
    lines = [
        f"Equal epochs ({config.epochs}), so small batches take more steps; last epoch; "
        f"{'both views in one forward pass' if config.fused else 'one forward pass per view'}.",
        "A seed redraws split, labelled subsets, weights, order and augmentations; arms of one seed share them all. The "
        "intervals are therefore over splits of this data set too, and about this data set, net and schedule only.",
        "Similarities are of held-out images (evaluation mode), not of the training batches.",
    ]
    untrained = [row for row in summary.rows if not row.arm.trained]
    trained = [row for row in summary.rows if row.arm.trained]
    for baseline in untrained:
        line = _beats(baseline, trained)
        if line:
            lines.append(line)
    for row in summary.rows:
        if row.diverged:
            lines.append(f"{row.arm.label()}: training became NaN or infinite at seeds {_list(row.diverged)}.")
        if row.crashed:
            lines.append(f"{row.arm.label()}: no result for seeds {_list(row.crashed)}; run the command again.")
    return lines


def _beats(baseline: Row, trained: list[Row]) -> str:
    """Whether every trained row is above an untrained one on the few-label probe."""
    base = baseline.interval("few_label_probe").mean
    means = {row.arm: row.interval("few_label_probe").mean for row in trained}
    means = {arm: mean for arm, mean in means.items() if not math.isnan(mean)}
    if math.isnan(base) or not means:
        return ""
    below = [arm.label() for arm, mean in means.items() if mean <= base]
    if below:
        return f"NOT above {baseline.arm.label()} ({base:.2f}) on the 10-label probe: {', '.join(below)}."
    return f"On the 10-label probe every trained row is above {baseline.arm.label()} ({base:.2f})."


def _list(seeds: tuple[int, ...]) -> str:
    return ", ".join(map(str, seeds))


def plain_text(summary: Summary, config: TrialConfig) -> str:
    """The same for a file, without colours, wide enough for the tables."""
    console = Console(width=180, record=True, file=None, color_system=None, quiet=True)
    with console.capture() as capture:
        console.print(render(summary, config))
    return capture.get() or console.export_text()
