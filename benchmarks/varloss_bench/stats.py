"""Means with intervals, paired differences, correction for many comparisons, and words that claim no more than these."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

LEVEL = 0.95

Verdict = Literal["settled", "suggestive", "open", "no spread", "collapsed", "diverged", "crashed"]
Failure = Literal["collapsed", "diverged", "crashed"]


@dataclass(frozen=True)
class Interval:
    """A mean and its two-sided 95% t interval over seeds.

    Attributes:
        mean: NaN when there is no value.
        half_width: NaN with fewer than two values: one seed has no interval.
        count: Number of seeds.
    """

    mean: float
    half_width: float
    count: int

    @property
    def low(self) -> float:
        """Lower end."""
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        """Upper end."""
        return self.mean + self.half_width


def interval(values: Sequence[float]) -> Interval:
    """Mean ± t quantile * standard error (sample standard deviation, n - 1 degrees of freedom)."""
    count = len(values)
    if count == 0:
        return Interval(math.nan, math.nan, 0)
    mean = float(np.mean(values))
    if count == 1:
        return Interval(mean, math.nan, 1)
    standard_error = float(np.std(values, ddof=1)) / math.sqrt(count)
    return Interval(mean, float(stats.t.ppf((1 + LEVEL) / 2, count - 1)) * standard_error, count)


@dataclass(frozen=True)
class Paired:
    """Difference of two arms in one metric, seed by seed.

    Attributes:
        difference: Interval of treated - base over the seeds both arms have.
        p_value: Two-sided paired t-test; NaN when it cannot be computed (fewer than two seeds, or no spread).
    """

    difference: Interval
    p_value: float


def paired(treated: Mapping[int, float], base: Mapping[int, float]) -> Paired:
    """Compare two arms over the seeds that both have finished.

    Args:
        treated: Metric by seed.
        base: Metric by seed.
    """
    seeds = sorted(treated.keys() & base.keys())
    differences = [treated[seed] - base[seed] for seed in seeds]
    result = interval(differences)
    if len(seeds) < 2 or np.ptp(differences) <= 1e-12 * max(1.0, float(np.max(np.abs(differences)))):
        # Differences all alike: the t statistic is 0/0 or infinite. Accuracies come in steps of one image, so this
        # happens by chance, and an interval of width 0 would claim certainty.
        return Paired(result, math.nan)
    standard_error = float(np.std(differences, ddof=1)) / math.sqrt(len(seeds))
    return Paired(result, 2.0 * float(stats.t.sf(abs(result.mean) / standard_error, len(seeds) - 1)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values: rejecting those below alpha keeps the family-wise error at alpha.

    NaN (no test could be made) counts as a member of the family and stays NaN.
    """
    order = sorted(range(len(p_values)), key=lambda i: (math.isnan(p_values[i]), p_values[i]))
    adjusted = [math.nan] * len(p_values)
    running = 0.0
    for rank, i in enumerate(order):
        if math.isnan(p_values[i]):
            break
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted


def verdict(comparison: Paired, adjusted_p: float, failure: Failure | None = None) -> Verdict:
    """What may be said of one comparison.

    Returns:
        The failure when an arm had one in any seed, whatever the numbers of the others are: they are the survivors.
        `"settled"` when the difference survives Holm's correction;
        `"suggestive"` when only its own interval excludes 0; `"no spread"` when no t interval applies; else `"open"`.
    """
    if failure:
        return failure
    if math.isnan(comparison.p_value):
        return "no spread" if comparison.difference.count >= 2 else "open"
    if adjusted_p < 1 - LEVEL:
        return "settled"
    return "suggestive" if comparison.p_value < 1 - LEVEL else "open"
