"""From records to rows and comparisons: everything the table, the figure and the JSON summary show."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from varloss_bench import stats
from varloss_bench.config import Arm, TrialConfig
from varloss_bench.measures import ACCURACIES, METRICS

# Compared, and together the family that Holm's correction runs over.
COMPARED = (*ACCURACIES, "negative_variance")


@dataclass(frozen=True)
class Row:
    """An arm with all its seeds.

    Attributes:
        values: Metric -> seed -> value, of finished trials.
        diverged: Seeds whose training became NaN.
        crashed: Seeds without a result.
        collapsed: Seeds whose held-out negatives have mean similarity above the limit.
        seconds: Mean training time.
    """

    arm: Arm
    values: Mapping[str, Mapping[int, float]]
    diverged: tuple[int, ...]
    crashed: tuple[int, ...]
    collapsed: tuple[int, ...]
    seconds: float

    @property
    def failure(self) -> stats.Failure | None:
        """What went wrong in any seed of the arm."""
        if self.diverged:
            return "diverged"
        if self.collapsed:
            return "collapsed"
        # A trial may crash because of what it trains (memory, numbers out of range): its survivors are chosen, too.
        return "crashed" if self.crashed else None

    def interval(self, metric: str) -> stats.Interval:
        """Mean and interval of a metric over the finished seeds."""
        return stats.interval(list(self.values.get(metric, {}).values()))


@dataclass(frozen=True)
class Comparison:
    """One metric of one arm against its base arm."""

    treated: Arm
    base: Arm
    metric: str
    result: stats.Paired
    adjusted_p: float
    verdict: stats.Verdict

    @property
    def against_control(self) -> bool:
        """Whether the base is the same method at another temperature, and not the same arm without VRN."""
        return self.treated.temperature != self.base.temperature


@dataclass(frozen=True)
class Summary:
    """A sweep as far as it has got."""

    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...]
    seeds: tuple[int, ...]

    def row(self, arm: Arm) -> Row:
        """The row of an arm."""
        return next(row for row in self.rows if row.arm == arm)


def summarise(
    configs: Sequence[TrialConfig], records: Mapping[str, Mapping[str, Any]], control_temperatures: Collection[float]
) -> Summary:
    """Group records by arm and compare: each arm with VRN against the same arm without, and against every control.

    A control is the same method and batch size without VRN at another of the control temperatures, whether VRN was run
    at that one as well or not. An arm with a collapsed, diverged or crashed seed wins nothing: its comparisons
    say so.
    """
    arms = list(dict.fromkeys(config.arm for config in configs))
    rows = {arm: _row(arm, [c for c in configs if c.arm == arm], records) for arm in arms}
    pairs = [(arm, base) for arm in arms if arm.weight for base in _bases(arm, arms, control_temperatures)]
    tests = [
        (arm, base, metric, stats.paired(rows[arm].values.get(metric, {}), rows[base].values.get(metric, {})))
        for arm, base in pairs
        for metric in COMPARED
    ]
    adjusted = stats.holm([result.p_value for *_, result in tests])
    comparisons = tuple(
        Comparison(
            arm,
            base,
            metric,
            result,
            p,
            stats.verdict(result, p, rows[arm].failure or rows[base].failure),
        )
        for (arm, base, metric, result), p in zip(tests, adjusted, strict=True)
    )
    return Summary(tuple(rows.values()), comparisons, tuple(dict.fromkeys(config.seed for config in configs)))


def _bases(arm: Arm, arms: Sequence[Arm], control_temperatures: Collection[float]) -> list[Arm]:
    """The same arm without VRN first, then its controls."""
    alike = [a for a in arms if (a.method, a.batch_size, a.weight) == (arm.method, arm.batch_size, 0.0)]
    own = [a for a in alike if a.temperature == arm.temperature]
    return own + [a for a in alike if a.temperature != arm.temperature and a.temperature in control_temperatures]


def _row(arm: Arm, configs: Sequence[TrialConfig], records: Mapping[str, Mapping[str, Any]]) -> Row:
    values: dict[str, dict[int, float]] = {}
    diverged, crashed, collapsed, seconds = [], [], [], []
    for config in configs:
        record = records.get(config.key())
        if record is None or record["status"] == "crashed":
            crashed.append(config.seed)
            continue
        if record["status"] == "diverged":
            diverged.append(config.seed)
            continue
        if record["collapsed"]:
            collapsed.append(config.seed)
        seconds.append(record["seconds"]["train"])
        for metric, value in record["metrics"].items():
            values.setdefault(metric, {})[config.seed] = value
    mean_seconds = sum(seconds) / len(seconds) if seconds else math.nan
    return Row(arm, values, tuple(diverged), tuple(crashed), tuple(collapsed), mean_seconds)


def to_dict(summary: Summary) -> dict[str, Any]:
    """The summary as plain values; what could not be computed is None."""
    return {
        "seeds": list(summary.seeds),
        "rows": [
            {
                **vars(row.arm),
                "seeds_diverged": list(row.diverged),
                "seeds_without_result": list(row.crashed),
                "seeds_collapsed": list(row.collapsed),
                "metrics": {name: _interval(row.interval(name)) for name in METRICS if name in row.values},
            }
            for row in summary.rows
        ],
        "comparisons": [
            {
                "treated": vars(c.treated),
                "base": vars(c.base),
                "metric": c.metric,
                "difference": _interval(c.result.difference),
                "p_value": _number(c.result.p_value),
                "p_value_holm": _number(c.adjusted_p),
                "verdict": c.verdict,
            }
            for c in summary.comparisons
        ],
    }


def _interval(value: stats.Interval) -> dict[str, Any]:
    return {"mean": _number(value.mean), "ci95": _number(value.half_width), "seeds": value.count}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
