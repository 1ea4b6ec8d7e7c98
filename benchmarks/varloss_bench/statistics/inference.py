"""Confidence intervals, paired t tests, Holm's correction, verdicts, and the number of seeds a test needs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal, NamedTuple

import numpy as np
from scipy import special

LEVEL = 0.95
POWER = 0.8
# A larger number of seeds is reported as "over 1000".
MOST_SEEDS = 1000

Verdict = Literal["settled", "suggestive", "open", "no spread", "collapsed", "diverged", "crashed"]
Failure = Literal["collapsed", "diverged", "crashed"]


@dataclass(frozen=True)
class Interval:
    """A mean and its two-sided 95% t interval over seeds.

    Attributes:
        mean: NaN without values.
        half_width: NaN with fewer than two values.
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

    @property
    def spread(self) -> float:
        """Sample standard deviation of the values, NaN with fewer than two."""
        return self.half_width / _t_quantile(self.count - 1) * math.sqrt(self.count) if self.count > 1 else math.nan


@cache
def _t_quantile(degrees: int) -> float:
    return float(special.stdtrit(degrees, (1 + LEVEL) / 2))


def interval(values: Sequence[float]) -> Interval:
    """Mean ± t quantile * standard error, with n - 1 degrees of freedom and the sample standard deviation."""
    count = len(values)
    if count == 0:
        return Interval(math.nan, math.nan, 0)
    mean = float(np.mean(values))
    if count == 1:
        return Interval(mean, math.nan, 1)
    standard_error = float(np.std(values, ddof=1)) / math.sqrt(count)
    return Interval(mean, _t_quantile(count - 1) * standard_error, count)


@dataclass(frozen=True)
class Paired:
    """Difference of two arms in one metric, paired by seed.

    Attributes:
        difference: Interval of treated - base over the seeds that both arms have.
        p_value: Of the two-sided paired t test; NaN with fewer than two seeds or if all differences are equal.
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
        # If all differences are equal, the t statistic is 0/0 or infinite. Accuracies are counts of images, so this
        # happens by chance; a p-value of 0 would claim certainty.
        return Paired(result, math.nan)
    standard_error = float(np.std(differences, ddof=1)) / math.sqrt(len(seeds))
    return Paired(result, 2.0 * float(special.stdtr(len(seeds) - 1, -abs(result.mean) / standard_error)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values; rejecting those below alpha bounds the family-wise error rate by alpha.

    NaN (no test was possible) counts as a member of the family and stays NaN.
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
    """The verdict on one comparison.

    Returns:
        The failure if any seed of either arm failed; the remaining seeds are a biased sample.
        `"settled"` if the difference is significant after Holm's correction, `"suggestive"` if it is only significant
        without the correction, `"no spread"` if all differences are equal, else `"open"`.
    """
    if failure:
        return failure
    if math.isnan(comparison.p_value):
        return "no spread" if comparison.difference.count >= 2 else "open"
    if adjusted_p < 1 - LEVEL:
        return "settled"
    return "suggestive" if comparison.p_value < 1 - LEVEL else "open"


class SeedsNeeded(NamedTuple):
    """The number of seeds that a paired t test needs; `MOST_SEEDS` stands for that many or more.

    Attributes:
        seeds: For the observed standard deviation.
        low, high: For the ends of the 95% interval of the true standard deviation.
    """

    seeds: int
    low: int
    high: int


def seeds_needed(difference: Interval, effect: float, *, comparisons: int = 1) -> SeedsNeeded | None:
    """The number of seeds at which a two-sided paired t test finds a true difference of `effect` with power `POWER`.

    The level is the Bonferroni level 0.05 / comparisons, Holm's first and strictest step: an effect found at this level is
    settled whatever the other comparisons show. The number is an estimate. `power` is exact, but the standard deviation
    is the observed one; its 95% interval spans a factor of 6.6 at 4 seeds and of 2.7 at 10, and the number of seeds grows
    with its square.

    Args:
        difference: The observed difference; its standard deviation and number of seeds are used, its mean is not.
        effect: In the unit of the difference; its sign does not matter.
        comparisons: Size of the family.

    Returns:
        None if there are fewer than 3 seeds (the 95% interval of the standard deviation spans a factor of 72 at 2 seeds),
        no spread or no effect.
    """
    spread, count = difference.spread, difference.count
    if count < 3 or not spread > 0 or not abs(effect) > 0:
        return None
    level = (1 - LEVEL) / comparisons
    deviations = (spread * math.sqrt(factor) for factor in (1.0, *spread_factors(count)))
    return SeedsNeeded(*(_smallest_number(abs(effect) / deviation, level) for deviation in deviations))


def spread_factors(count: int) -> tuple[float, float]:
    """Ends of the 95% interval of the true variance, relative to the variance observed at `count` seeds (chi-square)."""
    tail = (1 - LEVEL) / 2
    low, high = (float((count - 1) / special.chdtri(count - 1, q)) for q in (tail, 1 - tail))
    return low, high


def power(seeds: int, standardised: float, level: float = 1 - LEVEL) -> float:
    """Power of a two-sided paired t test at this level for an effect of `standardised` standard deviations.

    T follows the noncentral t distribution with n - 1 degrees of freedom and noncentrality standardised * sqrt(n). The
    power is P(|T| > t quantile of 1 - level/2). It is computed as the mean of a normal tail over the chi distribution of
    the sample standard deviation, because scipy's `nct.cdf` is NaN in the far tails that small levels need.
    """
    critical = float(special.stdtrit(seeds - 1, 1 - level / 2))
    shift = abs(standardised) * math.sqrt(seeds)
    limits = critical * _chi_quantiles(seeds - 1)
    return float(np.mean(special.ndtr(shift - limits) + special.ndtr(-shift - limits)))


@cache
def _chi_quantiles(degrees: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.float64]]":
    """Sample standard deviations of a unit normal at the midpoints of 4096 equal parts of probability."""
    probabilities = (np.arange(4096) + 0.5) / 4096
    return np.asarray(np.sqrt(special.chdtri(degrees, 1 - probabilities) / degrees))


@lru_cache(maxsize=4096)
def _smallest_number(standardised: float, level: float) -> int:
    """Smallest number of seeds with power `POWER`, by bisection; `MOST_SEEDS` if that many are not enough."""
    low = high = 2
    while high < MOST_SEEDS and power(high, standardised, level) < POWER:
        low, high = high + 1, min(2 * high, MOST_SEEDS)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle, standardised, level) >= POWER else (middle + 1, high)
    return low
