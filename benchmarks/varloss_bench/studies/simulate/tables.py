"""Sweeps whose truth is known, simulated at the level of the table: counts of correct images, and a variance.

They have the properties of real tables that a normal distribution lacks. Accuracies are counts on one test set that all arms of
a seed share; they are close to 100% and have ties. The metrics of one net are correlated. The split of a seed is easy or hard
for all arms.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from varloss_bench.config import Arm
from varloss_bench.statistics.summary import COMPARED, Pair, Row, grid_pairs_of

TEST_IMAGES = 500
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Accuracy:
    """The model of one accuracy. The values in `MODEL` reproduce the means and spreads of `results/digits-default`.

    Attributes:
        hard: Share of the test images that some arms misclassify; all others are correct in every arm.
        right: Probability that a hard image is classified correctly.
        draws: Labelled subsets that the accuracy is the mean of; each has hard images of its own.
        own: Standard deviation, in logits, of the part specific to the net and this metric.
    """

    hard: float
    right: float
    draws: int
    own: float


MODEL = {
    "few_label_probe": Accuracy(hard=0.085, right=0.58, draws=5, own=0.1),
    "linear_probe": Accuracy(hard=0.022, right=0.70, draws=1, own=0.1),
    "knn": Accuracy(hard=0.028, right=0.38, draws=1, own=0.1),
    "projection_knn": Accuracy(hard=0.030, right=0.34, draws=1, own=0.1),
}
# Standard deviations: how hard a seed's test images are (log share), how good a net is for all metrics (logits), log variance.
SEED, NET, VARIANCE = 0.25, 0.2, 0.03
VARIANCE_LEVEL = 0.13
# The effect of VRN on the variance where one is planted: that of weight 3 on digits.
VARIANCE_EFFECT = -0.055


@dataclass(frozen=True)
class Family:
    """The arms and pairs of one sweep."""

    name: str
    arms: tuple[Arm, ...]
    pairs: tuple[Pair, ...]

    @property
    def comparisons(self) -> int:
        """Size of the family that the correction runs over."""
        return len(self.pairs) * len(COMPARED)


def family(name: str, methods: Sequence[str], batch_sizes: Sequence[int], weights: Sequence[float]) -> Family:
    """The arms of a `compare` at temperature 0.5 with the control at 0.2, and its pairs."""
    arms = tuple(
        Arm(method, batch_size, temperature, weight)
        for method in methods
        for batch_size in batch_sizes
        for temperature, weight in [(0.5, 0.0), *((0.5, weight) for weight in weights), (0.2, 0.0)]
    )
    return Family(name, arms, tuple(grid_pairs_of(arms, (0.2,))))


FAMILIES = (
    family("one method", ["simclr"], [16], [3.0]),
    family("default of compare", ["simclr", "moco"], [16], [3.0]),
    family("grid", ["simclr", "moco"], [16, 64, 256], [1.0, 3.0, 10.0]),
)


def draw(
    arms: Sequence[Arm],
    sweeps: int,
    seeds: int,
    rng: np.random.Generator,
    *,
    points: float = 0.0,
    variance: float = 0.0,
    test_images: int = TEST_IMAGES,
) -> Values:
    """Metrics (sweeps, arms, seeds, metrics of `COMPARED`) of arms that differ only in the planted effects.

    Args:
        arms: Arms with a weight have the planted effects.
        sweeps: Independent repetitions.
        seeds: Seeds of each.
        rng: The source of all randomness.
        points: Percentage points that VRN adds to the few-label probe, on average.
        variance: What VRN adds to the variance of the negatives.
        test_images: Size of the test set; the smaller, the coarser the steps and the more ties.
    """
    shape = (sweeps, len(arms), seeds)
    with_vrn = np.array([bool(arm.weight) for arm in arms])[None, :, None]
    split = SEED * rng.normal(size=(sweeps, 1, seeds))  # shared by all arms
    net = NET * rng.normal(size=shape)
    values = np.empty((*shape, len(COMPARED)))
    for at, metric in enumerate(COMPARED[:-1]):
        model = MODEL[metric]
        wanted = model.right + with_vrn * (points / 100 / model.hard if metric == "few_label_probe" else 0.0)
        ability = np.log(wanted / (1 - wanted)) + net + model.own * rng.normal(size=shape)
        right = np.zeros(shape)
        for _ in range(model.draws):
            hard = rng.binomial(test_images, np.minimum(1.0, model.hard * np.exp(split)))
            right += test_images - hard + rng.binomial(hard, 1 / (1 + np.exp(-ability)))
        values[..., at] = 100 * right / (test_images * model.draws)
    values[..., -1] = VARIANCE_LEVEL * np.exp(VARIANCE * rng.normal(size=shape)) + with_vrn * variance
    return values


def rows(arms: Sequence[Arm], values: Values) -> list[Row]:
    """The rows of one sweep, from its values (arms, seeds, metrics): what `summary.compare_rows` takes."""
    return [
        Row(
            arm,
            {metric: dict(enumerate(of_arm[:, at].tolist())) for at, metric in enumerate(COMPARED)},
            (),
            (),
            (),
            0.0,
        )
        for arm, of_arm in zip(arms, values, strict=True)
    ]


def looks_like(values: Values) -> dict[str, tuple[float, float]]:
    """Mean, and standard deviation of a paired difference of two arms, by metric: for comparison with real records.

    Args:
        values: (arms, seeds, metrics), or with leading axes.
    """
    of_arm = values - values.mean(axis=-2, keepdims=True)
    residuals = of_arm - of_arm.mean(axis=-3, keepdims=True)
    num_arms, seeds = values.shape[-3:-1]
    of_differences = 2 * (residuals**2).sum(axis=(-3, -2)) / ((num_arms - 1) * (seeds - 1))
    return {
        metric: (float(values[..., at].mean()), float(np.sqrt(of_differences[..., at].mean())))
        for at, metric in enumerate(COMPARED)
    }
