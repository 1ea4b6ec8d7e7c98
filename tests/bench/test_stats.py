"""Intervals, paired tests, Holm's correction and verdicts, against scipy, cases worked by hand, and simulated nulls."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from varloss_bench import stats


def test_interval_worked_by_hand():
    # mean 2, sample standard deviation 1, standard error 1/sqrt(3), t quantile of 2 degrees of freedom 4.302653
    interval = stats.interval([1.0, 2.0, 3.0])
    assert interval.mean == 2.0
    assert interval.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert (interval.low, interval.high) == (2.0 - interval.half_width, 2.0 + interval.half_width)
    assert interval.count == 3


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
