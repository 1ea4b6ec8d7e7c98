"""How splits, lengths and numbers are written in tables, figures and sentences; arms name themselves (`config.Arm`)."""

import math

from varloss_bench.config import TrialConfig
from varloss_bench.measures import Metric
from varloss_bench.records.redraws import redraws_test
from varloss_bench.statistics.inference import Interval


def weight_label(weight: float) -> str:
    """A VRN weight."""
    return f"VRN {weight:g}" if weight else "without VRN"


def format_interval(value: Interval, metric: Metric, signed: bool = False) -> str:
    """`96.40±0.52`; without an interval `96.40`, without a value `-`."""
    if math.isnan(value.mean):
        return "-"
    mean = f"{value.mean:{'+' if signed else ''}.{metric.digits}f}"
    return mean if math.isnan(value.half_width) else f"{mean}±{value.half_width:.{metric.digits}f}"


def capitalised(text: str) -> str:
    """The same with a capital first letter."""
    return text[:1].upper() + text[1:]


def backbone_label(config: TrialConfig) -> str:
    """The backbone."""
    return "3-convolution net" if config.backbone == "small" else config.backbone


def equal_words(config: TrialConfig) -> str:
    """The length that all trials share: equal epochs or equal steps. Every figure says it."""
    return f"equal steps ({config.steps})" if config.equal == "steps" else f"equal epochs ({config.epochs})"


def split_words(config: TrialConfig) -> str:
    """The split that the metrics are read on, and whether it is the one published with the data."""
    if config.evaluate_on == "val":
        return "validation split"
    if not config.official_test:
        return "test split"
    return {
        True: "part of the published test split",
        None: f"{config.num_test} published test images",  # all of them or a part
        False: "published test split",
    }[redraws_test(config)]
