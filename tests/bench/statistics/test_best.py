"""The best arms of a method and batch size, against values worked out by hand."""

import math

import pytest

from varloss_bench.config import Arm
from varloss_bench.statistics.best import best_pair, best_row
from varloss_bench.statistics.summary import Row, Summary


def row(temperature: float, weight: float, scores: list[float], *, method="simclr", batch_size=16, collapsed=()) -> Row:
    values = {"few_label_probe": dict(enumerate(scores)), "knn": {seed: 100 - s for seed, s in enumerate(scores)}}
    return Row(Arm(method, batch_size, temperature, weight), values, (), (), collapsed, 0.0)


ROWS = (
    row(0.5, 0.0, [90, 91, 92]), row(0.2, 0.0, [92, 92, 92.5]), row(0.1, 0.0, [99, 99, 99], collapsed=(1,)),
    row(0.5, 1.0, [93, 95, 94]), row(0.5, 3.0, [93, 93, 93]), row(0.5, 9.0, [98, 98, 98], method="moco"),
    row(0.5, 9.0, [98, 98, 98], batch_size=64),
)  # fmt: skip
SUMMARY = Summary(ROWS, (), (0, 1, 2))


def test_the_highest_mean_score_of_an_arm_without_a_failure():
    assert best_row(SUMMARY, "simclr", 16, with_vrn=False) == ROWS[1]
    assert best_row(SUMMARY, "simclr", 16, with_vrn=True) == ROWS[3]
    assert best_row(SUMMARY, "dcl", 16, with_vrn=True) is None


def test_best_against_best_is_paired_by_seed():
    best = best_pair(SUMMARY, "simclr", 16)
    assert (best.treated, best.base) == (ROWS[3], ROWS[1])
    # Differences 1, 3, 1.5: mean 11/6, standard deviation sqrt(13/12), t quantile of 2 degrees of freedom 4.302653.
    assert best.difference.mean == pytest.approx(11 / 6)
    assert best.difference.half_width == pytest.approx(4.302653 * math.sqrt(13 / 12) / math.sqrt(3), rel=1e-6)


def test_without_either_side_there_is_no_pair():
    assert best_pair(SUMMARY, "moco", 16) is None
    assert best_pair(Summary((), (), ()), "simclr", 16) is None
