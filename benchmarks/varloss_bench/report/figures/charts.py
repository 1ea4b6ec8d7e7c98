"""The numbers of the figures over arms: means, and gains with VRN, with the ends of their axes."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import get_args

import numpy as np

from varloss_bench.config import Arm, TrialConfig
from varloss_bench.measures import ACCURACIES, METRICS
from varloss_bench.report.figures.style import Look, base_dashes, weight_colours
from varloss_bench.report.labels import equal_words
from varloss_bench.statistics.best import SCORE
from varloss_bench.statistics.inference import Failure, Interval
from varloss_bench.statistics.summary import Comparison, Summary

# Gains more than this many times the median gain do not set the scale, unless they are within these percentage points.
_OUTLIER, _NO_OUTLIER = 4.0, 2.0
_MOST = 100.4  # per cent: the interval of a few seeds may reach beyond 100
# With more weights than this, gains over the control temperatures cannot be read; the table of comparisons has them.
_MAX_WEIGHTS_WITH_CONTROLS = 3


@dataclass(frozen=True)
class Point:
    """An arm's value.

    Attributes:
        filled: Whether its marker is filled.
        failure: Of the arm. It is drawn as a cross: a collapsed arm has the smallest variance of all.
        base: The arm that a gain is over; None where the value is a mean.
    """

    arm: Arm
    value: Interval
    filled: bool
    failure: Failure | None = None
    base: Arm | None = None

    @property
    def control(self) -> float | None:
        """Temperature of the base if it is not the arm's own."""
        return self.base.temperature if self.base and self.base.temperature != self.arm.temperature else None


@dataclass(frozen=True)
class Chart:
    """Points of one method in one metric.

    Attributes:
        title: Heading of the panels.
        axis: Label of the value axis.
        ends: Of the value axis, equal in all panels, so that they can be compared by eye.
    """

    title: str
    axis: str
    points: tuple[Point, ...]
    ends: tuple[float, float]
    zero_line: bool = False


def look_of(summary: Summary, config: TrialConfig) -> Look:
    """The look that all figures of this summary share."""
    weights = [row.arm.weight for row in summary.rows if row.arm.trained]
    return Look(
        weight_colours(weights),
        base_dashes([c.base.temperature for c in summary.comparisons if c.against_control]),
        equal_words(config),
    )


def gain_metrics(summary: Summary) -> tuple[str, ...]:
    """All accuracies with a single batch size; over several batch sizes only the score can be read."""
    return (SCORE,) if len({row.arm.batch_size for row in summary.rows if row.arm.trained}) > 1 else ACCURACIES


def shows_controls(summary: Summary) -> bool:
    """Whether gains over the control temperatures are drawn."""
    return len({row.arm.weight for row in summary.rows if row.arm.weight}) <= _MAX_WEIGHTS_WITH_CONTROLS


def means(summary: Summary, method: str, metric: str) -> Chart:
    """Means over seeds of a method's arms; hollow without VRN."""
    points = tuple(
        Point(row.arm, row.interval(metric), bool(row.arm.weight), row.failure)
        for row in summary.rows
        if row.arm.method == method and row.values.get(metric)
    )
    percent = bool(METRICS[metric].unit)
    middles = [point.value.mean for point in points] or [0.0]
    # The interval of two seeds can be twelve times their spread. It may leave the axis; the means may not.
    reach = max(_NO_OUTLIER if percent else 0.0, 1.5 * (max(middles) - min(middles)))
    reached = [end for point in points for end in _reach(point.value)] or [0.0]
    low, high = max(min(reached), min(middles) - reach), min(max(reached), max(middles) + reach)
    margin = 0.05 * (high - low) or 1.0
    ends = (low - margin, min(high + margin, _MOST)) if percent else (0.0, high + margin)
    title = METRICS[metric].title
    return Chart(title, f"{title}, %" if percent else title, points, ends)


def gains(summary: Summary, method: str, metric: str) -> Chart:
    """Paired differences to arms without VRN; hollow unless settled. Comparisons with a failed arm are left out.

    The base has the same temperature, or is the tuned baseline, or is a control if the weights are few.
    """
    metrics = gain_metrics(summary)
    of_method = [
        c for c in summary.comparisons if c.treated.method == method and c.metric in metrics and _shown(summary, c)
    ]
    points = tuple(
        Point(c.treated, c.result.difference, c.verdict == "settled", base=c.base)
        for c in of_method
        if c.metric == metric
    )
    return Chart(METRICS[metric].title, "gain, percentage points", points, _gain_ends(of_method), zero_line=True)


def _shown(summary: Summary, comparison: Comparison) -> bool:
    if comparison.verdict in get_args(Failure) or not comparison.result.difference.count:
        return False
    return comparison.role != "control" or shows_controls(summary)


def _gain_ends(comparisons: Sequence[Comparison]) -> tuple[float, float]:
    """One outlier does not compress all others; it becomes an arrow at the edge."""
    values = [c.result.difference for c in comparisons]
    most = max(_NO_OUTLIER, _OUTLIER * median([abs(value.mean) for value in values] or [0.0]))
    reached = [end for value in values for end in _reach(value) if abs(value.mean) <= most] + [0.0]
    low, high = max(min(reached), -most), min(max(reached), most)
    margin = 0.08 * (high - low) or 1.0
    return low - margin, high + margin


def _reach(value: Interval) -> tuple[float, float]:
    half_width = float(np.nan_to_num(value.half_width))
    return value.mean - half_width, value.mean + half_width
