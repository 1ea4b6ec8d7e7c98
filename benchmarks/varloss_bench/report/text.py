"""The tables of a sweep in the terminal and in table.txt, with verdict and notes below."""

import io
from collections.abc import Sequence
from itertools import groupby

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from varloss_bench.config import TrialConfig
from varloss_bench.measures import ACCURACIES, METRICS
from varloss_bench.report.labels import format_interval, split_words
from varloss_bench.report.notes import notes
from varloss_bench.report.verdict import comparison_lines, pairs_of, settled_means
from varloss_bench.statistics.inference import Verdict
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
_LABEL = 10  # a wrapped label keeps at least so many columns: "collapsed)"
_MARKS: dict[Verdict, str] = {
    "settled": "✓",
    "suggestive": "~",
    "open": "·",
    "no spread": "=",
    "collapsed": "✗",
    "diverged": "✗",
    "crashed": "✗",
}


def render(summary: Summary, config: TrialConfig) -> Group:
    """Rows, paired differences, verdict and notes."""
    by = ", trained by solo-learn" if config.framework == "solo" else ""
    parts: list[RenderableType] = [
        _table(summary, ACCURACIES, f"Accuracy on {config.data}, {_split(config)}{by}"),
        _table(summary, _SIMILARITIES, "Cosine similarities of held-out images, in projection space"),
        Padding(Text(_legend(summary), style="dim"), (0, 1)),
    ]
    if summary.comparisons:
        parts.append(Padding(Text("\n".join(comparison_lines(summary))), (1, 1)))
    parts.append(Padding(Text("\n".join(f"- {note}" for note in notes(summary, config)), style="dim"), (0, 1)))
    return Group(*parts)


def _split(config: TrialConfig) -> str:
    """Shorter than in figures for splits that are not published."""
    return split_words(config) if config.official_test else f"{config.evaluate_on} split"


def plain_text(summary: Summary, config: TrialConfig) -> str:
    """The same without colours, for a file."""
    console = Console(width=100, color_system=None, file=io.StringIO(), force_terminal=False)
    with console.capture() as capture:
        console.print(render(summary, config))
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


class _Numbers(Table):
    """A table that is never cut: on a narrow terminal labels wrap, on a narrower one also numbers with their marks."""

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
    """An empty table whose first column is left-aligned and whose numbers are right-aligned."""
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
    """Arms by method and batch size, mean ± interval; below each group the paired differences with their marks."""
    table = table_of_numbers(title, ["", *(_HEADS[metric] for metric in metrics)])
    rows = [row for row in summary.rows if any(metric in row.values for metric in metrics) or row.arm.trained]
    for label, group in groupby(rows, key=lambda row: row.arm.group_label()):
        members = list(group)
        table.add_row(label, style="bold")
        for row in members:
            table.add_row(
                f"  {row.arm.short_label()}{_seeds_left(row, len(summary.seeds))}",
                *(format_interval(row.interval(metric), METRICS[metric]) for metric in metrics),
            )
        for treated, base in pairs_of(summary, [row.arm for row in members]):
            found = {c.metric: c for c in summary.comparisons if (c.treated, c.base) == (treated, base)}
            cells = [_difference_cell(found[metric]) if metric in found else "" for metric in metrics]
            table.add_row(
                f"  VRN {treated.weight:g}, t={treated.temperature:g} − t={base.temperature:g}", *cells, style="cyan"
            )
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


def _legend(summary: Summary) -> str:
    number = len(summary.seeds)
    legend = f"mean ± 95% t interval over {number} seeds" if number > 1 else "a single seed: no interval"
    if summary.comparisons:
        legend += (
            f"; differences are paired by seed. ✓ settled: {settled_means(summary)}, failed ones included; ~ significant only "
            "without the correction; · not significant; = no spread between seeds; ✗ a seed collapsed, diverged or has no result"
        )
    return legend
