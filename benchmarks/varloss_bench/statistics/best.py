"""The best arm with VRN and the best arm without it, both chosen by the same numbers that are shown."""

from dataclasses import dataclass

from varloss_bench.statistics.inference import Interval, paired
from varloss_bench.statistics.summary import Row, Summary

# The accuracy that figures show, and that the best arms are chosen by.
SCORE = "few_label_probe"


@dataclass(frozen=True)
class BestPair:
    """The best arm with VRN and the best arm without it, of a method and batch size."""

    treated: Row
    base: Row
    difference: Interval


def best_pair(summary: Summary, method: str, batch_size: int) -> BestPair | None:
    """Best against best, paired by seed; None if either is missing."""
    treated, base = (best_row(summary, method, batch_size, with_vrn=vrn) for vrn in (True, False))
    if treated is None or base is None:
        return None
    return BestPair(treated, base, score_difference(treated, base))


def best_row(summary: Summary, method: str, batch_size: int, *, with_vrn: bool) -> Row | None:
    """The row with the highest mean score; a row with a failed seed is no candidate."""
    candidates = [
        row
        for row in summary.rows
        if (row.arm.method, row.arm.batch_size, bool(row.arm.weight)) == (method, batch_size, with_vrn)
        and row.values.get(SCORE)
        and not row.failure
    ]
    return max(candidates, key=lambda row: row.mean(SCORE), default=None)


def score_difference(treated: Row, base: Row) -> Interval:
    """Difference of the scores, paired by seed."""
    return paired(treated.values.get(SCORE, {}), base.values.get(SCORE, {})).difference
