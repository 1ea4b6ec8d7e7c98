"""All trials of a sweep, including the rows without training."""

import dataclasses
from collections.abc import Sequence
from typing import TypedDict

from varloss_bench.config import TrialConfig
from varloss_bench.methods import METHODS, untrained_methods

# For the raw-pixels row, images of a folder larger than the first side length are averaged to the second one. At 224 pixels
# the regression would have 150528 coefficients per class, and its input for ImageNet-100 (126700 images) would be 76 GB.
LARGEST_RAW_SIDE, POOLED_RAW_SIDE = 64, 32


class Axes(TypedDict):
    """The arms of a sweep, as arguments of `grid`."""

    methods: Sequence[str]
    batch_sizes: Sequence[int]
    weights: Sequence[float]
    temperatures: Sequence[float]
    control_temperatures: Sequence[float]


def grid(
    base: TrialConfig,
    *,
    methods: Sequence[str],
    batch_sizes: Sequence[int],
    weights: Sequence[float],
    temperatures: Sequence[float],
    control_temperatures: Sequence[float],
    seeds: Sequence[int],
) -> list[TrialConfig]:
    """All trials of a sweep: methods x batch sizes x temperatures x weights, the controls, the untrained rows.

    Weight 0 is always included as the baseline. The control temperatures run at weight 0 only. The order is by seed, so an
    interrupted sweep has complete seeds to compare.
    """
    weights = sorted({0.0, *weights})
    arms = [
        (method, batch_size, temperature, weight)
        for method in methods
        for batch_size in batch_sizes
        for temperature, arm_weights in [
            *((temperature, weights) for temperature in temperatures),
            *((control, [0.0]) for control in control_temperatures if control not in temperatures),
        ]
        for weight in arm_weights
    ]
    trials: list[TrialConfig] = []
    for seed in seeds:
        trials += [untrained(base, name, seed) for name in untrained_methods()]
        for method, batch_size, temperature, weight in arms:
            trials.append(
                dataclasses.replace(
                    base, method=method, batch_size=batch_size, temperature=temperature, weight=weight, seed=seed
                ).canonical()
            )
    return list(dict.fromkeys(trials))


def untrained(base: TrialConfig, method: str, seed: int) -> TrialConfig:
    """A row without training. Options that do not affect it have fixed values, so sweeps share its result."""
    large = method == "raw-pixels" and (base.image_size or 0) > LARGEST_RAW_SIDE
    return TrialConfig(
        data=base.data,
        data_dir=base.data_dir,
        num_train=base.num_train,
        num_val=base.num_val,
        num_test=base.num_test,
        official_test=base.official_test,
        image_size=base.image_size,
        method=method,
        seed=seed,
        backbone=base.backbone if METHODS[method].own_backbone else "small",
        framework=base.framework if METHODS[method].own_backbone else "lightly",
        epochs=0,
        evaluate_on=base.evaluate_on,
        device=base.device,
        raw_pixels_side=POOLED_RAW_SIDE if large else None,
    )
