"""Verdicts in words, and the comparisons they are about, on records with known numbers."""

import math
import re
from dataclasses import replace

import pytest
from support.sweeps import BASE, PLAIN, VRN, change, in_memory, summarise

from varloss_bench.config import Arm
from varloss_bench.report.text import plain_text
from varloss_bench.report.verdict import comparison_lines, in_words, settled_lines, summary_lines
from varloss_bench.statistics import summary


def text_of(trials, records):
    return plain_text(summarise(trials, records), next(t for t in trials if t.arm.trained))


def test_compares_with_the_same_arm_and_with_the_control():
    trials, records = in_memory()
    result = summarise(trials, records)
    pairs = list(dict.fromkeys((c.treated, c.base) for c in result.comparisons if c.treated.method == "simclr"))
    assert pairs == [(VRN, PLAIN), (VRN, Arm("simclr", 16, 0.2, 0.0))]
    assert len(result.comparisons) == 2 * 2 * 5


def test_a_control_at_which_vrn_was_run_too_stays_a_rival():
    trials, records = in_memory(temperatures=(0.5, 0.2, 0.1))
    result = summarise(trials, records)
    pairs = {(c.treated, c.base.temperature) for c in result.comparisons if c.treated.method == "simclr"}
    at = {temperature: Arm("simclr", 16, temperature, 3.0) for temperature in (0.5, 0.2, 0.1)}
    # 0.5 and 0.1 are no controls, and 0.2 is its own base once, not twice.
    assert pairs == {(at[0.5], 0.5), (at[0.5], 0.2), (at[0.2], 0.2), (at[0.1], 0.1), (at[0.1], 0.2)}
    assert len(result.comparisons) == 2 * 5 * 5


def test_a_planted_effect_is_settled_and_nothing_else_is():
    trials, records = in_memory(effect={"few_label_probe": 1.0})
    result = summarise(trials, records)
    settled = {c.metric for c in result.comparisons if c.verdict == "settled"}
    assert settled == {"few_label_probe"}
    text = " ".join(text_of(trials, records).split())
    assert "linear probe, 10 labels per class: 1.00 points higher, settled at 4 seeds (95% interval" in text
    assert re.search(
        r"not settled at 4 seeds; in brackets the seeds that an effect of 0\.5 points needs: linear probe, all labels \(\d+\); "
        r"kNN, backbone \(\d+\)",
        text,
    )
    assert "On the 10-label probe every trained arm is above raw-pixels (90.00)." in text


def test_differences_have_the_right_sign_and_size():
    trials, records = in_memory(effect={"negative_variance": -0.1})
    comparison = next(
        c
        for c in summarise(trials, records).comparisons
        if c.metric == "negative_variance" and (c.treated, c.base) == (VRN, PLAIN)
    )
    assert comparison.result.difference.mean == pytest.approx(-0.1, abs=0.005)
    assert "0.10" in in_words(comparison)
    assert "lower" in in_words(comparison)


def test_a_collapsed_arm_wins_nothing():
    trials, records = in_memory(effect={"negative_variance": -0.17})
    change(trials, records, VRN, seed=2, collapsed=True)
    result = summarise(trials, records)
    assert {c.verdict for c in result.comparisons if c.treated == VRN} == {"collapsed"}
    assert "settled" in {c.verdict for c in result.comparisons if c.treated.method == "moco"}
    text = " ".join(text_of(trials, records).split())
    assert "no comparison: at least one seed of one arm collapsed" in text
    assert "(1 collapsed)" in text


def test_a_failed_arm_has_no_p_value_and_stays_in_the_family():
    """The tiny p-value of the remaining seeds must not be Holm's first step, which would make the next one easier."""
    trials, records = in_memory(effect={"negative_variance": -0.17, "few_label_probe": 0.006})
    change(trials, records, VRN, seed=2, collapsed=True)
    result = summarise(trials, records)
    failed = [c for c in result.comparisons if c.treated == VRN]
    assert all(math.isnan(c.result.p_value) and math.isnan(c.adjusted_p) for c in failed)
    tested = sorted(c.result.p_value for c in result.comparisons if c.treated != VRN)
    adjusted = sorted(c.adjusted_p for c in result.comparisons if c.treated != VRN)
    assert len(failed) == len(tested) == 10
    assert adjusted[0] == pytest.approx(20 * tested[0])
    stored = summary.to_dict(result)
    assert stored["comparisons_in_family"] == 20
    assert {c["p_value"] for c in stored["comparisons"] if c["verdict"] == "collapsed"} == {None}
    assert {c["seeds_needed"]["stated"] for c in stored["comparisons"] if c["verdict"] == "collapsed"} == {None}


def test_seeds_needed_are_those_of_the_spread_and_the_family():
    """Standard deviation 0.816, effect 0.5: the smallest n with scipy's power of 0.8, at 0.05 and at 0.05/20."""
    trials, records = in_memory()
    for seed, difference in enumerate((-1.0, 0.0, 0.0, 1.0)):
        change(trials, records, VRN, seed, metrics={**BASE, "few_label_probe": 95.0 + difference})
        change(trials, records, PLAIN, seed, metrics=BASE)
    comparison = next(c for c in summarise(trials, records).comparisons if (c.treated, c.base) == (VRN, PLAIN))
    assert comparison.seeds_needed(0.5, alone=True).seeds == 23
    assert comparison.seeds_needed(0.5).seeds == 45
    words = in_words(comparison)
    assert words == (
        "not settled at 4 seeds (95% interval -1.30 to +1.30); an effect of 0.5 points needs about 45 seeds"
    )
    stated = summary.to_dict(summarise(trials, records))["comparisons"][0]["seeds_needed"]["stated"]
    assert (stated["effect"], stated["seeds"], stated["as_only_comparison"]) == (0.5, 45, 23)
    other = next(c for c in summarise(trials, records, effect_points=1.0).comparisons if c.treated == VRN)
    assert "an effect of 1 point needs about 15 seeds" in in_words(other)


def test_the_base_of_a_pair_is_named_for_what_it_is():
    trials, records = in_memory(effect={"few_label_probe": 1.0})
    pairs = [summary.Pair(VRN, Arm("simclr", 16, 0.2, 0.0), "tuned baseline")]
    result = summary.summarise(trials, records, pairs)
    assert [c.metric for c in result.comparisons] == list(summary.COMPARED)
    assert comparison_lines(result)[0] == "SimCLR, B=16: t=0.5 + VRN 3 against the tuned baseline, t=0.2"
    assert {c["base_is"] for c in summary.to_dict(result)["comparisons"]} == {"tuned baseline"}


def test_survivors_of_a_diverged_arm_are_no_evidence():
    trials, records = in_memory(effect={"few_label_probe": 5.0})
    change(trials, records, PLAIN, seed=0, status="diverged", metrics={})
    result = summarise(trials, records)
    assert result.row(PLAIN).diverged == (0,)
    verdicts = {c.verdict for c in result.comparisons if (c.treated, c.base) == (VRN, PLAIN)}
    assert verdicts == {"diverged"}
    text = " ".join(text_of(trials, records).split())
    assert "training became NaN or infinite for seeds 0" in text
    assert "(3/4)" in text


@pytest.mark.parametrize("arm", [VRN, PLAIN])
def test_survivors_of_an_arm_with_a_crash_are_no_evidence(arm):
    trials, records = in_memory(effect={"few_label_probe": 5.0})
    change(trials, records, arm, seed=0, status="crashed", metrics={})
    result = summarise(trials, records)
    verdicts = {c.verdict for c in result.comparisons if (c.treated, c.base) == (VRN, PLAIN)}
    assert verdicts == {"crashed"}
    text = " ".join(text_of(trials, records).split())
    assert (
        "SimCLR, B=16: t=0.5 + VRN 3 against no VRN no comparison: at least one seed of one arm has no result" in text
    )
    assert "(3/4)" in text


def test_the_summary_counts_settled_comparisons_by_their_sign():
    """Two methods, each against the same temperature and the control: 4 comparisons a metric."""
    trials, records = in_memory(effect={"few_label_probe": 1.0, "knn": -1.0, "negative_variance": -0.1})
    definition = "Settled means significant at the 5% level after Holm's correction over all 20 comparisons."
    assert summary_lines(summarise(trials, records)) == [
        f"Accuracy: 4 of 16 comparisons are settled in favour of VRN and 4 against it, at 4 seeds. {definition}",
        "Variance of held-out negatives: settled lower with VRN in 4 of 4 comparisons.",
    ]
    trials, records = in_memory(effect={"negative_variance": 0.1})
    first, *_, last = summary_lines(summarise(trials, records))
    assert first == f"No difference in accuracy is settled at 4 seeds. {definition}"
    assert last == "Variance of held-out negatives: settled lower with VRN in 0 of 4 comparisons, settled higher in 4."


def test_the_summary_names_failures_and_hints():
    trials, records = in_memory(effect={"few_label_probe": 1.0, "knn": -1.0})
    change(trials, records, Arm("moco", 16, 0.5, 3.0), seed=0, collapsed=True)
    found = summarise(trials, records)
    hinted = [replace(c, verdict="suggestive") if c.verdict == "settled" else c for c in found.comparisons]
    lines = summary_lines(replace(found, comparisons=tuple(hinted)))
    assert lines[1] == (
        "Significant only without the correction: 4 comparisons of accuracy (2 in favour of VRN, 2 against it). This is a "
        "hint and not a result."
    )
    assert lines[-1] == (
        "Collapsed for at least one seed (mean similarity of negatives above 0.9); excluded from comparisons: 1 arm."
    )


def test_settled_differences_are_listed_with_the_largest_first():
    trials, records = in_memory(effect={"few_label_probe": 1.0, "knn": -2.0})
    lines = settled_lines(summarise(trials, records))
    assert len(lines) == 8
    assert [re.search(r"(\d\.\d\d) points (\w+)", line).groups() for line in lines[3:5]] == [
        ("2.00", "lower"),
        ("1.00", "higher"),
    ]
    assert lines[0].startswith(("SimCLR, B=16, t=0.5 + VRN 3 against ", "MoCo v2, B=16, t=0.5 + VRN 3 against "))
