"""Estimated duration of a trial, measured on this machine before the trial runs."""

import dataclasses
import time

import torch
from torch import nn

from varloss_bench import measures
from varloss_bench.config import TrialConfig
from varloss_bench.data import loading
from varloss_bench.data.types import Split
from varloss_bench.training import augment, evaluate, fit, timing
from varloss_bench.training.solo import run as solo_run
from varloss_bench.training.trial import load_source
from varloss_bench.training.untrained import random_net

# Number of images that the evaluation is timed on; more training images if there are many classes.
_TIMED_TRAIN, _TIMED_HELD_OUT = 1000, 500


def number_of_steps(config: TrialConfig) -> int:
    """Optimiser steps of a trial."""
    return config.total_steps(load_source(config).sizes[0])


def measure_evaluation_seconds(config: TrialConfig) -> float:
    """Seconds that the evaluation of a trained trial takes, measured with a random net and scaled up from a few images.

    A data set as small as digits is timed as a whole. For a larger one this would take as long as a real evaluation.
    `evaluate.feature_metrics_seconds` describes what is not counted.
    """
    source = load_source(config)
    splits = loading.split(source, config.seed)
    held_out = splits.named(config.evaluate_on)
    sizes = len(splits.train), len(held_out)
    train_few = _a_few(splits.train, config.seed)
    held_out_few = Split(held_out.images[:_TIMED_HELD_OUT], held_out.labels[:_TIMED_HELD_OUT])
    device = config.device_of(0)
    net = random_net(config, source).to(device)
    evaluate.encode(net, held_out_few.images[:2].to(device))  # pays for lazy imports and allocation
    started = time.perf_counter()
    features = [evaluate.encode(net, split.images.to(device)).cpu() for split in (train_few, held_out_few)]
    per_image = (time.perf_counter() - started) / (len(train_few) + len(held_out_few))
    # Backbone and head each process every image in a separate pass, and two views of the images for the similarities.
    shown = min(sizes[1], measures.MAX_SIMILARITY_IMAGES)
    augmentation = augment.build_augmentation(source).to(device)
    augmented = timing.augmentation_seconds(held_out_few.images.to(device), augmentation) / len(held_out_few) * shown
    return (
        per_image * 2 * (sum(sizes) + shown)
        + augmented
        + evaluate.feature_metrics_seconds(features[0], features[1], train_few, held_out_few, config.seed, sizes=sizes)
    )


def _a_few(split: Split, seed: int) -> Split:
    """A subset of the images with enough of every class for the probes."""
    if len(split) <= _TIMED_TRAIN:
        return split
    needed = loading.few_labels(split.labels, measures.FEW_LABELS, seed, draws=1)[0]
    others = torch.ones(len(split), dtype=torch.bool)
    others[needed] = False
    more = others.nonzero().flatten()[: max(0, _TIMED_TRAIN - len(needed))]
    chosen = torch.cat([needed, more])
    return Split(split.images[chosen], split.labels[chosen])


def measure_solo(config: TrialConfig) -> tuple[float, float]:
    """Seconds until solo-learn's first step and seconds per step, measured now on this machine."""
    source = load_source(config)
    return solo_run.measure(config, loading.split(source, config.seed).train, source)


def measure_step(config: TrialConfig, short: int = 5, long: int = 35) -> tuple[float, float]:
    """Seconds of a training step and of its loss, measured now on this machine in one process.

    The step is the difference of two short runs of the Trainer, so the cost before the first step does not count.
    Augmentation is excluded from both runs and timed separately: it processes many batches at once, up to a whole epoch, so
    both runs would include the same amount and the difference none of it.
    """
    source = load_source(config)
    splits = loading.split(source, config.seed)
    endless = dataclasses.replace(config, epochs=long, steps=0, devices=1, nodes=1, strategy="auto")
    seconds = {}
    for steps in (short, short, long):  # the first run pays for lazy imports and allocation, and is overwritten
        module, loader, _changed = fit.build(endless, splits.train, source)
        trainer = fit.make_trainer(endless, lambda _: None, max_steps=steps)
        started = time.perf_counter()
        trainer.fit(module, train_dataloaders=dataclasses.replace(loader, augmentation=nn.Identity()))
        seconds[steps] = time.perf_counter() - started
    # On a busy machine the long run can take less time than the short one.
    trained = max(0.0, seconds[long] - seconds[short]) / (long - short)
    augmented = config.batch_size / timing.augmented_images_per_second(loader)
    return trained + augmented, timing.loss_seconds(module, endless)
