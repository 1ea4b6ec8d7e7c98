"""Checks that fail before anything runs."""

from collections.abc import Collection, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from varloss_bench.config import MAX_EPOCHS, TrialConfig, queue_length
from varloss_bench.data import loading
from varloss_bench.measures import FEW_LABELS
from varloss_bench.messages import counted
from varloss_bench.methods import METHODS, methods_with_negatives, methods_with_queue
from varloss_bench.options import check
from varloss_bench.training import backbones
from varloss_bench.training.solo import config as solo_config
from varloss_bench.training.solo import install as solo_install

if TYPE_CHECKING:
    from varloss_bench.execution.cluster import Cluster

# Only the workers import these. Their absence must be found before processes start.
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
# The report at the end of a sweep imports these.
_REPORT_PACKAGES = ("jinja2", "pandas", "pyarrow")


def check_installed(*more: str) -> None:
    """Raise `ModuleNotFoundError` for the first missing package that a sweep, or the command (`more`), needs."""
    for package in (*_WORKER_PACKAGES, *_REPORT_PACKAGES, *more):
        if find_spec(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)


def check_unused(trial: TrialConfig, names: Collection[str], why: str) -> None:
    """Raise `ValueError` if one of these fields is not at its default, because it would silently have no effect."""
    default = TrialConfig()
    given = sorted(name for name in names if getattr(trial, name) != getattr(default, name))
    if given:
        raise ValueError(f"{', '.join(given)} of the trial: {why}")


def check_choices(base: TrialConfig, methods: Sequence[str]) -> None:
    """Raise `ValueError` for an option that one of the methods does not have; the method would be compared without it.

    This must run before the grid is made, because the grid resets options that have no effect on a trial.
    """
    if base.negatives is not None:
        for method in methods:
            row = METHODS[method]
            if not row.negatives_can_be_chosen:
                own = row.negatives_fixed or "its loss has no such option"
                raise ValueError(
                    f"--negatives {base.negatives} is not possible for {method}: {own}. It is for "
                    f"{', '.join(methods_with_negatives())}"
                )
    if base.vrn_against == "queue" and not set(methods) <= set(methods_with_queue()):
        raise ValueError(
            f"--vrn-against queue is only for --method {', '.join(methods_with_queue())}: other methods have no queue, "
            f"got {', '.join(methods)}"
        )
    if base.precision == "16-mixed" and base.device == "cpu":
        raise ValueError("--precision 16-mixed needs a CUDA device; use bf16-mixed on a CPU")
    _check_ranks(base)


def _check_ranks(base: TrialConfig) -> None:
    if base.ranks == 1 and base.strategy != "auto":
        raise ValueError(f"--strategy {base.strategy} is for several ranks; set --devices or --nodes")
    if base.ranks > 1 and not torch.distributed.is_available():
        raise ValueError(f"{base.ranks} ranks need distributed support, which this build of torch lacks")


def check_trials(trials: Sequence[TrialConfig]) -> None:
    """Raise `ValueError` for a trial that cannot run; the message has the given and the allowed values.

    It loads the data set and builds the backbone once, so a missing file or an unknown model is found before the first trial.
    """
    for trial in trials:
        if trial.arm.trained:
            check(trial)
    first = next(trial for trial in trials if trial.arm.trained)
    source = loading.load(first.data, first.data_dir, **loading.options_of(first))
    for split, size in (("val", source.sizes[1]), ("test", source.sizes[2])):
        # All trials are checked, because `--select` uses both splits.
        if size < 2 and any(trial.evaluate_on == split for trial in trials):
            raise ValueError(f"there is nothing to evaluate on: the {split} split has fewer than 2 samples, got {size}")
    if bool((source.labels == source.labels[0]).all()):
        raise ValueError(f"{first.data} has a single class; probes need two")
    for seed in dict.fromkeys(trial.seed for trial in trials):
        loading.check_labels(source, seed, FEW_LABELS)
    for trial in trials:
        if trial.arm.trained and not 2 <= trial.batch_size <= source.sizes[0]:
            raise ValueError(
                f"--batch-size must be from 2 to the {source.sizes[0]} training samples of {first.data}, "
                f"got {trial.batch_size}"
            )
        if trial.arm.trained and (trial.batch_size % trial.ranks or trial.batch_size < 2 * trial.ranks):
            raise ValueError(
                f"--batch-size is over all {trial.ranks} ranks and must be a multiple of {trial.ranks} with at least 2 "
                f"samples for each, got {trial.batch_size}"
            )
        # solo-learn has its own augmentations, without this limit.
        ours = trial.arm.trained and trial.framework != "solo"
        if ours and (passes := trial.passes(source.sizes[0])) > MAX_EPOCHS:
            raise ValueError(
                f"--epochs, or the epochs that --steps needs, must be at most {MAX_EPOCHS}, got {passes}: later ones would share "
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
    """Check the options for solo-learn first, then its installation, which takes seconds."""
    for trial in trained:
        solo_config.check(trial, num_train)
    solo_install.SoloLearn.from_variables().check()


def check_seeds(seeds: int, *, interval: bool) -> None:
    """Raise `ValueError` for too few seeds."""
    if interval and seeds < 2:
        raise ValueError(f"an interval needs at least 2 seeds, got --seeds {seeds}; --no-interval accepts 1")
    if seeds < 1:
        raise ValueError(f"--seeds must be at least 1, got {seeds}")


def check_folder(folder: Path) -> None:
    """Make the folder of the results. Raise `ValueError` if that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"results cannot be kept in {folder}: {error}") from error


def check_cluster(kind: str | None, slurm: str, base: TrialConfig) -> "Cluster | None":
    """The queue for jobs, or None for worker processes. Raise `ValueError` if the options are not possible."""
    if kind is None and slurm:
        raise ValueError(f"--slurm requires --cluster slurm, got --slurm {slurm!r} alone")
    if kind != "slurm":
        _check_gpus(base)
        if base.nodes > 1:
            alternative = (
                "only a cluster starts processes on other machines" if kind is None else f"got --cluster {kind}"
            )
            raise ValueError(f"--nodes {base.nodes} needs --cluster slurm: {alternative}")
    if kind is None:
        return None
    # Imported here, because submitit belongs to an extra that only clusters need.
    cluster = import_module("varloss_bench.execution.cluster")
    made: Cluster = cluster.Cluster(kind, cluster.parse_slurm(slurm) if slurm else {})
    return made


def _check_gpus(base: TrialConfig) -> None:
    if base.device == "cuda" and base.devices > torch.cuda.device_count():
        raise ValueError(f"--devices {base.devices}: this machine has {torch.cuda.device_count()} CUDA devices")


def check_fresh(folder: Path) -> None:
    """Raise `ValueError` if the folder has results; they are neither mixed with new ones nor deleted."""
    found = sum(1 for _ in folder.glob("trials/*.json"))
    if found:
        raise ValueError(
            f"--fresh: {folder} already has {counted(found, 'trial')}. Name another folder (--name, --output) or move this one away; "
            "without --fresh its trials are kept and only missing trials run"
        )
