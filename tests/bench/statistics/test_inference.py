"""Intervals, paired t tests, Holm's correction, verdicts and seeds needed, against values from independent formulas.

The literals come from the formulas written out with scipy's distributions; none is an output of the tested code.
"""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from varloss_bench.statistics import inference


def interval_of_spread(spread, count):
    """An interval whose values had this standard deviation."""
    return inference.Interval(0.0, scipy_stats.t.ppf(0.975, count - 1) * spread / math.sqrt(count), count)


def test_interval_worked_by_hand():
    # mean 2, sample standard deviation 1, standard error 1/sqrt(3), t quantile of 2 degrees of freedom 4.302653
    interval = inference.interval([1.0, 2.0, 3.0])
    assert interval.mean == 2.0
    assert interval.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert (interval.low, interval.high) == (2.0 - interval.half_width, 2.0 + interval.half_width)
    assert interval.count == 3
    assert interval.spread == pytest.approx(1.0)


def test_interval_is_scipys():
    values = np.random.default_rng(0).normal(3, 2, size=7)
    low, high = scipy_stats.t.interval(0.95, 6, loc=values.mean(), scale=scipy_stats.sem(values))
    interval = inference.interval(values.tolist())
    assert (interval.low, interval.high) == (pytest.approx(low), pytest.approx(high))


def test_too_few_values_have_no_interval():
    assert math.isnan(inference.interval([5.0]).half_width)
    assert inference.interval([5.0]).mean == 5.0
    assert math.isnan(inference.interval([]).mean)


def test_paired_uses_common_seeds_and_is_scipys_paired_t_test():
    rng = np.random.default_rng(1)
    base = dict(enumerate(rng.normal(90, 5, size=6).tolist()))
    treated = {seed: value + 1 + 0.3 * rng.normal() for seed, value in base.items()}
    reference = scipy_stats.ttest_rel(list(treated.values()), list(base.values()))
    result = inference.paired({**treated, 17: 1000.0}, {**base, 18: -1000.0})
    assert result.difference.count == 6
    assert result.p_value == pytest.approx(reference.pvalue)
    span = reference.confidence_interval(0.95)
    assert (result.difference.low, result.difference.high) == (pytest.approx(span.low), pytest.approx(span.high))


def test_pairing_is_by_seed_and_not_by_position():
    treated, base = {0: 1.0, 1: 12.0, 2: 23.5}, {2: 22.0, 1: 11.0, 0: 0.5}
    assert inference.paired(treated, base).difference.mean == pytest.approx((0.5 + 1.0 + 1.5) / 3)


def test_no_spread_gives_no_p_value():
    """Equal differences of 0.2 points (one image of 500) are no certainty."""
    result = inference.paired({0: 90.2, 1: 91.2, 2: 89.2}, {0: 90.0, 1: 91.0, 2: 89.0})
    assert math.isnan(result.p_value)
    assert inference.verdict(result, math.nan) == "no spread"
    assert math.isnan(inference.paired({0: 1.0}, {0: 0.0}).p_value)


@pytest.mark.parametrize(("standardised", "seeds"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_seeds_for_80_percent_power_are_those_of_the_tables(standardised, seeds):
    """Cohen's small, medium and large effect in a paired two-sided t test at 0.05, as G*Power gives them."""
    difference = interval_of_spread(2.0, 6)
    assert inference.seeds_needed(difference, 2.0 * standardised).seeds == seeds
    assert inference.seeds_needed(difference, -2.0 * standardised).seeds == seeds
    assert inference.power(seeds, standardised) >= 0.8 > inference.power(seeds - 1, standardised)


@pytest.mark.parametrize(("seeds", "level"), [(3, 0.05), (4, 0.05 / 20), (10, 0.05), (30, 0.05 / 180)])
def test_power_is_that_of_the_noncentral_t_distribution(seeds, level):
    for standardised in (0.1, 0.5, 1.0, 2.0):
        critical, shift = scipy_stats.t.isf(level / 2, seeds - 1), standardised * math.sqrt(seeds)
        lower = scipy_stats.nct.cdf(-critical, seeds - 1, shift)
        expected = scipy_stats.nct.sf(critical, seeds - 1, shift) + (0.0 if math.isnan(lower) else lower)
        assert inference.power(seeds, standardised, level) == pytest.approx(expected, abs=1e-4)


def test_power_is_how_often_the_effect_is_found():
    draws = np.random.default_rng(3).normal(0.9, 1.0, size=(20000, 7))
    t = draws.mean(1) / draws.std(1, ddof=1) * math.sqrt(7)
    found = np.mean(2 * scipy_stats.t.sf(abs(t), 6) < 0.01)
    assert inference.power(7, 0.9, 0.01) == pytest.approx(found, abs=0.012)


def test_every_effect_has_a_number_of_seeds():
    """Far tails, where scipy's noncentral t gives NaN, included; a family never needs fewer."""
    difference = interval_of_spread(1.0, 4)
    for effect in np.logspace(-4, 4, 30):
        needed = [inference.seeds_needed(difference, effect, comparisons=m) for m in (1, 20, 2000)]
        assert all(2 <= n.low <= n.seeds <= n.high <= inference.MOST_SEEDS for n in needed)
        assert needed[0].seeds <= needed[1].seeds <= needed[2].seeds


def test_the_range_of_the_estimate_covers_the_truth():
    """Spread 1, effect 0.7: 19 seeds are needed; estimated from 4 seeds, the range covers this number in 95% of samples."""
    truth = inference.seeds_needed(interval_of_spread(1.0, 4), 0.7).seeds
    samples = np.random.default_rng(5).normal(size=(400, 4))
    found = [inference.seeds_needed(inference.interval(sample.tolist()), 0.7) for sample in samples]
    covered = np.mean([needed.low <= truth <= needed.high for needed in found])
    assert truth == 19
    assert 0.91 < covered < 0.99
    # The middle half of the estimates spans more than a factor of 2.
    low, high = np.percentile([needed.seeds for needed in found], [25, 75])
    assert high > 2 * low


def test_three_seeds_are_enough_for_an_estimate():
    # Standard deviation 1; the interval of a variance from 3 seeds is 0.271 to 39.5 times it.
    found = inference.seeds_needed(inference.interval([1.0, 2.0, 3.0]), 1.0)
    assert found.seeds == 10
    assert found.low < found.seeds < found.high


def test_no_number_of_seeds_without_an_estimate_of_the_spread():
    assert inference.seeds_needed(inference.interval([1.0, 2.0]), 0.5) is None
    assert inference.seeds_needed(inference.interval([1.0, 1.0, 1.0]), 0.5) is None
    assert inference.seeds_needed(inference.interval([1.0, 2.0, 4.0]), 0.0) is None
    assert inference.seeds_needed(inference.interval([1.0, 2.0, 4.0]), math.nan) is None
    assert inference.seeds_needed(inference.interval([]), 0.5) is None


def test_holm_worked_by_hand():
    # sorted 0.005 0.01 0.03 0.04 times 4 3 2 1 is 0.02 0.03 0.06 0.04, made monotone 0.02 0.03 0.06 0.06
    assert inference.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert inference.holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])
    assert inference.holm([]) == []


def test_holm_counts_tests_that_could_not_be_made():
    adjusted = inference.holm([0.01, math.nan, 0.02])
    assert adjusted[0] == pytest.approx(0.03)
    assert adjusted[2] == pytest.approx(0.04)
    assert math.isnan(adjusted[1])


@pytest.mark.parametrize(
    ("p_value", "adjusted", "failure", "expected"),
    [
        (0.001, 0.02, None, "settled"),
        (0.01, 0.2, None, "suggestive"),
        (0.2, 1.0, None, "open"),
        (0.001, 0.02, "collapsed", "collapsed"),
        (0.001, 0.02, "diverged", "diverged"),
    ],
)
def test_verdict(p_value, adjusted, failure, expected):
    comparison = inference.Paired(inference.Interval(1.0, 0.1, 4), p_value)
    assert inference.verdict(comparison, adjusted, failure) == expected


# Differences 1.2, -0.3, 0.9, 2.0: mean 3.8/4; sum of squared deviations 2.73; standard deviation sqrt(2.73/3); t with 3
# degrees of freedom is mean / (sd/2) = 1.99174; its quantile at 0.975 is 3.182446.
DIFFERENCES = {0: (91.2, 90.0), 1: (89.7, 90.0), 2: (90.9, 90.0), 3: (92.0, 90.0)}


def test_a_paired_t_test_worked_by_hand():
    treated = {seed: pair[0] for seed, pair in DIFFERENCES.items()}
    base = {seed: pair[1] for seed, pair in DIFFERENCES.items()}
    result = inference.paired(treated, base)
    assert result.difference.mean == pytest.approx(0.95)
    assert result.difference.spread == pytest.approx(math.sqrt(2.73 / 3))
    assert result.difference.half_width == pytest.approx(3.182446 * math.sqrt(2.73 / 3) / 2, rel=1e-6)
    assert result.p_value == pytest.approx(0.140446348, rel=1e-6)
    # The sign of the difference does not matter, the pairing does.
    assert inference.paired(base, treated).p_value == pytest.approx(0.140446348, rel=1e-6)


def test_differences_that_vary_less_than_rounding_are_equal():
    """1e-12 relative to the largest difference is rounding; 1e-9 is not."""
    base = dict.fromkeys(range(3), 0.0)
    assert math.isnan(inference.paired({0: 4.0, 1: 4.0, 2: 4.0 + 2e-12}, base).p_value)
    assert inference.paired({0: 4.0, 1: 4.0, 2: 4.0 + 4e-9}, base).p_value < 1e-6


def test_two_seeds_are_enough_for_a_test():
    # t = 3 with one degree of freedom: p = 1 - 2/pi * atan(3).
    assert inference.paired({0: 1.0, 1: 2.0}, {0: 0.0, 1: 0.0}).p_value == pytest.approx(1 - 2 / math.pi * math.atan(3))


# The integral of the normal tails over the chi density of the sample standard deviation, by quadrature.
@pytest.mark.parametrize(
    ("seeds", "standardised", "level", "expected"),
    [(5, 1.0, 0.05, 0.40138992), (8, 0.7, 0.05, 0.40139738), (6, 1.5, 0.05 / 20, 0.20713197)],
)
def test_power_by_quadrature(seeds, standardised, level, expected):
    assert inference.power(seeds, standardised, level) == pytest.approx(expected, abs=2e-5)
    assert inference.power(seeds, -standardised, level) == inference.power(seeds, standardised, level)


def test_power_is_for_a_level_of_5_percent_by_default():
    assert inference.power(5, 1.0) == inference.power(5, 1.0, 0.05)


@pytest.mark.parametrize(("comparisons", "expected"), [(1, (5, 3, 27)), (20, (8, 6, 52))])
def test_seeds_needed_worked_by_quadrature(comparisons, expected):
    """Standard deviation sqrt(2.73/3) at 4 seeds, effect 2: the smallest n with power 0.8, and for the interval's ends."""
    difference = interval_of_spread(math.sqrt(2.73 / 3), 4)
    assert inference.seeds_needed(difference, 2.0, comparisons=comparisons) == expected


@pytest.mark.parametrize(
    ("count", "low", "high"), [(3, 0.27108503, 39.4978902), (4, 0.32091041, 13.9020648), (10, 0.47311727, 3.3328525)]
)
def test_interval_of_a_variance(count, low, high):
    """(n - 1) over the chi-square quantiles at 0.975 and 0.025."""
    assert inference.spread_factors(count) == (pytest.approx(low), pytest.approx(high))


def test_more_than_the_most_seeds_is_the_most():
    assert inference.seeds_needed(interval_of_spread(1.0, 4), 1e-3).seeds == 1000
    # 0.0886 standard deviations need exactly 1000 or fewer; the bisection reaches its last step.
    needed = inference.seeds_needed(interval_of_spread(1.0, 4), 0.0889).seeds
    assert 990 < needed < 1000
    assert inference.power(needed, 0.0889) >= 0.8 > inference.power(needed - 1, 0.0889)


def test_holm_multiplies_by_the_number_of_hypotheses_left():
    p_values = [0.004, 0.03, 0.2, 0.011, 0.9]
    # sorted 0.004 0.011 0.03 0.2 0.9 times 5 4 3 2 1
    assert inference.holm(p_values) == pytest.approx([0.02, 0.09, 0.4, 0.044, 0.9])


@pytest.mark.parametrize(
    ("p_value", "adjusted", "expected"),
    [
        (0.049, 0.049, "settled"),
        (0.049, 0.051, "suggestive"),
        (0.051, 0.051, "open"),
        (0.05 + 1e-9, 1.0, "open"),
    ],
)
def test_verdicts_change_at_5_percent(p_value, adjusted, expected):
    assert inference.verdict(inference.Paired(inference.Interval(1.0, 0.1, 4), p_value), adjusted) == expected


def test_two_seeds_without_spread_are_no_spread():
    assert inference.verdict(inference.paired({0: 2.0, 1: 3.0}, {0: 1.0, 1: 2.0}), math.nan) == "no spread"


def test_one_seed_is_open():
    assert inference.verdict(inference.paired({0: 2.0}, {0: 1.0}), math.nan) == "open"


@pytest.mark.parametrize("seeds", [4, 10])
def test_family_wise_error_of_null_sweeps(seeds):
    """In 2000 sweeps of 6 comparisons without an effect, at most 6% call anything settled.

    The comparisons of a sweep share seeds, so their noise is correlated, as in a real sweep.
    """
    rng = np.random.default_rng(seeds)
    false_alarms = 0
    for _ in range(2000):
        shared = rng.normal(size=seeds)
        tests = []
        for _ in range(6):
            differences = 0.5 * shared + rng.normal(size=seeds)
            tests.append(inference.paired(dict(enumerate(differences.tolist())), dict.fromkeys(range(seeds), 0.0)))
        adjusted = inference.holm([test.p_value for test in tests])
        false_alarms += any(inference.verdict(t, p) == "settled" for t, p in zip(tests, adjusted, strict=True))
    assert 0.005 < false_alarms / 2000 < 0.06


def test_a_planted_effect_is_found():
    """Difference 1 with standard deviation 0.2 at 4 seeds, among 19 nulls."""
    rng = np.random.default_rng(7)
    found = 0
    for _ in range(100):
        effects = [1.0] + [0.0] * 19
        tests = [
            inference.paired(dict(enumerate((e + 0.2 * rng.normal(size=4)).tolist())), dict.fromkeys(range(4), 0.0))
            for e in effects
        ]
        adjusted = inference.holm([test.p_value for test in tests])
        found += inference.verdict(tests[0], adjusted[0]) == "settled"
    assert found > 50
