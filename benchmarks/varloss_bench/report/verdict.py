"""The wording of verdicts: of one comparison, of a sweep in the terminal, and of a section of the page."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple, get_args

from varloss_bench.config import COLLAPSE_MEAN, Arm
from varloss_bench.measures import METRICS
from varloss_bench.messages import counted
from varloss_bench.statistics.inference import LEVEL, MOST_SEEDS, Failure, SeedsNeeded
from varloss_bench.statistics.summary import Comparison, Summary

_LISTED = 12


class FailureWords(NamedTuple):
    """A failure in words: before the number of its arms, and in the legend of a figure that shows it as a cross."""

    counted: str
    legend: str


FAILURES: Mapping[Failure, FailureWords] = {
    "diverged": FailureWords(
        "Diverged for at least one seed; excluded from comparisons",
        "diverged for a seed (shown: the other seeds); excluded from comparisons",
    ),
    "collapsed": FailureWords(
        f"Collapsed for at least one seed (mean similarity of negatives above {COLLAPSE_MEAN}); excluded from comparisons",
        "collapsed for a seed; excluded from comparisons",
    ),
    "crashed": FailureWords(
        "No result for at least one seed; excluded from comparisons",
        "no result for a seed (shown: the other seeds); excluded from comparisons",
    ),
}


def settled_means(summary: Summary) -> str:
    """The definition of "settled"."""
    return f"significant at the {1 - LEVEL:.0%} level after Holm's correction over all {len(summary.comparisons)} comparisons"


def summary_lines(summary: Summary) -> list[str]:
    """The verdict on a sweep: how many comparisons are settled, in accuracy and in variance, and which arms failed."""
    if not summary.comparisons:
        return ["Nothing is compared: no arm with VRN has its arm without VRN here."]
    accuracies = [c for c in summary.comparisons if METRICS[c.metric].unit]
    made = [c for c in summary.comparisons if c.verdict not in get_args(Failure)]
    better, worse = _by_sign([c for c in accuracies if c.verdict == "settled"])
    seeds = _seed_range(made or summary.comparisons)
    if not made:
        lines = ["No comparison is possible: in every pair, a seed of one arm failed or has no result."]
    elif not better and not worse:
        lines = [f"No difference in accuracy is settled at {seeds}. Settled means {settled_means(summary)}."]
    else:
        lines = [
            f"Accuracy: {len(better)} of {len(accuracies)} comparisons are settled in favour of VRN and {len(worse)} "
            f"against it, at {seeds}. Settled means {settled_means(summary)}."
        ]
    favourable, unfavourable = _by_sign([c for c in accuracies if c.verdict == "suggestive"])
    if hints := len(favourable) + len(unfavourable):
        lines.append(
            f"Significant only without the correction: {counted(hints, 'comparison')} of accuracy ({len(favourable)} in "
            f"favour of VRN, {len(unfavourable)} against it). This is a hint and not a result."
        )
    variances = [c for c in summary.comparisons if c.metric == "negative_variance"]
    higher, lower = _by_sign([c for c in variances if c.verdict == "settled"])
    lines.append(
        f"Variance of held-out negatives: settled lower with VRN in {len(lower)} of {len(variances)} comparisons"
        + (f", settled higher in {len(higher)}." if higher else ".")
    )
    failures = Counter(row.failure for row in summary.rows if row.failure)
    return lines + [f"{FAILURES[failure].counted}: {counted(count, 'arm')}." for failure, count in failures.items()]


def _by_sign(comparisons: Sequence[Comparison]) -> tuple[list[Comparison], list[Comparison]]:
    """Those whose difference is positive, and the others."""
    positive = [c for c in comparisons if c.result.difference.mean > 0]
    return positive, [c for c in comparisons if c not in positive]


def _seed_range(comparisons: Sequence[Comparison]) -> str:
    counts = sorted({c.result.difference.count for c in comparisons})
    return counted(counts[0], "seed") if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"


def settled_lines(summary: Summary) -> list[str]:
    """The settled differences in accuracy, largest first."""
    found = [c for c in summary.comparisons if c.verdict == "settled" and METRICS[c.metric].unit]
    found.sort(key=lambda c: -abs(c.result.difference.mean))
    lines = [f"{_pair(c)}: {METRICS[c.metric].title} {in_words(c)}" for c in found[:_LISTED]]
    rest = len(found) - _LISTED
    return lines + ([f"... and {rest} more in the table of comparisons"] if rest > 0 else [])


def _pair(c: Comparison) -> str:
    return f"{c.treated.label()} against {base_in_words(c)}"


def comparison_lines(summary: Summary) -> list[str]:
    """Each pair of arms with a sentence per metric; accuracies that are not settled share one line."""
    lines = []
    for treated, base in pairs_of(summary, [row.arm for row in summary.rows]):
        mine = [c for c in summary.comparisons if (c.treated, c.base) == (treated, base)]
        lines.append(f"{treated.group_label()}: {treated.short_label()} against {base_in_words(mine[0])}")
        if mine[0].verdict in get_args(Failure):
            lines.append(f"  {in_words(mine[0])}")
            continue
        # They are for the same effect, which is named once.
        open_accuracies = [c for c in mine if c.verdict == "open" and METRICS[c.metric].unit]
        lines += [f"  {METRICS[c.metric].title}: {in_words(c)}" for c in mine if c not in open_accuracies]
        if open_accuracies:
            lines.append(f"  {_open_in_words(open_accuracies)}")
    return lines


def pairs_of(summary: Summary, arms: Sequence[Arm]) -> list[tuple[Arm, Arm]]:
    """The pairs of arms that are compared and whose first arm is one of these."""
    return list(dict.fromkeys((c.treated, c.base) for c in summary.comparisons if c.treated in arms))


def _open_in_words(comparisons: Sequence[Comparison]) -> str:
    needed = [c.seeds_needed(c.effect) for c in comparisons]
    titles = [
        METRICS[c.metric].title + (f" ({_number(seeds)})" if seeds else "")
        for c, seeds in zip(comparisons, needed, strict=True)
    ]
    lead = f"; in brackets the seeds that an effect of {_effect(comparisons[0])} needs" if any(needed) else ""
    return f"not settled at {_count(comparisons[0])}{lead}: {'; '.join(titles)}"


def base_in_words(comparison: Comparison) -> str:
    """The base of a comparison."""
    if comparison.role == "same temperature":
        return "no VRN"
    at = f"t={comparison.base.temperature:g}"
    return f"the tuned baseline, {at}" if comparison.role == "tuned baseline" else f"{at} without VRN"


def in_words(comparison: Comparison) -> str:
    """One comparison as a sentence."""
    metric = METRICS[comparison.metric]
    difference = comparison.result.difference
    if comparison.verdict == "diverged":
        return "no comparison: at least one seed of one arm diverged, so the remaining seeds are a biased sample"
    if comparison.verdict == "crashed":
        return (
            "no comparison: at least one seed of one arm has no result, so the remaining seeds may be a biased sample"
        )
    if comparison.verdict == "collapsed":
        return (
            "no comparison: at least one seed of one arm collapsed (mean similarity of held-out negatives above "
            f"{COLLAPSE_MEAN}), where a small variance is not an improvement"
        )
    if difference.count < 2:
        return f"not settled: {_count(comparison)}, no interval"
    span = f"95% interval {difference.low:+.{metric.digits}f} to {difference.high:+.{metric.digits}f}"
    direction = "higher" if difference.mean > 0 else "lower"
    size = f"{abs(difference.mean):.{metric.digits}f}{' points' if metric.unit else ''} {direction}"
    if comparison.verdict == "no spread":
        size = size if difference.mean else "no difference"
        return f"not settled: {size} for each of {_count(comparison)}; without spread no t interval applies"
    if comparison.verdict == "settled":
        return f"{size}, settled at {_count(comparison)} ({span}, Holm p = {comparison.adjusted_p:.2g})"
    if comparison.verdict == "suggestive":
        needed = comparison.seeds_needed(difference.mean)
        seeds = f"; an effect of this size needs about {_number(needed)} seeds" if needed else ""
        return (
            f"{size} ({span}), not settled: not significant after the correction for {comparison.family} "
            f"comparisons{seeds}"
        )
    needed = comparison.seeds_needed(comparison.effect)
    seeds = f"; an effect of {_effect(comparison)} needs about {_number(needed)} seeds" if needed else ""
    return f"not settled at {_count(comparison)} ({span}){seeds}"


def _effect(comparison: Comparison) -> str:
    metric = METRICS[comparison.metric]
    return points(comparison.effect) if metric.unit else f"{comparison.effect:.{metric.digits}f}"


def points(effect: float) -> str:
    """`1 point`, `0.5 points`."""
    return f"{effect:g} point{'' if effect == 1 else 's'}"


def _number(needed: SeedsNeeded) -> str:
    return f"over {MOST_SEEDS}" if needed.seeds >= MOST_SEEDS else str(needed.seeds)


def _count(comparison: Comparison) -> str:
    return counted(comparison.result.difference.count, "seed")
