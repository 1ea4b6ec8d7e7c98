"""Rows, pairs and comparisons of a sweep, against values worked out by hand."""

import math

import pytest
from scipy import stats as scipy_stats

from varloss_bench.config import Arm, TrialConfig
from varloss_bench.measures import ACCURACIES, METRICS
from varloss_bench.statistics import summary
from varloss_bench.statistics.summary import Pair

PLAIN, TREATED = Arm("simclr", 16, 0.5, 0.0), Arm("simclr", 16, 0.5, 3.0)
CONTROL = Arm("simclr", 16, 0.2, 0.0)
PAIRS = [Pair(TREATED, PLAIN, "same temperature"), Pair(TREATED, CONTROL, "control")]
# Values of every metric by seed; differences to PLAIN are 1.2, -0.3, 0.9, 2.0 and to CONTROL 0.2, 0.4, 0.3, 0.5.
VALUES = {
    PLAIN: (90.0, 91.0, 89.0, 90.0),
    TREATED: (91.2, 90.7, 89.9, 92.0),
    CONTROL: (91.0, 90.3, 89.6, 91.5),
}


def p_value_of_4_seeds(t: float) -> float:
    """Two-sided, with 3 degrees of freedom, where Student's distribution has this closed form."""
    angle = math.atan(t / math.sqrt(3))
    return 1 - 2 / math.pi * (angle + math.sin(angle) * math.cos(angle))


# Standard errors of the mean difference: sqrt(2.73/3)/2 and sqrt(0.05/3)/2.
P_PLAIN = p_value_of_4_seeds(0.95 / math.sqrt(2.73 / 12))
P_CONTROL = p_value_of_4_seeds(0.35 / math.sqrt(0.05 / 12))


def config(arm: Arm, seed: int) -> TrialConfig:
    return TrialConfig(
        method=arm.method, batch_size=arm.batch_size, temperature=arm.temperature, weight=arm.weight, seed=seed
    )


def sweep(values=VALUES, **changes):
    """Trials and records of these arms; `changes` are keyed by (arm, seed)."""
    trials = [config(arm, seed) for seed in range(4) for arm in values]
    records = {}
    for arm, of_seeds in values.items():
        for seed, value in enumerate(of_seeds):
            record = {
                "status": "finished",
                "collapsed": False,
                "metrics": dict.fromkeys(summary.COMPARED, value),
                "seconds": {"train": 10.0 * (seed + 1)},
            }
            records[config(arm, seed).key()] = record | changes.get("records", {}).get((arm, seed), {})
    return trials, records


def summarise(changes=None, pairs=PAIRS, **options):
    trials, records = sweep(records=changes or {})
    return summary.summarise(trials, records, pairs, **options)


def test_a_row_holds_the_values_of_its_seeds():
    row = summarise().row(TREATED)
    assert row.values["knn"] == {0: 91.2, 1: 90.7, 2: 89.9, 3: 92.0}
    assert row.mean("knn") == pytest.approx(90.95)
    # Sample standard deviation sqrt((0.0625 + 0.0625 + 1.1025 + 1.1025) / 3), t quantile 3.182446.
    assert row.interval("knn").half_width == pytest.approx(3.182446 * math.sqrt(2.33 / 3) / 2, rel=1e-6)
    assert row.seconds == 25.0
    assert (row.diverged, row.crashed, row.collapsed, row.failure) == ((), (), (), None)
    assert math.isnan(row.mean("alignment"))


def test_rows_and_seeds_keep_the_order_of_the_trials():
    found = summarise()
    assert [row.arm for row in found.rows] == [PLAIN, TREATED, CONTROL]
    assert found.seeds == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("change", "field", "failure"),
    [
        ({"status": "diverged", "metrics": {}}, "diverged", "diverged"),
        ({"status": "crashed", "metrics": {}}, "crashed", "crashed"),
        ({"collapsed": True}, "collapsed", "collapsed"),
    ],
)
def test_a_failed_seed_fails_its_arm(change, field, failure):
    row = summarise({(PLAIN, 2): change}).row(PLAIN)
    assert getattr(row, field) == (2,)
    assert row.failure == failure
    assert sorted(row.values["knn"]) == ([0, 1, 2, 3] if failure == "collapsed" else [0, 1, 3])
    # Seconds are those of the seeds that have metrics: 10, 20, 30, 40 without the third.
    assert row.seconds == pytest.approx(25.0 if failure == "collapsed" else 70 / 3)


def test_a_trial_without_a_record_is_a_crashed_one():
    trials, records = sweep()
    del records[config(PLAIN, 1).key()]
    assert summary.summarise(trials, records, []).row(PLAIN).crashed == (1,)


def test_the_first_failure_in_the_order_diverged_collapsed_crashed_is_named():
    both = {(PLAIN, 0): {"collapsed": True}, (PLAIN, 1): {"status": "diverged"}, (PLAIN, 2): {"status": "crashed"}}
    assert summarise(both).row(PLAIN).failure == "diverged"
    del both[PLAIN, 1]
    assert summarise(both).row(PLAIN).failure == "collapsed"


def test_a_row_without_any_seed_has_no_seconds():
    crashed = {(PLAIN, seed): {"status": "crashed"} for seed in range(4)}
    assert math.isnan(summarise(crashed).row(PLAIN).seconds)


def test_comparisons_are_paired_tests_in_five_metrics_and_one_family():
    comparisons = summarise().comparisons
    assert [(c.base, c.role, c.metric) for c in comparisons] == [
        (base, role, metric)
        for base, role in ((PLAIN, "same temperature"), (CONTROL, "control"))
        for metric in ("few_label_probe", "linear_probe", "knn", "projection_knn", "negative_variance")
    ]
    assert {c.family for c in comparisons} == {10}
    first, last = comparisons[0], comparisons[-1]
    assert first.result.difference.mean == pytest.approx(0.95)
    assert last.result.difference.mean == pytest.approx(0.35)
    assert first.result.p_value == pytest.approx(P_PLAIN, rel=1e-6)
    assert last.result.p_value == pytest.approx(P_CONTROL, rel=1e-6)
    # Holm: five p-values of 0.0123 times 10 to 6, made monotone; then five of 0.140 times 5 to 1.
    assert [c.adjusted_p for c in comparisons[5:]] == pytest.approx([10 * P_CONTROL] * 5, rel=1e-6)
    assert [c.adjusted_p for c in comparisons[:5]] == pytest.approx([5 * P_PLAIN] * 5, rel=1e-6)
    assert {c.verdict for c in comparisons[:5]} == {"open"}
    assert {c.verdict for c in comparisons[5:]} == {"suggestive"}
    assert [c.against_control for c in comparisons] == [False] * 5 + [True] * 5


def test_a_single_comparison_needs_less_correction():
    """The same differences in a family of 5 instead of 10."""
    comparisons = summarise(pairs=PAIRS[1:]).comparisons
    assert [c.adjusted_p for c in comparisons] == pytest.approx([5 * P_CONTROL] * 5, rel=1e-6)


@pytest.mark.parametrize("arm", [PLAIN, TREATED])
@pytest.mark.parametrize("change", [{"collapsed": True}, {"status": "crashed"}, {"status": "diverged"}])
def test_a_failure_of_either_arm_is_the_verdict_and_leaves_no_p_value(arm, change):
    comparisons = summarise({(arm, 3): change}).comparisons
    failed = [c for c in comparisons if arm in (c.treated, c.base)]
    assert {c.verdict for c in failed} == {change.get("status", "collapsed")}
    assert all(math.isnan(c.result.p_value) and math.isnan(c.adjusted_p) for c in failed)
    assert all(c.seeds_needed(0.5) is None for c in failed)
    # The others stay in a family of 10.
    assert [c.adjusted_p for c in comparisons if c not in failed] == pytest.approx(
        [10 * P_CONTROL] * (10 - len(failed)), rel=1e-6
    )


def test_the_effect_is_half_a_point_or_a_tenth_of_the_variance():
    effects = {c.metric: c.effect for c in summarise().comparisons[:5]}
    assert [effects[name] for name in ACCURACIES] == [0.5] * 4
    assert effects["negative_variance"] == pytest.approx(9.0)  # a tenth of the base's mean, 90
    assert summarise(effect_points=0.25).comparisons[0].effect == 0.25
    assert summarise(effect_points=0.25).comparisons[4].effect == pytest.approx(9.0)


def test_seeds_needed_are_for_the_family_or_alone():
    """The smallest n with scipy's noncentral t power of 0.8 at the level 0.05/10, and at 0.05."""
    comparison = summarise().comparisons[0]
    spread = math.sqrt(2.73 / 3)

    def enough(level: float) -> int:
        for n in range(2, 1000):
            limit, shift = scipy_stats.t.isf(level / 2, n - 1), 2.0 / spread * math.sqrt(n)
            if scipy_stats.nct.sf(limit, n - 1, shift) >= 0.8:
                return n
        raise AssertionError

    assert comparison.seeds_needed(2.0).seeds == enough(0.05 / 10)
    assert comparison.seeds_needed(2.0, alone=True).seeds == enough(0.05)


def test_pairs_of_a_grid():
    """Against the same temperature first, then against each control at another temperature, whether VRN ran there or not."""
    arms = [
        Arm(method, 16, temperature, weight)
        for method in ("simclr", "moco")
        for temperature, weight in ((0.5, 0.0), (0.5, 1.0), (0.2, 0.0), (0.2, 1.0), (0.1, 0.0))
    ]
    pairs = summary.grid_pairs_of(arms, [0.2, 0.1])
    expected = []
    for method in ("simclr", "moco"):
        hot, cold = Arm(method, 16, 0.5, 1.0), Arm(method, 16, 0.2, 1.0)
        plain = {t: Arm(method, 16, t, 0.0) for t in (0.5, 0.2, 0.1)}
        expected += [
            Pair(hot, plain[0.5], "same temperature"),
            Pair(hot, plain[0.2], "control"),
            Pair(hot, plain[0.1], "control"),
            Pair(cold, plain[0.2], "same temperature"),
            Pair(cold, plain[0.1], "control"),
        ]
    assert pairs == expected
    trials = [config(arm, seed) for seed in range(2) for arm in arms]
    assert summary.grid_pairs(trials, [0.2, 0.1]) == expected


def test_pairs_stay_within_a_batch_size():
    arms = [Arm("simclr", size, 0.5, weight) for size in (16, 64) for weight in (0.0, 3.0)]
    assert {(p.treated.batch_size, p.base.batch_size) for p in summary.grid_pairs_of(arms, [])} == {(16, 16), (64, 64)}


def test_plain_values_of_a_summary():
    stored = summary.to_dict(summarise({(CONTROL, 0): {"collapsed": True}}))
    assert stored["seeds"] == [0, 1, 2, 3]
    assert stored["comparisons_in_family"] == 10
    treated = stored["rows"][1]
    assert (treated["method"], treated["weight"]) == ("simclr", 3.0)
    assert treated["metrics"]["knn"] == {
        "mean": pytest.approx(90.95),
        "ci95": pytest.approx(3.182446 * math.sqrt(2.33 / 3) / 2, rel=1e-6),
        "seeds": 4,
    }
    assert list(treated["metrics"]) == [name for name in METRICS if name in summary.COMPARED]
    assert stored["rows"][2]["seeds_collapsed"] == [0]
    first, failed = stored["comparisons"][0], stored["comparisons"][5]
    assert first["p_value"] == pytest.approx(P_PLAIN, rel=1e-6)
    assert first["p_value_holm"] == 1.0  # 10 times the p-value is above 1
    assert first["seeds_needed"]["stated"]["effect"] == 0.5
    assert first["seeds_needed"]["observed"]["effect"] == pytest.approx(0.95)
    low, high = first["seeds_needed"]["stated"]["range95"]
    assert low < first["seeds_needed"]["stated"]["seeds"] < high
    assert first["seeds_needed"]["stated"]["as_only_comparison"] < first["seeds_needed"]["stated"]["seeds"]
    assert failed["verdict"] == "collapsed"
    assert failed["p_value"] is None
    assert failed["seeds_needed"] == {"stated": None, "observed": None}
    assert failed["base_is"] == "control"
