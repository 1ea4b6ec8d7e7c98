"""The report's answer in words: what is settled, what is only a hint, and which arms failed."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple, get_args

from varloss_bench.config import COLLAPSE_MEAN
from varloss_bench.measures import METRICS
from varloss_bench.messages import counted
from varloss_bench.report import text as report_text
from varloss_bench.statistics import inference as stats
from varloss_bench.statistics.summary import Comparison, Summary

_LISTED = 12


class FailureWords(NamedTuple):
    """How a failure is told: before the number of its arms, and in the legend of a figure that has it as a cross."""

    counted: str
    legend: str


FAILURES: Mapping[stats.Failure, FailureWords] = {
    "diverged": FailureWords(
        "Diverged in at least one seed, which wins nothing", "diverged at a seed, shown are the survivors: wins nothing"
    ),
    "collapsed": FailureWords(
        f"Collapsed in at least one seed (mean similarity of negatives above {COLLAPSE_MEAN}), which wins nothing",
        "collapsed at a seed: wins nothing",
    ),
    "crashed": FailureWords(
        "Without a result in at least one seed, and hence compared with nothing",
        "a seed without result, shown are the others: wins nothing",
    ),
}


def verdict(summary: Summary) -> list[str]:
    """The answer in two or three sentences that count verdicts and claim no more than these."""
    if not summary.comparisons:
        return ["Nothing is compared: no arm with VRN has its arm without VRN here."]
    lines = []
    accuracies = [c for c in summary.comparisons if METRICS[c.metric].unit]
    made = [c for c in summary.comparisons if c.verdict not in get_args(stats.Failure)]
    better, worse = (
        [c for c in accuracies if c.verdict == "settled" and (c.result.difference.mean > 0) == up]
        for up in (True, False)
    )
    seeds = _seeds(made or summary.comparisons)
    if not made:
        lines.append("No comparison could be made: every pair has an arm with a seed that failed or has no result.")
    elif not better and not worse:
        lines.append(f"No difference in accuracy is settled at {seeds}.")
    else:
        lines.append(
            f"Accuracy: {len(better)} of {len(accuracies)} comparisons are settled in favour of VRN and {len(worse)} "
            f"against it, at {seeds}."
        )
    hints = [c for c in accuracies if c.verdict == "suggestive"]
    if hints:
        up = sum(c.result.difference.mean > 0 for c in hints)
        lines.append(
            f"Only a hint{' besides' if better or worse else ''}: {counted(len(hints), 'comparison')} ({up} for, "
            f"{len(hints) - up} against), whose own interval excludes 0, which does not survive the correction over all "
            f"{len(summary.comparisons)}."
        )
    variances = [c for c in summary.comparisons if c.metric == "negative_variance"]
    lower = sum(c.verdict == "settled" and c.result.difference.mean < 0 for c in variances)
    higher = sum(c.verdict == "settled" and c.result.difference.mean > 0 for c in variances)
    lines.append(
        f"Variance of held-out negatives: settled lower with VRN in {lower} of {len(variances)} comparisons"
        + (f", settled higher in {higher}." if higher else ".")
    )
    failures = Counter(row.failure for row in summary.rows if row.failure)
    lines += [
        f"{FAILURES[failure].counted}: {counted(count, 'arm')}." for failure, count in failures.items() if failure
    ]
    return lines


def _seeds(comparisons: Sequence[Comparison]) -> str:
    counts = sorted({c.result.difference.count for c in comparisons})
    return counted(counts[0], "seed") if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"


def settled(summary: Summary) -> list[str]:
    """What is settled of the accuracies, largest first."""
    found = [c for c in summary.comparisons if c.verdict == "settled" and METRICS[c.metric].unit]
    found.sort(key=lambda c: -abs(c.result.difference.mean))
    lines = [f"{_pair(c)}: {METRICS[c.metric].title} {report_text.in_words(c)}" for c in found[:_LISTED]]
    return lines + (
        [f"... and {len(found) - _LISTED} more in the table of comparisons"] if len(found) > _LISTED else []
    )


def _pair(c: Comparison) -> str:
    return f"{report_text.group_label(c.treated)}, {report_text.arm_label(c.treated)} against {report_text.versus(c)}"
