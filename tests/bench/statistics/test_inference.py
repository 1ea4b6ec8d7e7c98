"""Intervals, paired tests, Holm's correction and verdicts, against scipy, cases worked by hand, and simulated nulls."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from varloss_bench.statistics import inference as stats


def interval_of_spread(spread, count):
    """An interval whose values had this standard deviation."""
    return stats.Interval(0.0, scipy_stats.t.ppf(0.975, count - 1) * spread / math.sqrt(count), count)


def test_interval_worked_by_hand():
    # mean 2, sample standard deviation 1, standard error 1/sqrt(3), t quantile of 2 degrees of freedom 4.302653
    interval = stats.interval([1.0, 2.0, 3.0])
    assert interval.mean == 2.0
    assert interval.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert (interval.low, interval.high) == (2.0 - interval.half_width, 2.0 + interval.half_width)
    assert interval.count == 3
    assert interval.spread == pytest.approx(1.0)


def test_interval_is_scipys():
    values = np.random.default_rng(0).normal(3, 2, size=7)
    low, high = scipy_stats.t.interval(0.95, 6, loc=values.mean(), scale=scipy_stats.sem(values))
    interval = stats.interval(values.tolist())
    assert (interval.low, interval.high) == (pytest.approx(low), pytest.approx(high))


def test_too_few_values_have_no_interval():
    assert math.isnan(stats.interval([5.0]).half_width)
    assert stats.interval([5.0]).mean == 5.0
    assert math.isnan(stats.interval([]).mean)


def test_paired_uses_common_seeds_and_is_scipys_paired_t_test():
    rng = np.random.default_rng(1)
    base = dict(enumerate(rng.normal(90, 5, size=6).tolist()))
    treated = {seed: value + 1 + 0.3 * rng.normal() for seed, value in base.items()}
    reference = scipy_stats.ttest_rel(list(treated.values()), list(base.values()))
    result = stats.paired({**treated, 17: 1000.0}, {**base, 18: -1000.0})
    assert result.difference.count == 6
    assert result.p_value == pytest.approx(reference.pvalue)
    span = reference.confidence_interval(0.95)
    assert (result.difference.low, result.difference.high) == (pytest.approx(span.low), pytest.approx(span.high))


def test_pairing_is_by_seed_and_not_by_position():
    treated, base = {0: 1.0, 1: 12.0, 2: 23.5}, {2: 22.0, 1: 11.0, 0: 0.5}
    assert stats.paired(treated, base).difference.mean == pytest.approx((0.5 + 1.0 + 1.5) / 3)


def test_no_spread_gives_no_p_value():
    """Equal differences of 0.2 points (one image of 500) must not become certainty."""
    result = stats.paired({0: 90.2, 1: 91.2, 2: 89.2}, {0: 90.0, 1: 91.0, 2: 89.0})
    assert math.isnan(result.p_value)
    assert stats.verdict(result, math.nan) == "no spread"
    assert math.isnan(stats.paired({0: 1.0}, {0: 0.0}).p_value)


@pytest.mark.parametrize(("standardised", "seeds"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_seeds_for_80_percent_power_are_those_of_the_tables(standardised, seeds):
    """Cohen's small, medium and large effect in a paired two-sided t-test at .05, as G*Power gives them."""
    difference = interval_of_spread(2.0, 6)
    assert stats.seeds_needed(difference, 2.0 * standardised).seeds == seeds
    assert stats.seeds_needed(difference, -2.0 * standardised).seeds == seeds
    assert stats.power(seeds, standardised) >= 0.8 > stats.power(seeds - 1, standardised)


@pytest.mark.parametrize(("seeds", "level"), [(3, 0.05), (4, 0.05 / 20), (10, 0.05), (30, 0.05 / 180)])
def test_power_is_that_of_the_noncentral_t_distribution(seeds, level):
    for standardised in (0.1, 0.5, 1.0, 2.0):
        critical, shift = scipy_stats.t.isf(level / 2, seeds - 1), standardised * math.sqrt(seeds)
        lower = scipy_stats.nct.cdf(-critical, seeds - 1, shift)
        expected = scipy_stats.nct.sf(critical, seeds - 1, shift) + (0.0 if math.isnan(lower) else lower)
        assert stats.power(seeds, standardised, level) == pytest.approx(expected, abs=1e-4)


def test_power_is_how_often_the_effect_is_found():
    draws = np.random.default_rng(3).normal(0.9, 1.0, size=(20000, 7))
    t = draws.mean(1) / draws.std(1, ddof=1) * math.sqrt(7)
    found = np.mean(2 * scipy_stats.t.sf(abs(t), 6) < 0.01)
    assert stats.power(7, 0.9, 0.01) == pytest.approx(found, abs=0.012)


def test_every_effect_has_a_number_of_seeds():
    """Far tails, where scipy's noncentral t gives NaN, included; a family never needs fewer."""
    difference = interval_of_spread(1.0, 4)
    for effect in np.logspace(-4, 4, 30):
        needed = [stats.seeds_needed(difference, effect, comparisons=m) for m in (1, 20, 2000)]
        assert all(2 <= n.low <= n.seeds <= n.high <= stats.MOST_SEEDS for n in needed)
        assert needed[0].seeds <= needed[1].seeds <= needed[2].seeds


def test_the_range_of_the_estimate_covers_the_truth():
    """Spread 1, effect .7: 19 seeds are needed; from 4 seeds each the range holds that number 95 times out of 100."""
    truth = stats.seeds_needed(interval_of_spread(1.0, 4), 0.7).seeds
    samples = np.random.default_rng(5).normal(size=(400, 4))
    found = [stats.seeds_needed(stats.interval(sample.tolist()), 0.7) for sample in samples]
    covered = np.mean([needed.low <= truth <= needed.high for needed in found])
    assert truth == 19
    assert 0.91 < covered < 0.99
    # It is an estimate indeed: the middle half of the estimates spans more than a factor of 2.
    low, high = np.percentile([needed.seeds for needed in found], [25, 75])
    assert high > 2 * low


def test_where_nothing_is_known_no_number_is_named():
    assert stats.seeds_needed(stats.interval([1.0, 2.0]), 0.5) is None
    assert stats.seeds_needed(stats.interval([1.0, 1.0, 1.0]), 0.5) is None
    assert stats.seeds_needed(stats.interval([1.0, 2.0, 4.0]), 0.0) is None
    assert stats.seeds_needed(stats.interval([1.0, 2.0, 4.0]), math.nan) is None
    assert stats.seeds_needed(stats.interval([]), 0.5) is None


def test_holm_worked_by_hand():
    # sorted .005 .01 .03 .04 times 4 3 2 1 is .02 .03 .06 .04, made monotone .02 .03 .06 .06
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])
    assert stats.holm([]) == []


def test_holm_counts_tests_that_could_not_be_made():
    adjusted = stats.holm([0.01, math.nan, 0.02])
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
    comparison = stats.Paired(stats.Interval(1.0, 0.1, 4), p_value)
    assert stats.verdict(comparison, adjusted, failure) == expected


def test_one_seed_is_open():
    assert stats.verdict(stats.paired({0: 2.0}, {0: 1.0}), math.nan) == "open"


@pytest.mark.parametrize("seeds", [4, 10])
def test_family_wise_error_of_null_sweeps(seeds):
    """2000 sweeps of 6 comparisons without any effect: at most 6% may call anything settled.

    The comparisons of a sweep share seeds and hence noise, as they do in a real one.
    """
    rng = np.random.default_rng(seeds)
    false_alarms = 0
    for _ in range(2000):
        shared = rng.normal(size=seeds)
        tests = []
        for _ in range(6):
            differences = 0.5 * shared + rng.normal(size=seeds)
            tests.append(stats.paired(dict(enumerate(differences.tolist())), dict.fromkeys(range(seeds), 0.0)))
        adjusted = stats.holm([test.p_value for test in tests])
        false_alarms += any(stats.verdict(t, p) == "settled" for t, p in zip(tests, adjusted, strict=True))
    assert 0.005 < false_alarms / 2000 < 0.06


def test_a_planted_effect_is_found():
    """Difference 1 with standard deviation .2 at 4 seeds, among 19 nulls."""
    rng = np.random.default_rng(7)
    found = 0
    for _ in range(100):
        effects = [1.0] + [0.0] * 19
        tests = [
            stats.paired(dict(enumerate((e + 0.2 * rng.normal(size=4)).tolist())), dict.fromkeys(range(4), 0.0))
            for e in effects
        ]
        adjusted = stats.holm([test.p_value for test in tests])
        found += stats.verdict(tests[0], adjusted[0]) == "settled"
    assert found > 50
