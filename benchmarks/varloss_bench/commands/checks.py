"""What can be known to fail before anything runs."""

import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from varloss_bench.config import (
    EVALUATION_SPLITS,
    FRAMEWORKS,
    LR_RULES,
    MAX_EPOCHS,
    PRECISIONS,
    STRATEGIES,
    VRN_AGAINST,
    TrialConfig,
    queue_length,
)
from varloss_bench.measures import FEW_LABELS
from varloss_bench.messages import counted
from varloss_bench.methods import (
    METHODS,
    NEGATIVES,
    methods_with_negatives,
    methods_with_queue,
    trained_methods,
)

if TYPE_CHECKING:
    from varloss_bench.execution.cluster import Cluster

# Imported by the workers only; their absence must show before two processes have been started for nothing.
_WORKER_PACKAGES = (
    "filelock",
    "kornia",
    "lightly",
    "matplotlib",
    "pytorch_lightning",
    "scipy",
    "sklearn",
    "torchvision",
    "yaml",
)
# By the report at the end of a sweep.
_REPORT_PACKAGES = ("jinja2", "pandas", "pyarrow")


def check_installed(*more: str) -> None:
    """Raise `ModuleNotFoundError` for the first package that a sweep, or a command with needs of its own, would miss."""
    for package in (*_WORKER_PACKAGES, *_REPORT_PACKAGES, *more):
        if find_spec(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)


def check_methods(methods: Sequence[str]) -> None:
    """Raise `ValueError` for a method that cannot be asked for.

    Before the grid is made: afterwards an untrained row that was asked for looks like one that belongs to every sweep.
    """
    for method in methods:
        _one_of("--method", method, trained_methods())


def check_choices(base: TrialConfig, methods: Sequence[str]) -> None:
    """Raise `ValueError` for a choice that one of the methods does not have: it would be compared without it.

    Before the grid is made, which drops what makes no difference to a trial.
    """
    _one_of("--framework", base.framework, tuple(FRAMEWORKS))
    if base.negatives is not None:
        _one_of("--negatives", base.negatives, NEGATIVES)
        for method in methods:
            row = METHODS[method]
            if not row.negatives_can_be_chosen:
                own = row.negatives_fixed or "its loss has no such choice"
                raise ValueError(
                    f"--negatives {base.negatives} does not go with {method}: {own}. It is for "
                    f"{', '.join(methods_with_negatives())}"
                )
    _one_of("--vrn-against", base.vrn_against, VRN_AGAINST)
    if base.vrn_against == "queue" and not set(methods) <= set(methods_with_queue()):
        raise ValueError(
            f"--vrn-against queue goes with --method {', '.join(methods_with_queue())} only: nothing else has a queue, "
            f"got {', '.join(methods)}"
        )
    _one_of("--precision", base.precision, PRECISIONS)
    if base.precision == "16-mixed" and base.device == "cpu":
        raise ValueError("--precision 16-mixed needs a CUDA device; on a CPU there is bf16-mixed")
    _check_ranks(base)


def _check_ranks(base: TrialConfig) -> None:
    import torch  # noqa: PLC0415

    for option, value in (("--devices", base.devices), ("--nodes", base.nodes)):
        if value < 1:
            raise ValueError(f"{option} must be at least 1, got {value}")
    _one_of("--strategy", base.strategy, STRATEGIES)
    if base.ranks == 1 and base.strategy != "auto":
        raise ValueError(f"--strategy {base.strategy} is for several ranks; ask for them with --devices or --nodes")
    if base.ranks > 1 and not torch.distributed.is_available():
        raise ValueError(f"{base.ranks} ranks were asked for, but this build of torch has no distributed support")


def check_trials(trials: Sequence[TrialConfig]) -> None:
    """Raise `ValueError` for a trial that could not run; what was given and what is allowed is in the message.

    Loads the data set and builds the backbone once: a missing file or an unknown model is no surprise of the first hour.
    """
    from varloss_bench.data import sets as data  # noqa: PLC0415  (torch)
    from varloss_bench.training import backbones  # noqa: PLC0415  (torch)

    for trial in trials:
        if trial.arm.trained:
            _check_values(trial)
    first = next(trial for trial in trials if trial.arm.trained)
    source = data.load(first.data, first.data_dir, **data.options_of(first))
    for split, size in (("val", source.sizes[1]), ("test", source.sizes[2])):
        # `--select` reads both, so looking at the first trial only would not do.
        if size < 2 and any(trial.evaluate_on == split for trial in trials):
            raise ValueError(f"there is nothing to evaluate on: the {split} split has fewer than 2 samples, got {size}")
    if bool((source.labels == source.labels[0]).all()):
        raise ValueError(f"{first.data} has a single class; probes need two")
    for seed in dict.fromkeys(trial.seed for trial in trials):
        data.check_labels(source, seed, FEW_LABELS)
    for trial in trials:
        if trial.arm.trained and not 2 <= trial.batch_size <= source.sizes[0]:
            raise ValueError(
                f"--batch-size must be from 2 to the {source.sizes[0]} training samples of {first.data}, "
                f"got {trial.batch_size}"
            )
        if trial.arm.trained and (trial.batch_size % trial.ranks or trial.batch_size < 2 * trial.ranks):
            raise ValueError(
                f"--batch-size is that of all {trial.ranks} ranks and must be a multiple of {trial.ranks} with at least 2 "
                f"samples for each, got {trial.batch_size}"
            )
        # Augmentations of solo-learn are its own.
        ours = trial.arm.trained and trial.framework != "solo"
        if ours and (passes := trial.passes(source.sizes[0])) > MAX_EPOCHS:
            raise ValueError(
                f"--epochs, or those that --steps make, must be at most {MAX_EPOCHS}, got {passes}: later ones would share "
                "their augmentations with the evaluation and with the next seed"
            )
        if METHODS[trial.method].momentum_queue:
            queue_length(trial.queue_size, source.sizes[0])
    if first.framework == "solo":
        _check_solo([trial for trial in trials if trial.arm.trained], source.sizes[0])
        return
    channels, height, width = source.images.shape[1:]
    backbones.build(first.backbone, (channels, height, width))


def _check_solo(trained: Sequence[TrialConfig], num_train: int) -> None:
    """What solo-learn is asked for, then whether it is there: the second takes seconds."""
    from varloss_bench.training.solo import config as solo_config  # noqa: PLC0415
    from varloss_bench.training.solo import install as solo_install  # noqa: PLC0415

    for trial in trained:
        solo_config.check(trial, num_train)
    solo_install.SoloLearn.from_variables().check()


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


def check_cluster(kind: str | None, slurm: str, base: TrialConfig) -> "Cluster | None":
    """Where jobs go, or None for workers of our own. Raise `ValueError` where it cannot be as asked for."""
    if kind is None:
        if slurm:
            raise ValueError(f"--slurm goes with --cluster slurm, got --slurm {slurm!r} alone")
        _check_gpus(base)
        if base.nodes > 1:
            raise ValueError(
                f"--nodes {base.nodes} needs --cluster slurm: nothing else starts processes on other machines"
            )
        return None
    if find_spec("submitit") is None:
        raise ModuleNotFoundError("No module named 'submitit'", name="submitit")
    from varloss_bench.execution.cluster import Cluster, parse_slurm  # noqa: PLC0415

    if kind == "local":
        _check_gpus(base)
    if base.nodes > 1 and kind != "slurm":
        raise ValueError(f"--nodes {base.nodes} needs --cluster slurm, got --cluster {kind}")
    return Cluster(kind, parse_slurm(slurm) if slurm else {})


def _check_gpus(base: TrialConfig) -> None:
    import torch  # noqa: PLC0415

    if base.device == "cuda" and base.devices > torch.cuda.device_count():
        raise ValueError(f"--devices {base.devices}: this machine has {torch.cuda.device_count()} CUDA devices")


def check_fresh(folder: Path) -> None:
    """Raise `ValueError` where results lie already: they are neither mixed with nor deleted."""
    found = sum(1 for _ in folder.glob("trials/*.json"))
    if found:
        raise ValueError(
            f"--fresh: {folder} holds {counted(found, 'trial')} already. Name another folder (--name, --output) or move this one away; "
            "without --fresh what it holds is kept and only what is missing is run"
        )


def _one_of(option: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{option} must be one of {', '.join(allowed)}, got {value!r}")


def _check_values(trial: TrialConfig) -> None:
    def within(option: str, value: float, holds: bool, allowed: str) -> None:
        if not (math.isfinite(value) and holds):
            finite = "" if math.isfinite(value) else "a finite number "
            raise ValueError(f"{option} must be {finite}{allowed}, got {value:g}")

    _one_of("--lr-rule", trial.lr_rule, LR_RULES)
    _one_of("--evaluate-on", trial.evaluate_on, EVALUATION_SPLITS)
    within("--temperature", trial.temperature, trial.temperature > 0, "greater than 0")
    within("--weight", trial.weight, trial.weight >= 0, "at least 0")
    if not trial.steps:
        within("--epochs", trial.epochs, trial.epochs >= 1, "at least 1")
    within("--steps", trial.steps, trial.steps >= 0, "at least 1")
    within("--warmup", trial.warmup, 0 <= trial.warmup < 1, "from 0 to below 1")
    within("--weight-decay", trial.weight_decay, trial.weight_decay >= 0, "at least 0")
    within("--hidden-dim", trial.hidden_dim, trial.hidden_dim >= 1, "at least 1")
    within("--output-dim", trial.output_dim, trial.output_dim >= 2, "at least 2")
    within("--base-lr", trial.base_lr, trial.base_lr > 0, "greater than 0")
    within("--weight-warmup", trial.weight_warmup, 0 <= trial.weight_warmup <= 1, "from 0 to 1")
    within("--queue-size", trial.queue_size, trial.queue_size >= 0, "at least 0")
    within("--key-momentum", trial.key_momentum, 0 <= trial.key_momentum < 1, "from 0 to below 1")
    # `augment.epoch_seed` leaves room for epochs and blocks below torch's 2^63.
    within("--first-seed", trial.seed, 0 <= trial.seed < 10**10, "from 0 to below 10^10")
