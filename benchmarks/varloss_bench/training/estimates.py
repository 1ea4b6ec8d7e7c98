"""What a trial will cost in time, measured on this machine before it is run."""

import dataclasses
import time

import torch
from torch import nn

from varloss_bench import measures
from varloss_bench.config import TrialConfig
from varloss_bench.data import sets as data
from varloss_bench.data.types import Split
from varloss_bench.training import augment, evaluate, fit, timing
from varloss_bench.training.solo import run as solo_run
from varloss_bench.training.trial import load_source
from varloss_bench.training.untrained import random_net

# Images that the evaluation is timed on. Of the training images more where there are many classes.
_TIMED_TRAIN, _TIMED_HELD_OUT = 1000, 500


def number_of_steps(config: TrialConfig) -> int:
    """Optimiser steps of a trial."""
    return config.total_steps(load_source(config).sizes[0])


def measure_evaluation_seconds(config: TrialConfig) -> float:
    """Seconds that the evaluation of a trained trial takes, measured with a random net and scaled up from a few images.

    Of a data set as small as digits these are all. Elsewhere the whole would take as long as a real evaluation does. What
    is left out `evaluate.feature_metrics_seconds` says.
    """
    source = load_source(config)
    splits = data.split(source, config.seed)
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
        module, loader, _changed = fit.build(endless, splits.train, source)
        trainer = fit.make_trainer(endless, lambda _: None, max_steps=steps)
        started = time.perf_counter()
        trainer.fit(module, train_dataloaders=dataclasses.replace(loader, augmentation=nn.Identity()))
        seconds[steps] = time.perf_counter() - started
    # On a busy machine the long run can be over before the short one was.
    trained = max(0.0, seconds[long] - seconds[short]) / (long - short)
    augmented = config.batch_size / timing.augmented_images_per_second(loader)
    return trained + augmented, timing.loss_seconds(module, endless)
