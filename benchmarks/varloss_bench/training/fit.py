"""Trains a trial in this process, with Lightning."""

import dataclasses
import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.plugins.environments import LightningEnvironment  # type: ignore[attr-defined]
from torch import Tensor, nn

from varloss_bench.config import TrialConfig
from varloss_bench.data.types import Source, Split
from varloss_bench.training import augment, backbones, modules, timing
from varloss_bench.training.trained import Trained


def train(
    config: TrialConfig,
    split: Split,
    source: Source,
    report: Callable[[float], None],
    *,
    rank: int = 0,
    callbacks: Sequence[Callback] = (),
) -> Trained:
    """Train a trial, or this rank's part of one. With several ranks only rank 0 may continue with the evaluation.

    Args:
        config: The trial.
        split: Its training split.
        source: The data set.
        report: Called with the fraction done.
        rank: Which of `config.ranks` processes this is.
        callbacks: Lightning callbacks; an exception in one ends the trial.

    Raises:
        TrainingDivergedError: The loss became NaN or infinite.
    """
    module, loader, changed = build(config, split, source, rank)
    steps = config.total_steps(len(split))
    record = {
        "backbone_changed": changed,
        "parameters": sum(p.numel() for p in module.backbone.parameters()),
        "learning_rate": config.learning_rate,
        "steps": steps,
        "paired": _pairing_evidence(module.backbone, loader),
    }
    progress = _Progress(report)
    make_trainer(config, progress, callbacks=callbacks).fit(module, train_dataloaders=loader)
    if config.ranks > 1:
        # The ranks have finished; nothing after this may wait for another rank.
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    return Trained(
        encoder=module,
        split=loader.split,
        record={**record, "epoch_losses": module.epoch_losses},
        speed=lambda: timing.of_training(module, loader, config, steps, progress.seconds),
    )


def build(
    config: TrialConfig, train: Split, source: Source, rank: int = 0
) -> tuple[modules.ContrastiveModule, augment.TwoViewLoader, str]:
    """Module, loader and changes to the backbone. Initial weights depend on seed, backbone and method only."""
    device = config.device_of(rank)
    channels, height, width = source.images.shape[1:]
    torch.manual_seed(config.seed)
    backbone = backbones.build(config.backbone, (channels, height, width))
    module = modules.build_module(config, backbone, num_samples=len(train))
    module.to(memory_format=torch.channels_last)  # a sixth faster on CPUs; the preferred layout on GPUs
    loader = augment.TwoViewLoader(
        train.to(device),
        augment.build_augmentation(source).to(device),
        config.batch_size,
        config.seed,
        rank=rank,
        ranks=config.ranks,
    )
    return module, loader, backbone.changed


class _Progress(Callback):
    """Reports the finished fraction of the training after every epoch, and measures the seconds of its steps."""

    def __init__(self, report: Callable[[float], None]) -> None:
        self._report = report
        self._started = 0.0
        self.seconds = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds = time.perf_counter() - self._started

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._report(trainer.global_step / int(trainer.estimated_stepping_batches))


def make_trainer(
    config: TrialConfig,
    report: Callable[[float], None] | _Progress = lambda _: None,
    max_steps: int = -1,
    callbacks: Sequence[Callback] = (),
) -> Trainer:
    """A Trainer without features that cost time or write files; the harness stores results once, at the end.

    The processes of several ranks already exist (`ranks.py`). On GPUs they share BatchNorm statistics, so these equal those of
    one process. torch has no synchronised BatchNorm for CPUs; there each rank has the statistics of its own rows.
    """
    several = config.ranks > 1
    return Trainer(
        accelerator="gpu" if config.device == "cuda" else "cpu",
        devices=config.devices,
        num_nodes=config.nodes,
        strategy="ddp" if several and config.strategy == "auto" else config.strategy,
        sync_batchnorm=several and config.device == "cuda",
        precision=cast(Any, config.precision),
        # Set explicitly: inside a Slurm job Lightning would otherwise treat the job's tasks as ranks of this trial.
        plugins=[LightningEnvironment()],
        max_epochs=-1 if config.steps else config.epochs,
        max_steps=config.steps if config.steps and max_steps < 0 else max_steps,
        callbacks=[report if isinstance(report, _Progress) else _Progress(report), *callbacks],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )


def _pairing_evidence(backbone: nn.Module, loader: augment.TwoViewLoader) -> dict[str, str]:
    """Digests of the initial backbone, the first epoch's order and its first batch: equal for all arms of a seed."""
    # The batch of all ranks, from a copy of the loader so that the loader's epoch counter does not advance.
    batch = next(iter(dataclasses.replace(loader, rank=0, ranks=1)))
    return {
        "initial_backbone": _digest(*backbone.state_dict().values()),
        "order": _digest(loader.order(0)),
        "first_batch": _digest(*batch),
    }


def _digest(*tensors: Tensor) -> str:
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()[:12]
