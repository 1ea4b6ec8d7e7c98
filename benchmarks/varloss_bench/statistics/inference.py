"""Means with intervals, paired differences, correction for many comparisons, and words that claim no more than these."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal, NamedTuple

import numpy as np
from scipy import special

LEVEL = 0.95
POWER = 0.8
# Nobody plans more seeds than this; beyond it the answer is "more".
MOST_SEEDS = 1000

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

    @property
    def spread(self) -> float:
        """Sample standard deviation of the values, NaN with fewer than two."""
        return self.half_width / _t_quantile(self.count - 1) * math.sqrt(self.count) if self.count > 1 else math.nan


@cache
def _t_quantile(degrees: int) -> float:
    return float(special.stdtrit(degrees, (1 + LEVEL) / 2))


def interval(values: Sequence[float]) -> Interval:
    """Mean ± t quantile * standard error (sample standard deviation, n - 1 degrees of freedom).

    A t interval at every number of seeds: at ten and more it merges into the normal one, from the safe side.
    """
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
    return Paired(result, 2.0 * float(special.stdtr(len(seeds) - 1, -abs(result.mean) / standard_error)))


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


class SeedsNeeded(NamedTuple):
    """How many seeds a t-test would need; `MOST_SEEDS` stands for that many or more.

    Attributes:
        seeds: For the standard deviation seen.
        low, high: For the ends of that deviation's 95% interval: what is known of it from few seeds is little.
    """

    seeds: int
    low: int
    high: int


def seeds_needed(difference: Interval, effect: float, *, comparisons: int = 1) -> SeedsNeeded | None:
    """Seeds at which a true difference of `effect` is found with probability `POWER`: two-sided paired t-test.

    The level is .05 / comparisons, Holm's first and strictest step, so that what is found is settled whatever the other
    comparisons bring. An estimate: `power` is exact, but the standard deviation is that of the seeds seen, whose 95%
    interval spans a factor of 6.6 at 4 seeds and of 2.7 at 10, and the number of seeds goes with its square.

    Args:
        difference: What was seen; its spread and number of seeds are used, its mean is not.
        effect: In the unit of the difference; its sign does not matter.
        comparisons: Size of the family.

    Returns:
        None where nothing can be said: fewer than 3 seeds (one degree of freedom tells the spread to a factor of 72), no
        spread, or no effect.
    """
    spread, count = difference.spread, difference.count
    if count < 3 or not spread > 0 or not abs(effect) > 0:
        return None
    level = (1 - LEVEL) / comparisons
    deviations = (spread * math.sqrt(factor) for factor in (1.0, *spread_factors(count)))
    return SeedsNeeded(*(_smallest_number(abs(effect) / deviation, level) for deviation in deviations))


def spread_factors(count: int) -> tuple[float, float]:
    """Ends of the 95% interval of a true variance over the one seen at so many seeds (normal values, chi-square)."""
    tail = (1 - LEVEL) / 2
    low, high = (float((count - 1) / special.chdtri(count - 1, q)) for q in (tail, 1 - tail))
    return low, high


def power(seeds: int, standardised: float, level: float = 1 - LEVEL) -> float:
    """Probability that a two-sided paired t-test of this level finds an effect of so many standard deviations.

    T follows the noncentral t distribution with n - 1 degrees of freedom and noncentrality standardised * sqrt(n); this
    is P(|T| > t quantile of 1 - level/2), as the mean of a normal tail over the chi distribution of the sample's standard
    deviation, because scipy's `nct.cdf` is NaN in the far tails that small levels lead to.
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
    """Smallest number of seeds with enough power, which rises with it; `MOST_SEEDS` when that many are not enough."""
    low = high = 2
    while high < MOST_SEEDS and power(high, standardised, level) < POWER:
        low, high = high + 1, min(2 * high, MOST_SEEDS)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle, standardised, level) >= POWER else (middle + 1, high)
    return low
