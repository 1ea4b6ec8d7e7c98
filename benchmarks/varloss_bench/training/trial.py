"""One trial: build, train, evaluate, and the record of it."""

import dataclasses
import hashlib
import logging
import time
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.plugins.environments import LightningEnvironment  # type: ignore[attr-defined]
from torch import Tensor, nn

from varloss_bench import measures
from varloss_bench.config import COLLAPSE_MEAN, TrialConfig
from varloss_bench.data import sets as data
from varloss_bench.data.sets import Split
from varloss_bench.methods import METHODS
from varloss_bench.methods import load as load_code
from varloss_bench.training import augment, backbones, evaluate, modules, timing
from varloss_bench.training.errors import TrainingDivergedError
from varloss_bench.training.solo import net as solo_net
from varloss_bench.training.solo import run as solo_run
from varloss_bench.training.untrained import random_net

_load = lru_cache(maxsize=1)(data.load)

# Images that the evaluation is timed on. Of the training images more where there are many classes.
_TIMED_TRAIN, _TIMED_HELD_OUT = 1000, 500


def load_source(config: TrialConfig) -> data.Source:
    """The data set of a trial; the last one is kept."""
    return _load(config.data, config.data_dir, **data.options_of(config))


def quieten() -> None:
    """Silence Lightning's remarks on devices and loaders: once per trial they would bury the progress. Errors still show."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")


class _Progress(Callback):
    """Tells how much of the training is done, after every epoch, and how many seconds its steps took."""

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
    """A Trainer without anything that costs time or writes files: results are kept by us, once, at the end.

    Several ranks are processes that exist already (`ranks.py`). On GPUs they share BatchNorm's statistics, as one process
    would have them; torch has no such BatchNorm for CPUs, where each rank's are of its own rows.
    """
    several = config.ranks > 1
    return Trainer(
        accelerator="gpu" if config.device == "cuda" else "cpu",
        devices=config.devices,
        num_nodes=config.nodes,
        strategy="ddp" if several and config.strategy == "auto" else config.strategy,
        sync_batchnorm=several and config.device == "cuda",
        precision=cast(Any, config.precision),
        # Named, or inside a Slurm job Lightning would take that job's tasks for ranks of this trial.
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


def build(
    config: TrialConfig, splits: data.Splits, source: data.Source, rank: int = 0
) -> tuple[modules.ContrastiveModule, augment.TwoViewLoader, str]:
    """Module, loader and what was changed in the backbone. Initial weights depend on seed, backbone and method only."""
    device = _device(config, rank)
    channels, height, width = source.images.shape[1:]
    torch.manual_seed(config.seed)
    backbone = backbones.build(config.backbone, (channels, height, width))
    module = modules.build_module(config, backbone, num_samples=len(splits.train))
    module.to(memory_format=torch.channels_last)  # a sixth faster on CPUs, the layout of choice on GPUs
    loader = augment.TwoViewLoader(
        splits.train.to(device),
        augment.build_augmentation(source).to(device),
        config.batch_size,
        config.seed,
        rank=rank,
        ranks=config.ranks,
    )
    return module, loader, backbone.changed


def _device(config: TrialConfig, rank: int) -> torch.device:
    return torch.device("cuda", rank % config.devices) if config.device == "cuda" else torch.device(config.device)


def run_trial(
    config: TrialConfig,
    report: Callable[[float], None] = lambda _: None,
    rank: int = 0,
    log: Path | None = None,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """Run a trial and return what is to be stored of it, plain values only; nothing on a rank other than 0.

    Args:
        config: What to run.
        report: Called with the fraction done.
        rank: Which of `config.ranks` processes this is (`ranks.run_trial` starts them).
        log: Where solo-learn's output is kept, if that is what trains.
        callbacks: Look on while Lightning trains; what they raise ends the trial.

    Raises:
        solo_run.SoloLearnError: solo-learn failed.
        TrainingDivergedError: The loss became NaN or infinite, or the trained net's outputs are.
    """
    torch.use_deterministic_algorithms(config.device == "cpu")
    source = load_source(config)
    splits = data.split(source, config.seed)
    held_out = splits.test if config.evaluate_on == "test" else splits.val
    outcome: dict[str, Any] = {"num_train": len(splits.train), "num_evaluated": len(held_out)}
    if not rank:  # the others' outcome is dropped, and large images take seconds
        outcome["data_digest"] = source.digest
    started = time.perf_counter()
    if not config.arm.trained:
        features_of = load_code(METHODS[config.method].features)
        train_features, held_out_features = features_of(config, source, splits.train, held_out)
        trained = started
        metrics: dict[str, float] = {}
    else:
        encoder: modules.ContrastiveModule | solo_net.SoloEncoder
        if config.framework == "solo":
            encoder, told = solo_run.train(config, splits.train, source, report, log)
            trained = time.perf_counter()
            outcome |= told
        else:
            module, loader, changed = build(config, splits, source, rank)
            steps = number_of_steps(config)
            outcome |= {
                "backbone_changed": changed,
                "parameters": sum(p.numel() for p in module.backbone.parameters()),
                "learning_rate": config.learning_rate,
                "steps": steps,
                "paired": _pairing_evidence(module.backbone, loader),
            }
            progress = _Progress(report)
            make_trainer(config, progress, callbacks=callbacks).fit(module, train_dataloaders=loader)
            trained = time.perf_counter()
            if config.ranks > 1:
                # The ranks' work is done; nothing below may wait for another one.
                torch.distributed.barrier()
                torch.distributed.destroy_process_group()
                if rank:
                    return {}
            outcome["epoch_losses"] = module.epoch_losses
            encoder = module
        device = _device(config, rank)
        encoder = encoder.to(device)
        # What was trained on is there already, and a second copy of large images would be too much.
        train_split = splits.train.to(device) if config.framework == "solo" else loader.split
        held_out = held_out.to(device)
        train_features = evaluate.encode(encoder.backbone, train_split.images)
        held_out_features = evaluate.encode(encoder.backbone, held_out.images)
        for features in (train_features, held_out_features):
            _require_finite(features, "features")
            _require_finite(evaluate.encode(encoder.head, features), "projections")
        metrics, outcome["drawn"] = evaluate.projection_metrics(encoder, source, train_split, held_out, config.seed)
    iterations: dict[str, list[int]] = {}
    metrics |= evaluate.feature_metrics(
        train_features.cpu(), held_out_features.cpu(), splits.train, _cpu(held_out), config.seed, iterations=iterations
    )
    outcome["probe_iterations"] = {name: max(fits) for name, fits in iterations.items()}
    outcome["metrics"] = metrics
    outcome["collapsed"] = bool(metrics.get("negative_mean", 0.0) > COLLAPSE_MEAN)
    outcome["seconds"] = {"train": trained - started, "evaluate": time.perf_counter() - trained}
    if config.arm.trained and config.framework != "solo":
        # Last of all, and on numbers of its own: the trial cannot notice.
        outcome["timing"] = timing.of_training(module, loader, config, steps, progress.seconds)
    return outcome


def _require_finite(outputs: Tensor, name: str) -> None:
    """What the last step did to the weights is in no loss: without this look it would count as a crash, and run again."""
    if not outputs.isfinite().all():
        raise TrainingDivergedError(f"{name} after the last step are not finite")


def number_of_steps(config: TrialConfig) -> int:
    """Optimiser steps of a trial."""
    return config.steps or load_source(config).sizes[0] // config.batch_size * config.epochs


def measure_evaluation_seconds(config: TrialConfig) -> float:
    """Seconds that the evaluation of a trained trial takes, measured with a random net and scaled up from a few images.

    Of a data set as small as digits these are all. Elsewhere the whole would take as long as a real evaluation does. What
    is left out `evaluate.feature_metrics_seconds` says.
    """
    source = load_source(config)
    splits = data.split(source, config.seed)
    held_out = splits.test if config.evaluate_on == "test" else splits.val
    sizes = len(splits.train), len(held_out)
    train_few = _a_few(splits.train, config.seed)
    held_out_few = Split(held_out.images[:_TIMED_HELD_OUT], held_out.labels[:_TIMED_HELD_OUT])
    device = _device(config, 0)
    net = random_net(config, source).to(device)
    evaluate.encode(net, held_out_few.images[:2].to(device))  # pays for lazy imports and allocation
    started = time.perf_counter()
    features = [evaluate.encode(net, split.images.to(device)).cpu() for split in (train_few, held_out_few)]
    per_image = (time.perf_counter() - started) / (len(train_few) + len(held_out_few))
    # Backbone and head see every image, each in a pass of its own, and two views of those that similarities are of.
    shown = min(sizes[1], measures.MAX_SIMILARITY_IMAGES)
    augmentation = augment.build_augmentation(source).to(device)
    augmented = timing.augmentation_seconds(held_out_few.images.to(device), augmentation) / len(held_out_few) * shown
    return (
        per_image * 2 * (sum(sizes) + shown)
        + augmented
        + evaluate.feature_metrics_seconds(features[0], features[1], train_few, held_out_few, config.seed, sizes=sizes)
    )


def _a_few(split: Split, seed: int) -> Split:
    """Some of the images, with as many of every class as the probes need."""
    if len(split) <= _TIMED_TRAIN:
        return split
    needed = data.few_labels(split.labels, measures.FEW_LABELS, seed, draws=1)[0]
    others = torch.ones(len(split), dtype=torch.bool)
    others[needed] = False
    more = others.nonzero().flatten()[: max(0, _TIMED_TRAIN - len(needed))]
    chosen = torch.cat([needed, more])
    return Split(split.images[chosen], split.labels[chosen])


def measure_solo(config: TrialConfig) -> tuple[float, float]:
    """Seconds that solo-learn takes to its first step, and for a step, measured on this machine now."""
    source = load_source(config)
    return solo_run.measure(config, data.split(source, config.seed).train, source)


def measure_step(config: TrialConfig, short: int = 5, long: int = 35) -> tuple[float, float]:
    """Seconds of a training step and of the loss in it, measured on this machine now, in one process.

    The step is the difference of two short runs through the Trainer: what a run costs before its first step would
    otherwise count as part of every step. Augmentation is left out of both and timed by itself: it is done for many
    batches at once, up to a whole epoch, so that both would pay for the same, and the difference for none of it.
    """
    source = load_source(config)
    splits = data.split(source, config.seed)
    endless = dataclasses.replace(config, epochs=long, steps=0, devices=1, nodes=1, strategy="auto")
    seconds = {}
    for steps in (short, short, long):  # the first one pays for lazy imports and allocation, and is overwritten
        module, loader, _changed = build(endless, splits, source)
        trainer = make_trainer(endless, lambda _: None, max_steps=steps)
        started = time.perf_counter()
        trainer.fit(module, train_dataloaders=dataclasses.replace(loader, augmentation=nn.Identity()))
        seconds[steps] = time.perf_counter() - started
    # On a busy machine the long run can be over before the short one was.
    trained = max(0.0, seconds[long] - seconds[short]) / (long - short)
    augmented = config.batch_size / timing.augmented_images_per_second(loader)
    return trained + augmented, timing.loss_seconds(module, endless)


def _pairing_evidence(backbone: nn.Module, loader: augment.TwoViewLoader) -> dict[str, str]:
    """Digests of the initial backbone, the first epoch's order and its first batch: equal for all arms of a seed."""
    batch = next(iter(dataclasses.replace(loader, rank=0, ranks=1)))  # of all ranks; a copy, so that it does not count
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
