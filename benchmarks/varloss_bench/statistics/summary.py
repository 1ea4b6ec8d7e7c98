"""From records to rows and comparisons: the numbers that table, figure and JSON summary show."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from varloss_bench.config import Arm, TrialConfig
from varloss_bench.measures import ACCURACIES, METRICS
from varloss_bench.statistics import inference

# The metrics that are compared. Holm's correction is over the comparisons in all of them.
COMPARED = (*ACCURACIES, "negative_variance")
# The effect for which the number of seeds needed is reported: percentage points of an accuracy; for a metric without unit,
# a fraction of the base arm's mean.
EFFECT_POINTS, EFFECT_FRACTION = 0.5, 0.1

Role = Literal["same temperature", "control", "tuned baseline"]


class Pair(NamedTuple):
    """Two arms that are compared, and the role of the second one."""

    treated: Arm
    base: Arm
    role: Role


def grid_pairs(configs: Sequence[TrialConfig], control_temperatures: Collection[float]) -> list[Pair]:
    """`grid_pairs_of` the arms of these trials."""
    return grid_pairs_of(list(dict.fromkeys(config.arm for config in configs)), control_temperatures)


def grid_pairs_of(arms: Sequence[Arm], control_temperatures: Collection[float]) -> list[Pair]:
    """The pairs of a grid: each arm with VRN against the same arm without VRN, then against every control.

    A control is the same method and batch size without VRN at another of the control temperatures. VRN may have been run
    at that temperature too.
    """
    pairs = []
    for arm in (arm for arm in arms if arm.weight):
        plain = replace(arm, weight=0.0)
        pairs += [Pair(arm, base, "same temperature") for base in arms if base == plain]
        pairs += [
            Pair(arm, base, "control")
            for base in arms
            if base.temperature != arm.temperature
            and base.temperature in control_temperatures
            and base == replace(plain, temperature=base.temperature)
        ]
    return pairs


@dataclass(frozen=True)
class Row:
    """An arm with all its seeds.

    Attributes:
        values: Metric -> seed -> value, of finished trials.
        diverged: Seeds whose training became NaN or infinite.
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
    def failure(self) -> inference.Failure | None:
        """The failure of any seed of the arm."""
        if self.diverged:
            return "diverged"
        if self.collapsed:
            return "collapsed"
        # A trial may crash because of its arm (memory, overflow), so the remaining seeds are a biased sample.
        return "crashed" if self.crashed else None

    def interval(self, metric: str) -> inference.Interval:
        """Mean and interval of a metric over the finished seeds."""
        return inference.interval(list(self.values.get(metric, {}).values()))

    def mean(self, metric: str) -> float:
        """Mean of a metric over the finished seeds, NaN where there is none."""
        values = self.values.get(metric, {}).values()
        return sum(values) / len(values) if values else math.nan


@dataclass(frozen=True)
class Comparison:
    """One metric of one arm against its base arm.

    Attributes:
        role: The role of the base.
        family: Number of comparisons that share the correction.
        effect: The effect, in the metric's unit, for which the number of seeds needed is reported; NaN if there is none.
    """

    treated: Arm
    base: Arm
    role: Role
    metric: str
    result: inference.Paired
    adjusted_p: float
    verdict: inference.Verdict
    family: int
    effect: float

    def seeds_needed(self, effect: float, *, alone: bool = False) -> inference.SeedsNeeded | None:
        """The number of seeds that settles this effect with 80% power: in its family, or `alone` as the only comparison.

        None if no test was possible (a failed arm), or if there are too few seeds to estimate the standard deviation.
        """
        if math.isnan(self.result.p_value):
            return None
        return inference.seeds_needed(self.result.difference, effect, comparisons=1 if alone else self.family)

    @property
    def against_control(self) -> bool:
        """Whether the base has another temperature than the treated arm."""
        return self.treated.temperature != self.base.temperature


@dataclass(frozen=True)
class Summary:
    """The rows and comparisons of a sweep, complete or not."""

    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...]
    seeds: tuple[int, ...]

    def row(self, arm: Arm) -> Row:
        """The row of an arm."""
        return next(row for row in self.rows if row.arm == arm)


def summarise(
    configs: Sequence[TrialConfig],
    records: Mapping[str, Mapping[str, Any]],
    pairs: Sequence[Pair],
    *,
    effect_points: float = EFFECT_POINTS,
) -> Summary:
    """Group the records by arm and compare the pairs in every metric of `COMPARED`; all comparisons are one family.

    An arm with a collapsed, diverged or crashed seed is excluded: its comparisons have this failure as their verdict and
    no p-value. They stay members of the family, so the size of the family does not depend on the results.

    Args:
        configs: The trials of the sweep.
        records: The records that exist, by key.
        pairs: The pairs to compare, fixed before any result is seen.
        effect_points: The accuracy difference for which the number of seeds needed is reported; it changes no verdict.
    """
    arms = list(dict.fromkeys(config.arm for config in configs))
    rows = [_row(arm, [c for c in configs if c.arm == arm], records) for arm in arms]
    comparisons = compare_rows(rows, pairs, effect_points=effect_points)
    return Summary(tuple(rows), comparisons, tuple(dict.fromkeys(config.seed for config in configs)))


def compare_rows(
    rows: Sequence[Row], pairs: Sequence[Pair], *, effect_points: float = EFFECT_POINTS
) -> tuple[Comparison, ...]:
    """Paired t tests, Holm's correction over all of them, and verdicts."""
    by_arm = {row.arm: row for row in rows}
    tests = []
    for pair in pairs:
        treated, base = by_arm[pair.treated], by_arm[pair.base]
        failure = treated.failure or base.failure
        for metric in COMPARED:
            result = inference.paired(treated.values.get(metric, {}), base.values.get(metric, {}))
            # The remaining seeds of a failed arm are a biased sample; their p-value means nothing.
            tests.append((pair, metric, replace(result, p_value=math.nan) if failure else result, failure))
    adjusted = inference.holm([result.p_value for _, _, result, _ in tests])
    return tuple(
        Comparison(
            pair.treated,
            pair.base,
            pair.role,
            metric,
            result,
            p,
            inference.verdict(result, p, failure),
            len(tests),
            effect_points if METRICS[metric].unit else EFFECT_FRACTION * by_arm[pair.base].mean(metric),
        )
        for (pair, metric, result, failure), p in zip(tests, adjusted, strict=True)
    )


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
    """The summary as plain values; NaN becomes None."""
    return {
        "seeds": list(summary.seeds),
        "comparisons_in_family": len(summary.comparisons),
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
                "base_is": c.role,
                "metric": c.metric,
                "difference": _interval(c.result.difference),
                "p_value": _number(c.result.p_value),
                "p_value_holm": _number(c.adjusted_p),
                "verdict": c.verdict,
                "seeds_needed": _seeds_needed(c),
            }
            for c in summary.comparisons
        ],
    }


def _seeds_needed(comparison: Comparison) -> dict[str, Any]:
    """For the stated and the observed effect: in the family, and as the only comparison."""
    effects = {"stated": comparison.effect, "observed": abs(comparison.result.difference.mean)}
    found = {}
    for name, effect in effects.items():
        needed = comparison.seeds_needed(effect)
        alone = comparison.seeds_needed(effect, alone=True)
        found[name] = (
            needed
            and alone
            and {
                "effect": effect,
                "seeds": needed.seeds,
                "range95": [needed.low, needed.high],
                "as_only_comparison": alone.seeds,
            }
        )
    return found


def _interval(value: inference.Interval) -> dict[str, Any]:
    return {"mean": _number(value.mean), "ci95": _number(value.half_width), "seeds": value.count}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
