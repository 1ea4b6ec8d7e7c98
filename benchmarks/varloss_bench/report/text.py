"""The terminal's tables and the verdict in words."""

import io
import math
from collections.abc import Sequence
from itertools import groupby
from typing import get_args

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from varloss_bench.config import COLLAPSE_MEAN, Arm, TrialConfig
from varloss_bench.measures import ACCURACIES, METRICS, Metric
from varloss_bench.methods import display_name
from varloss_bench.records import redraws as seed_words
from varloss_bench.report.style import split_words
from varloss_bench.statistics.inference import MOST_SEEDS, POWER, Failure, Interval, SeedsNeeded, spread_factors
from varloss_bench.statistics.summary import Comparison, Row, Summary

_SIMILARITIES = ("negative_variance", "negative_mean", "positive_mean")
_HEADS = {
    "few_label_probe": "10-label\nprobe %",
    "linear_probe": "linear\nprobe %",
    "knn": "kNN, back-\nbone %",
    "projection_knn": "kNN, pro-\njection %",
    "negative_variance": "negatives'\nvariance",
    "negative_mean": "negatives'\nmean",
    "positive_mean": "positives'\nmean",
}
_LABEL = 10  # columns that a wrapped label is left at least: "collapsed)"
_MARKS = {
    "settled": "✓",
    "suggestive": "~",
    "open": "·",
    "no spread": "=",
    "collapsed": "✗",
    "diverged": "✗",
    "crashed": "✗",
}


def arm_label(arm: Arm) -> str:
    """An arm within its method and batch size."""
    if not arm.trained:
        return arm.method
    return f"t={arm.temperature:g}" + (f" + VRN {arm.weight:g}" if arm.weight else "")


def group_label(arm: Arm) -> str:
    """Method and batch size of an arm."""
    return f"{display_name(arm.method)}, B={arm.batch_size}" if arm.trained else "without training"


def format_interval(value: Interval, metric: Metric, signed: bool = False) -> str:
    """`96.40±0.52`, without the interval where there is none, a dash where there is nothing."""
    if math.isnan(value.mean):
        return "-"
    mean = f"{value.mean:{'+' if signed else ''}.{metric.digits}f}"
    return mean if math.isnan(value.half_width) else f"{mean}±{value.half_width:.{metric.digits}f}"


def render(summary: Summary, config: TrialConfig) -> Group:
    """Everything that is said about a sweep: rows, paired differences, verdict, and what it stands for."""
    by = ", trained by solo-learn" if config.framework == "solo" else ""
    parts: list[RenderableType] = [
        _table(summary, ACCURACIES, f"Accuracy on {config.data}, {_split(config)}{by}"),
        _table(summary, _SIMILARITIES, "Cosine similarities of held-out images, in projection space"),
        Padding(Text(_legend(summary), style="dim"), (0, 1)),
    ]
    if summary.comparisons:
        parts.append(Padding(Text("\n".join(verdict_lines(summary))), (1, 1)))
    parts.append(Padding(Text("\n".join(f"- {note}" for note in notes(summary, config)), style="dim"), (0, 1)))
    return Group(*parts)


def _split(config: TrialConfig) -> str:
    """Shorter than in figures for the ordinary ones."""
    return split_words(config) if config.official_test else f"{config.evaluate_on} split"


def plain_text(summary: Summary, config: TrialConfig) -> str:
    """The same without colours, for a file."""
    console = Console(width=100, color_system=None, file=io.StringIO(), force_terminal=False)
    with console.capture() as capture:
        console.print(render(summary, config))
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


class _Numbers(Table):
    """A table that is cut nowhere: on a narrow terminal labels wrap, on a narrower one numbers and their marks as well."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wholes = [
            max(cell_len(line) for cell in (column.header, *column.cells) for line in (str(cell).splitlines() or [""]))
            for column in self.columns[1:]
        ]
        wrapped = _LABEL + sum(2 + whole for whole in wholes) > options.max_width
        for column in self.columns[1:]:
            column.no_wrap = not wrapped
        yield from super().__rich_console__(console, options)


def table_of_numbers(title: str, columns: Sequence[str]) -> Table:
    """An empty table: what a row is about on the left, its numbers right-aligned; in full at any width."""
    table = _Numbers(
        title=Text(title, "bold"),  # it may name a folder, whose brackets are no markup
        box=box.SIMPLE_HEAD,
        title_justify="left",
        pad_edge=False,
        collapse_padding=True,
    )
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    return table


def _table(summary: Summary, metrics: Sequence[str], title: str) -> Table:
    """Arms by method and batch size, mean ± interval; below each group the paired differences, with their marks."""
    table = table_of_numbers(title, ["", *(_HEADS[metric] for metric in metrics)])
    rows = [row for row in summary.rows if any(metric in row.values for metric in metrics) or row.arm.trained]
    for label, group in groupby(rows, key=lambda row: group_label(row.arm)):
        members = list(group)
        table.add_row(label, style="bold")
        for row in members:
            table.add_row(
                f"  {arm_label(row.arm)}{_seeds_left(row, len(summary.seeds))}",
                *(format_interval(row.interval(metric), METRICS[metric]) for metric in metrics),
            )
        for treated, base in _pairs(summary, [row.arm for row in members]):
            found = {c.metric: c for c in summary.comparisons if (c.treated, c.base) == (treated, base)}
            cells = [_difference_cell(found[metric]) if metric in found else "" for metric in metrics]
            table.add_row(f"  VRN {treated.weight:g}, {_short(treated)} − {_short(base)}", *cells, style="cyan")
        table.add_section()
    return table


def _difference_cell(comparison: Comparison) -> str:
    text = format_interval(comparison.result.difference, METRICS[comparison.metric], signed=True)
    return f"{text} {_MARKS[comparison.verdict]}"


def _seeds_left(row: Row, wanted: int) -> str:
    lost = len(row.diverged) + len(row.crashed)
    return (f" ({wanted - lost}/{wanted})" if lost else "") + (
        f" ({len(row.collapsed)} collapsed)" if row.collapsed else ""
    )


def _pairs(summary: Summary, arms: Sequence[Arm]) -> list[tuple[Arm, Arm]]:
    return list(dict.fromkeys((c.treated, c.base) for c in summary.comparisons if c.treated in arms))


def _short(arm: Arm) -> str:
    """Temperature without its leading zero: every column counts on a terminal of 80."""
    return "t=" + f"{arm.temperature:g}".removeprefix("0")


def _legend(summary: Summary) -> str:
    number = len(summary.seeds)
    legend = f"mean ± 95% t interval over {number} seeds" if number > 1 else "a single seed: no interval"
    if summary.comparisons:
        legend += (
            f"; differences are paired by seed. ✓ settled after Holm's correction over all {len(summary.comparisons)} "
            "comparisons, failed ones included, ~ only its own interval excludes 0, · interval holds 0, = no spread between seeds, "
            "✗ a seed collapsed, diverged or has no result"
        )
    return legend


def verdict_lines(summary: Summary) -> list[str]:
    """The comparisons in words, claiming what the intervals show: what is settled, what hints, what is open."""
    lines = []
    for treated, base in _pairs(summary, [row.arm for row in summary.rows]):
        mine = [c for c in summary.comparisons if (c.treated, c.base) == (treated, base)]
        lines.append(f"{group_label(treated)}: {arm_label(treated)} against {versus(mine[0])}")
        if mine[0].verdict in get_args(Failure):
            lines.append(f"  {in_words(mine[0])}")
            continue
        # What is open is told in one line for all accuracies, whose stated effect is the same.
        open_accuracies = [c for c in mine if c.verdict == "open" and METRICS[c.metric].unit]
        lines += [f"  {METRICS[c.metric].title}: {in_words(c)}" for c in mine if c not in open_accuracies]
        if open_accuracies:
            lines.append(f"  {_open_in_words(open_accuracies)}")
    return lines


def _open_in_words(comparisons: Sequence[Comparison]) -> str:
    needed = [c.seeds_needed(c.effect) for c in comparisons]
    titles = [
        METRICS[c.metric].title + (f" ({_number(seeds)})" if seeds else "")
        for c, seeds in zip(comparisons, needed, strict=True)
    ]
    price = f"; an effect of {_effect(comparisons[0])} would need about (seeds)" if any(needed) else ""
    return f"not settled at {_count(comparisons[0])}{price}: {'; '.join(titles)}"


def versus(comparison: Comparison) -> str:
    """What an arm with VRN is compared with."""
    if comparison.role == "same temperature":
        return "no VRN"
    at = f"t={comparison.base.temperature:g}"
    return f"the tuned baseline, {at}" if comparison.role == "tuned baseline" else f"{at} without VRN"


def _effect(comparison: Comparison) -> str:
    metric = METRICS[comparison.metric]
    return (
        f"{comparison.effect:g} point{'' if comparison.effect == 1 else 's'}"
        if metric.unit
        else f"{comparison.effect:.{metric.digits}f}"
    )


def _number(needed: SeedsNeeded) -> str:
    return f"over {MOST_SEEDS}" if needed.seeds >= MOST_SEEDS else str(needed.seeds)


def in_words(comparison: Comparison) -> str:
    """One comparison as a sentence that follows from its interval."""
    metric = METRICS[comparison.metric]
    difference = comparison.result.difference
    if comparison.verdict == "diverged":
        return "no comparison: training diverged in at least one seed of one arm, and what is left are the survivors"
    if comparison.verdict == "crashed":
        return "no comparison: at least one seed of one arm has no result, and what is left may be the easy ones"
    if comparison.verdict == "collapsed":
        return (
            f"collapsed, not a win: mean similarity of held-out negatives above {COLLAPSE_MEAN} in at least one seed of "
            "one arm, where a small variance means nothing"
        )
    if difference.count < 2:
        return f"not settled: {_count(comparison)}, no interval"
    span = f"95% interval {difference.low:+.{metric.digits}f} to {difference.high:+.{metric.digits}f}"
    direction = "higher" if difference.mean > 0 else "lower"
    size = f"{abs(difference.mean):.{metric.digits}f}{' points' if metric.unit else ''} {direction}"
    if comparison.verdict == "no spread":
        size = size if difference.mean else "no difference"
        return f"{size} in each of {_count(comparison)}; without spread no t interval applies, not settled"
    if comparison.verdict == "settled":
        return f"{size}, settled at {_count(comparison)} ({span}, Holm p = {comparison.adjusted_p:.2g})"
    if comparison.verdict == "suggestive":
        needed = comparison.seeds_needed(difference.mean)
        price = f"; if it is as large as it looks, about {_number(needed)} seeds would settle it" if needed else ""
        return (
            f"{size} ({span}), not settled: does not survive the correction for {comparison.family} comparisons{price}"
        )
    needed = comparison.seeds_needed(comparison.effect)
    price = f"; an effect of {_effect(comparison)} would need about {_number(needed)}" if needed else ""
    return f"not settled at {_count(comparison)} ({span}){price}"


def _count(comparison: Comparison) -> str:
    count = comparison.result.difference.count
    return f"{count} seed{'' if count == 1 else 's'}"


def notes(summary: Summary, config: TrialConfig) -> list[str]:
    """How to read the numbers, and what they cannot show."""
    lines = [
        f"{_length(config)}; read once, after the last epoch; "
        f"{'both views in one forward pass' if config.fused else 'one forward pass per view'}.",
        f"A seed redraws {seed_words.enumerated(seed_words.redraws(config))}, and all arms share them: "
        f"{seed_words.over(config)}.",
        "Similarities are of held-out images in evaluation mode, not of the training batches.",
        *_planning(summary),
    ]
    trained = [row for row in summary.rows if row.arm.trained]
    beaten = [_beats(baseline, trained) for baseline in summary.rows if not baseline.arm.trained]
    lines += [line for line in beaten if line]
    for row in trained:
        label = f"{group_label(row.arm)}, {arm_label(row.arm)}"
        if row.diverged:
            lines.append(f"{label}: training became NaN or infinite at seeds {_list(row.diverged)}.")
        if row.crashed:
            lines.append(f"{label}: no result for seeds {_list(row.crashed)}; run the command again.")
    return lines


def _planning(summary: Summary) -> list[str]:
    """What the numbers of seeds mean, and what the correction does not cover."""
    if not summary.comparisons:
        return []
    lines = []
    if any(c.seeds_needed(c.effect) for c in summary.comparisons):
        count = max(c.result.difference.count for c in summary.comparisons)
        low, high = spread_factors(count)
        lines.append(
            f"Seeds needed: for {POWER:.0%} power at level .05/{len(summary.comparisons)}, which settles whatever the other "
            f"comparisons show, from the paired spread of {count} seeds. An estimate: that spread is known from {count} seeds "
            f"only so well that the true number may be {low:.2g} to {high:.2g} times as large. With fewer comparisons fewer "
            "seeds do."
        )
    lines.append(
        "The correction is for one look at these comparisons. Adding seeds or arms until something is settled is another "
        "experiment: decide their number first, or confirm with fresh seeds (--first-seed)."
    )
    return lines


def _length(config: TrialConfig) -> str:
    if config.equal == "steps":
        return f"Equal steps ({config.steps}), so smaller batches see less data"
    return f"Equal epochs ({config.epochs}), so smaller batches take more steps"


def _beats(baseline: Row, trained: Sequence[Row]) -> str:
    """Whether every trained row is above an untrained one on the few-label probe."""
    base = baseline.interval("few_label_probe").mean
    means = {row.arm: row.interval("few_label_probe").mean for row in trained}
    means = {arm: mean for arm, mean in means.items() if not math.isnan(mean)}
    if math.isnan(base) or not means:
        return ""
    below = [arm for arm, mean in means.items() if mean <= base]
    if below:
        names = "; ".join(f"{group_label(arm)}, {arm_label(arm)}" for arm in below)
        return f"NOT above {baseline.arm.method} ({base:.2f}) on the 10-label probe: {names}."
    return f"On the 10-label probe every trained row is above {baseline.arm.method} ({base:.2f})."


def _list(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))
