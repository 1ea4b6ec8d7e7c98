"""How fast trials trained, in words."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from varloss_bench.config import Arm, TrialConfig


def in_words(trials: Sequence[TrialConfig], records: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One line per arm: median throughput and median share of the loss, over the seeds whose records have them."""
    lines = []
    for arm in dict.fromkeys(trial.arm for trial in trials if trial.arm.trained):
        timings = [
            record["timing"]
            for trial in trials
            if trial.arm == arm and (record := records.get(trial.key())) and isinstance(record.get("timing"), dict)
        ]
        if timings:
            lines.append(f"  {_line(arm, timings)}")
    return ["Speed (each image counted once; medians over seeds):", *lines] if lines else []


def _line(arm: Arm, timings: Sequence[Mapping[str, float]]) -> str:
    speed = median(timing["images_per_second"] for timing in timings)
    shares = [timing["loss_share"] for timing in timings if "loss_share" in timing]
    augmented = [found["augmented_images_per_second"] for found in timings if "augmented_images_per_second" in found]
    return (
        f"{arm.label()}: {speed:.0f} images/s"
        + (f", loss {median(shares):.1%} of a step" if shares else "")
        + (f", augmentation alone {median(augmented):.0f} images/s" if augmented else "")
    )
