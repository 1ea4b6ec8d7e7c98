"""What can be known to fail before anything runs."""

import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from varloss_bench.config import CONTRASTIVE, EVALUATION_SPLITS, LR_RULES, UNTRAINED, TrialConfig, queue_length

# Imported by the workers only; their absence must show before two processes have been started for nothing.
_WORKER_PACKAGES = ("kornia", "lightly", "matplotlib", "pytorch_lightning", "scipy", "sklearn", "torchvision")


def check_installed() -> None:
    """Raise `ModuleNotFoundError` for the first package that a sweep would miss."""
    for package in _WORKER_PACKAGES:
        if find_spec(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)


def check_methods(methods: Sequence[str]) -> None:
    """Raise `ValueError` for a method that cannot be asked for.

    Before the grid is made: afterwards an untrained row that was asked for looks like one that belongs to every sweep.
    """
    for method in methods:
        _one_of("--method", method, CONTRASTIVE)


def check_trials(trials: Sequence[TrialConfig]) -> None:
    """Raise `ValueError` for a trial that could not run; what was given and what is allowed is in the message.

    Loads the data set and builds the backbone once: a missing file or an unknown model is no surprise of the first hour.
    """
    from varloss_bench import backbones, data  # noqa: PLC0415  (torch)

    for trial in trials:
        if trial.method not in UNTRAINED:
            _check_values(trial)
    first = next(trial for trial in trials if trial.arm.trained)
    source = data.load(first.data, first.data_dir)
    available, wanted = len(source.labels), sum(source.sizes)
    if available < wanted:
        raise ValueError(f"{first.data} has {available} samples, its splits need {wanted}")
    if bool((source.labels == source.labels[0]).all()):
        raise ValueError(f"{first.data} has a single class; probes need two")
    for trial in trials:
        if trial.arm.trained and not 2 <= trial.batch_size <= source.sizes[0]:
            raise ValueError(
                f"--batch-size must be from 2 to the {source.sizes[0]} training samples of {first.data}, "
                f"got {trial.batch_size}"
            )
        if trial.method == "moco":
            queue_length(trial.queue_size, source.sizes[0])
    channels, height, width = source.images.shape[1:]
    backbones.build(first.backbone, (channels, height, width))


def check_run(*, seeds: int, interval: bool, workers: int, folder: Path | None) -> None:
    """Raise `ValueError` for what concerns the run and not its trials."""
    if interval and seeds < 2:
        raise ValueError(f"an interval needs at least 2 seeds, got --seeds {seeds}; --no-interval accepts 1")
    if seeds < 1:
        raise ValueError(f"--seeds must be at least 1, got {seeds}")
    if workers < 1:
        raise ValueError(f"--workers must be at least 1, got {workers}")
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"results cannot be kept in {folder}: {error}") from error


def _one_of(option: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{option} must be one of {', '.join(allowed)}, got {value!r}")


def _check_values(trial: TrialConfig) -> None:
    def within(option: str, value: float, holds: bool, allowed: str) -> None:
        if not (math.isfinite(value) and holds):
            raise ValueError(f"{option} must be {allowed}, got {value:g}")

    _one_of("--lr-rule", trial.lr_rule, LR_RULES)
    _one_of("--evaluate-on", trial.evaluate_on, EVALUATION_SPLITS)
    within("--temperature", trial.temperature, trial.temperature > 0, "greater than 0")
    within("--weight", trial.weight, trial.weight >= 0, "at least 0")
    within("--epochs", trial.epochs, trial.epochs >= 1, "at least 1")
    within("--base-lr", trial.base_lr, trial.base_lr > 0, "greater than 0")
    within("--weight-warmup", trial.weight_warmup, 0 <= trial.weight_warmup <= 1, "from 0 to 1")
    within("--queue-size", trial.queue_size, trial.queue_size >= 0, "at least 0")
    within("--key-momentum", trial.key_momentum, 0 <= trial.key_momentum < 1, "from 0 to below 1")
    within("--seeds (the first)", trial.seed, trial.seed >= 0, "at least 0")
