"""How to read the numbers of a sweep, and what they do not show."""

import math
from collections.abc import Sequence

from varloss_bench.config import TrialConfig
from varloss_bench.records import redraws
from varloss_bench.report.labels import capitalised
from varloss_bench.statistics.inference import LEVEL, POWER, spread_factors
from varloss_bench.statistics.summary import Row, Summary


def notes(summary: Summary, config: TrialConfig) -> list[str]:
    """One note a line."""
    trained = [row for row in summary.rows if row.arm.trained]
    lines = [
        f"{_length(config)} Metrics are read once, after the last epoch. "
        + ("Both views share one forward pass." if config.fused else "Each view has its own forward pass."),
        f"A seed redraws {redraws.enumerated(redraws.redraws(config))}. All arms (an arm is a method, batch size, temperature "
        f"and VRN weight) share them. {capitalised(redraws.over(config))}.",
        "Similarities are those of held-out images in evaluation mode, not of training batches.",
        *_planning(summary),
    ]
    above = [_above(untrained, trained) for untrained in summary.rows if not untrained.arm.trained]
    lines += [line for line in above if line]
    for row in trained:
        if row.diverged:
            lines.append(f"{row.arm.label()}: training became NaN or infinite for seeds {_list(row.diverged)}.")
        if row.crashed:
            lines.append(f"{row.arm.label()}: no result for seeds {_list(row.crashed)}; run the command again.")
    return lines


def _planning(summary: Summary) -> list[str]:
    """What the numbers of seeds needed are, and what the correction does not cover."""
    if not summary.comparisons:
        return []
    lines = []
    if any(c.seeds_needed(c.effect) for c in summary.comparisons):
        count = max(c.result.difference.count for c in summary.comparisons)
        low, high = spread_factors(count)
        lines.append(
            f"Seeds needed are for {POWER:.0%} power at the Bonferroni level {1 - LEVEL:.2g}/{len(summary.comparisons)}, "
            f"estimated from {count} paired seeds. The estimate is rough: the true number is {low:.2g} to {high:.2g} times "
            "as large (95% interval). Fewer comparisons need fewer seeds."
        )
    lines.append(
        "The correction covers one look at these comparisons. Adding seeds or arms until something is settled is a different "
        "experiment: fix their number first, or confirm with new seeds (--first-seed)."
    )
    return lines


def _length(config: TrialConfig) -> str:
    if config.equal == "steps":
        return f"Equal steps ({config.steps}), so smaller batches see less data."
    return f"Equal epochs ({config.epochs}), so smaller batches take more steps."


def _above(untrained: Row, trained: Sequence[Row]) -> str:
    """Whether every trained arm is above an untrained row on the few-label probe."""
    base = untrained.mean("few_label_probe")
    means = {row.arm: row.mean("few_label_probe") for row in trained}
    means = {arm: mean for arm, mean in means.items() if not math.isnan(mean)}
    if math.isnan(base) or not means:
        return ""
    below = [arm.label() for arm, mean in means.items() if mean <= base]
    if below:
        return f"Not above {untrained.arm.short_label()} ({base:.2f}) on the 10-label probe: {'; '.join(below)}."
    return f"On the 10-label probe every trained arm is above {untrained.arm.short_label()} ({base:.2f})."


def _list(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))
