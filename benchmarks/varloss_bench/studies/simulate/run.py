"""Estimate the false-positive rate and the power of the verdicts on sweeps whose truth is known."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from varloss_bench.statistics import inference, summary
from varloss_bench.statistics.summary import COMPARED, Comparison
from varloss_bench.studies.simulate import embeddings, tables

NULL_SEEDS, POWER_SEEDS, LOOKS = (4, 10), (4, 10, 20, 30), (4, 6, 8, 10)
EFFECTS = (0.25, 0.5, 1.0, 2.0)
# Sweeps for each point of a power curve, as a share of those for each false-positive rate; a power needs less precision.
POWER_SHARE = 0.25
COARSE_IMAGES = 100
EMBEDDING_SEEDS, EMBEDDING_GAINS = 4, (1.05, 1.1)
# The same share for embeddings, whose sweeps take half a second each.
PLANTED_SHARE = 0.3


@dataclass(frozen=True)
class Result:
    """One row: the share of sweeps that call something settled.

    Attributes:
        question: `"false positives"`, `"power"` or `"false positives, looking again"`.
        setting: What the sweeps are made of.
        family, comparisons: What one sweep compares.
        seeds: Seeds of a sweep; of its last look where there are several.
        effect: The planted effect in the unit that `setting` names; 0 without an effect.
        sweeps: Number of simulated sweeps.
        rate, low, high: Share of sweeps with its exact (Clopper-Pearson) 95% interval. For false positives: sweeps in which
            anything without an effect is settled. For power: sweeps in which the planted effect is settled with its sign.
        uncorrected: The same at 0.05 per comparison, without correction.
        predicted: Power of a t test at Holm's first step, from the spread of the model; None without a model.
    """

    question: str
    setting: str
    family: str
    comparisons: int
    seeds: int
    effect: float
    sweeps: int
    rate: float
    low: float
    high: float
    uncorrected: float
    predicted: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass
class Count:
    """Number of sweeps, of those with something settled, and of those with a p-value below 0.05."""

    sweeps: int = 0
    settled: int = 0
    uncorrected: int = 0

    def add(self, comparisons: Iterable[Comparison], sign: int = 0) -> None:
        """Count one sweep by the comparisons in question; with a sign only differences of that sign count."""
        of_sign = [c for c in comparisons if sign * c.result.difference.mean >= 0]
        self.sweeps += 1
        self.settled += any(c.verdict == "settled" for c in of_sign)
        self.uncorrected += any(c.result.p_value < 1 - inference.LEVEL for c in of_sign)

    def result(self, question: str, setting: str, family: str, comparisons: int, **more: Any) -> Result:
        """As a row."""
        interval = stats.binomtest(self.settled, self.sweeps).proportion_ci(0.95, method="exact")
        return Result(
            question,
            setting,
            family,
            comparisons,
            sweeps=self.sweeps,
            rate=self.settled / self.sweeps,
            low=float(interval.low),
            high=float(interval.high),
            uncorrected=self.uncorrected / self.sweeps,
            **more,
        )


def run_tables(sweeps: int, seed: int, report_progress: Callable[[str], None] = lambda _: None) -> Iterator[Result]:
    """All rows of tables: false positives, the same with several looks, power."""
    rng = np.random.default_rng(seed)
    settings: Sequence[tuple[str, dict[str, Any]]] = (
        ("no effect", {}),
        ("on the variance only", {"variance": tables.VARIANCE_EFFECT}),
        (f"no effect, {COARSE_IMAGES} images", {"test_images": COARSE_IMAGES}),
    )
    for family in tables.FAMILIES:
        for setting, planted in settings:
            for seeds in NULL_SEEDS:
                report_progress(f"false positives: {setting}, {family.name}, {seeds} seeds")
                yield false_positives(family, sweeps, seeds, rng, setting, **planted)
        report_progress(f"false positives, looking again: {family.name}")
        yield looking_again(family, sweeps, rng)
    few_sweeps = max(1, round(sweeps * POWER_SHARE))
    for family in tables.FAMILIES[:2]:
        for effect in EFFECTS:
            for seeds in POWER_SEEDS:
                report_progress(f"power: {effect:g} points, {family.name}, {seeds} seeds")
                yield power(family, few_sweeps, seeds, rng, effect)


def _compared(family: tables.Family, values: tables.Values) -> Iterator[tuple[Comparison, ...]]:
    """The comparisons of each sweep, by the code that judges real ones."""
    for of_sweep in values:
        yield summary.compare_rows(tables.rows(family.arms, of_sweep), family.pairs)


def false_positives(
    family: tables.Family, sweeps: int, seeds: int, rng: np.random.Generator, setting: str, **planted: Any
) -> Result:
    """How often a sweep calls something settled that has no effect."""
    count = Count()
    for comparisons in _compared(family, tables.draw(family.arms, sweeps, seeds, rng, **planted)):
        count.add(c for c in comparisons if not (planted.get("variance") and c.metric == "negative_variance"))
    return count.result("false positives", setting, family.name, family.comparisons, seeds=seeds, effect=0.0)


def looking_again(family: tables.Family, sweeps: int, rng: np.random.Generator) -> Result:
    """The same for a user who adds seeds until something is settled, and looks at each number of `LOOKS`."""
    count = Count()
    values = tables.draw(family.arms, sweeps, LOOKS[-1], rng)
    for of_looks in zip(*(_compared(family, values[:, :, :seeds]) for seeds in LOOKS), strict=True):
        count.add(comparison for comparisons in of_looks for comparison in comparisons)
    setting = f"no effect, {len(LOOKS)} looks"
    return count.result(
        "false positives, looking again", setting, family.name, family.comparisons, seeds=LOOKS[-1], effect=0.0
    )


def power(family: tables.Family, sweeps: int, seeds: int, rng: np.random.Generator, effect: float) -> Result:
    """How often an effect on the few-label probe is settled, in the first pair of the family."""
    count, metric = Count(), COMPARED[0]
    values = tables.draw(family.arms, sweeps, seeds, rng, points=effect)
    for comparisons in _compared(family, values):
        count.add(comparisons[:1], sign=1)
    treated, base = (family.arms.index(arm) for arm in family.pairs[0][:2])
    differences = values[:, treated, :, 0] - values[:, base, :, 0]
    standardised = float(differences.mean() / np.sqrt(differences.var(axis=1, ddof=1).mean()))
    predicted = inference.power(seeds, standardised, (1 - inference.LEVEL) / family.comparisons)
    return count.result(
        "power",
        f"points on {metric}",
        family.name,
        family.comparisons,
        seeds=seeds,
        effect=effect,
        predicted=predicted,
    )


def run_embeddings(
    sweeps: int, workers: int, report_progress: Callable[[str], None] = lambda _: None
) -> Iterator[Result]:
    """All rows of embeddings: one without an effect, and ones whose classes are farther apart with VRN."""
    for gain in (1.0, *EMBEDDING_GAINS):
        number = sweeps if gain == 1.0 else max(1, round(sweeps * PLANTED_SHARE))
        report_progress(f"embeddings: classes {gain:g} times as far apart, {number} sweeps")
        count, differences, family = Count(), [], 0
        for found in embeddings.sweeps(number, EMBEDDING_SEEDS, gain, workers):
            same_temperature = [c for c in found.comparisons if c.role == "same temperature"]
            probe = next(c for c in same_temperature if c.metric == COMPARED[0])
            differences.append(probe.result.difference.mean)
            family = len(found.comparisons)
            if gain == 1.0:
                count.add(found.comparisons)
            else:
                count.add([probe], sign=1)
        yield count.result(
            "false positives" if gain == 1.0 else "power",
            "embeddings, no effect" if gain == 1.0 else f"embeddings, {gain:g} x distance",
            "one method",
            family,
            seeds=EMBEDDING_SEEDS,
            effect=0.0 if gain == 1.0 else float(np.mean(differences)),
        )
