"""The numbers of the figures: which points they have, which are filled, and the ends of the axes."""

import dataclasses

import pytest
from support.sweeps import BASE, PLAIN, VRN, change, in_memory, summarise

from varloss_bench.config import Arm
from varloss_bench.report.figures.charts import gain_metrics, gains, means

CONTROL = Arm("simclr", 16, 0.2, 0.0)


def test_gains_are_differences_filled_where_they_are_settled():
    found = summarise(*in_memory(effect={"few_label_probe": 1.0}))
    chart = gains(found, "simclr", "few_label_probe")
    assert [(point.arm, point.base, point.control) for point in chart.points] == [
        (VRN, PLAIN, None),
        (VRN, CONTROL, 0.2),
    ]
    for point, base in zip(chart.points, (PLAIN, CONTROL), strict=True):
        difference = found.row(VRN).mean("few_label_probe") - found.row(base).mean("few_label_probe")
        assert point.value.mean == pytest.approx(difference)
        assert point.filled
    assert not any(point.filled for point in gains(found, "simclr", "knn").points)
    # One scale for all accuracies.
    assert chart.ends == gains(found, "simclr", "knn").ends


def test_gains_of_failed_arms_are_left_out():
    trials, records = in_memory()
    change(trials, records, CONTROL, 0, collapsed=True)
    assert [point.base for point in gains(summarise(trials, records), "simclr", "knn").points] == [PLAIN]


@pytest.mark.parametrize(("weights", "controls"), [((1.0, 3.0, 10.0), 3), ((1.0, 3.0, 10.0, 30.0), 0)])
def test_controls_are_drawn_where_the_weights_are_few(weights, controls):
    chart = gains(summarise(*in_memory(weights=weights)), "simclr", "knn")
    assert [point.control is not None for point in chart.points].count(True) == controls


def test_a_tuned_baseline_is_drawn_however_many_weights_there_are():
    found = summarise(*in_memory(weights=(1.0, 3.0, 10.0, 30.0)))
    tuned = [dataclasses.replace(c, role="tuned baseline") for c in found.comparisons]
    chart = gains(dataclasses.replace(found, comparisons=tuple(tuned)), "simclr", "knn")
    assert len(chart.points) == 8


def test_several_batch_sizes_show_the_score_only():
    assert gain_metrics(summarise(*in_memory())) == ("few_label_probe", "linear_probe", "knn", "projection_knn")
    assert gain_metrics(summarise(*in_memory(batch_sizes=(16, 64)))) == ("few_label_probe",)


@pytest.mark.parametrize(
    ("gain", "reaches"),
    [(3.5, True), (5.0, False), (-20.0, False)],
)
def test_a_gain_of_more_than_four_times_the_median_does_not_set_the_scale(gain, reaches):
    """The other gains are 1 point."""
    trials, records = in_memory(batch_sizes=(16, 64, 256), weights=(1.0, 3.0), effect={"few_label_probe": 1.0})
    for seed in range(4):
        change(trials, records, VRN, seed, metrics={**BASE, "few_label_probe": 95.0 + gain + seed / 1000})
    low, high = gains(summarise(trials, records), "simclr", "few_label_probe").ends
    assert (low <= gain <= high) is reaches
    assert -1 < low < 0
    assert 1 < high < 4


def test_gains_within_two_points_set_the_scale():
    trials, records = in_memory(batch_sizes=(16, 64, 256), weights=(1.0, 3.0))
    for seed in range(4):
        change(trials, records, VRN, seed, metrics={**BASE, "few_label_probe": 96.9 + seed / 1000})
    assert gains(summarise(trials, records), "simclr", "few_label_probe").ends[1] > 1.9


def test_means_are_hollow_without_vrn_and_carry_the_failure():
    trials, records = in_memory()
    change(trials, records, VRN, 0, collapsed=True)
    chart = means(summarise(trials, records), "simclr", "negative_variance")
    assert {point.arm: (point.filled, point.failure) for point in chart.points} == {
        PLAIN: (False, None),
        VRN: (True, "collapsed"),
        CONTROL: (False, None),
    }
    assert chart.ends[0] == 0.0
    assert chart.ends[1] > max(point.value.mean for point in chart.points)
