"""One trial: build, train, evaluate, and the record of it."""

import dataclasses
import hashlib
import logging
import time
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from varloss_bench import augment, backbones, data, evaluate, methods
from varloss_bench.config import COLLAPSE_MEAN, TrialConfig

load_source = lru_cache(maxsize=1)(data.load)


def quieten() -> None:
    """Silence Lightning's remarks on devices and loaders: once per trial they would bury the progress. Errors still show."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")


class _Progress(Callback):
    """Tells how much of the training is done, after every epoch."""

    def __init__(self, report: Callable[[float], None]) -> None:
        self._report = report

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._report((trainer.current_epoch + 1) / (trainer.max_epochs or 1))


def make_trainer(config: TrialConfig, report: Callable[[float], None], max_steps: int = -1) -> Trainer:
    """A Trainer without anything that costs time or writes files: results are kept by us, once, at the end."""
    return Trainer(
        accelerator="gpu" if config.device == "cuda" else "cpu",
        devices=1,
        max_epochs=config.epochs,
        max_steps=max_steps,
        callbacks=[_Progress(report)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )


def build(
    config: TrialConfig, splits: data.Splits, source: data.Source
) -> tuple[methods.ContrastiveModule, augment.TwoViewLoader, str]:
    """Module, loader and what was changed in the backbone. Initial weights depend on seed, backbone and method only."""
    device = torch.device(config.device)
    channels, height, width = source.images.shape[1:]
    torch.manual_seed(config.seed)
    backbone = backbones.build(config.backbone, (channels, height, width))
    module = methods.build_method(config, backbone, num_samples=len(splits.train))
    module.to(memory_format=torch.channels_last)  # a sixth faster on CPUs, the layout of choice on GPUs
    loader = augment.TwoViewLoader(
        splits.train.to(device), augment.build_augmentation(source).to(device), config.batch_size, config.seed
    )
    return module, loader, backbone.changed


def run_trial(config: TrialConfig, report: Callable[[float], None] = lambda _: None) -> dict[str, Any]:
    """Run a trial and return what is to be stored of it, plain values only.

    Args:
        config: What to run.
        report: Called with the fraction done.

    Raises:
        methods.TrainingDivergedError: The loss became NaN or infinite, or the trained net's outputs are.
    """
    torch.use_deterministic_algorithms(config.device == "cpu")
    source = load_source(config.data, config.data_dir)
    splits = data.split(source, config.seed)
    held_out = splits.test if config.evaluate_on == "test" else splits.val
    outcome: dict[str, Any] = {"num_train": len(splits.train), "num_evaluated": len(held_out)}
    started = time.perf_counter()
    if not config.arm.trained:
        train_features, held_out_features = _untrained_features(config, source, splits.train, held_out)
        trained = started
        metrics: dict[str, float] = {}
    else:
        module, loader, changed = build(config, splits, source)
        outcome |= {
            "backbone_changed": changed,
            "parameters": sum(p.numel() for p in module.backbone.parameters()),
            "learning_rate": config.learning_rate,
            "steps": number_of_steps(config),
            "paired": _pairing_evidence(module.backbone, loader),
        }
        make_trainer(config, report).fit(module, train_dataloaders=loader)
        trained = time.perf_counter()
        outcome["epoch_losses"] = module.epoch_losses
        device = torch.device(config.device)
        module = module.to(device)
        train_split, held_out = splits.train.to(device), held_out.to(device)
        train_features = evaluate.encode(module.backbone, train_split.images)
        held_out_features = evaluate.encode(module.backbone, held_out.images)
        for features in (train_features, held_out_features):
            _require_finite(features, "features")
            _require_finite(evaluate.encode(module.head, features), "projections")
        metrics, outcome["drawn"] = evaluate.projection_metrics(module, source, train_split, held_out, config.seed)
    metrics |= evaluate.feature_metrics(
        train_features.cpu(), held_out_features.cpu(), splits.train, _cpu(held_out), config.seed
    )
    outcome["metrics"] = metrics
    outcome["collapsed"] = bool(metrics.get("negative_mean", 0.0) > COLLAPSE_MEAN)
    outcome["seconds"] = {"train": trained - started, "evaluate": time.perf_counter() - trained}
    return outcome


def _require_finite(outputs: Tensor, name: str) -> None:
    """What the last step did to the weights is in no loss: without this look it would count as a crash, and run again."""
    if not outputs.isfinite().all():
        raise methods.TrainingDivergedError(f"{name} after the last step are not finite")


def number_of_steps(config: TrialConfig) -> int:
    """Optimiser steps of a trial."""
    return load_source(config.data, config.data_dir).sizes[0] // config.batch_size * config.epochs


def measure_evaluation_seconds(config: TrialConfig) -> float:
    """Seconds that probes and kNN take on this data and backbone, measured on the random-init row."""
    untrained = dataclasses.replace(config, method="random-init", epochs=0, weight=0.0)
    return float(run_trial(untrained)["seconds"]["evaluate"])


def measure_step_seconds(config: TrialConfig, short: int = 5, long: int = 35) -> float:
    """Seconds per training step, measured on this machine now: the difference of two short runs through the Trainer.

    A difference, because what a run costs before its first step would otherwise count as part of every step.
    """
    source = load_source(config.data, config.data_dir)
    splits = data.split(source, config.seed)
    endless = dataclasses.replace(config, epochs=long)
    seconds = {}
    for steps in (short, short, long):  # the first one pays for lazy imports and allocation, and is overwritten
        module, loader, _changed = build(endless, splits, source)
        trainer = make_trainer(endless, lambda _: None, max_steps=steps)
        started = time.perf_counter()
        trainer.fit(module, train_dataloaders=loader)
        seconds[steps] = time.perf_counter() - started
    return max(0.0, seconds[long] - seconds[short]) / (long - short)


def _untrained_features(
    config: TrialConfig, source: data.Source, train: data.Split, held_out: data.Split
) -> tuple[Tensor, Tensor]:
    """Pixels, or features of the freshly drawn backbone with BatchNorm statistics taken from the training images.

    Without the latter BatchNorm would pass its input on unscaled, a weaker baseline than a random net can be.
    """
    if config.method == "raw-pixels":
        return train.images.flatten(1), held_out.images.flatten(1)
    torch.manual_seed(config.seed)
    channels, height, width = source.images.shape[1:]
    net = backbones.build(config.backbone, (channels, height, width)).net
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # a cumulative average over the pass below
    with torch.no_grad():
        for part in torch.split(train.images, evaluate.ENCODE_BATCH):
            net(part)
    return evaluate.encode(net, train.images), evaluate.encode(net, held_out.images)


def _pairing_evidence(backbone: nn.Module, loader: augment.TwoViewLoader) -> dict[str, str]:
    """Digests of the initial backbone, the first epoch's order and its first batch: equal for all arms of a seed."""
    batch = next(iter(loader))
    loader.epoch = 0  # that look did not count
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


def _cpu(split: data.Split) -> data.Split:
    return split.to(torch.device("cpu"))
