"""Sweeps of synthetic embeddings whose classes have a known distance, evaluated by the real evaluation."""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import Tensor

from varloss_bench.config import TrialConfig
from varloss_bench.data.loading import Split
from varloss_bench.execution.workers import ignore_sigint
from varloss_bench.grid import grid
from varloss_bench.statistics import summary
from varloss_bench.training import evaluate

NUM_CLASSES, DIM, PROJECTED = 8, 24, 16
NUM_TRAIN, NUM_HELD_OUT = 240, 400
# Distance of the class means from their centre, in standard deviations of the noise within a class. The 10-label probe is then
# right for about 80% of the images, which leaves room on both sides.
SEPARATION = 3.4
# Noise of a net and noise of a view; the noise that an image has in every net is 1.
NET_NOISE, VIEW_NOISE = 0.5, 0.5


def trials(seeds: int) -> list[TrialConfig]:
    """SimCLR's arms of the default `compare`, without the untrained rows."""
    found = grid(
        TrialConfig(),
        methods=["simclr"],
        batch_sizes=[16],
        weights=[3.0],
        temperatures=[0.5],
        control_temperatures=[0.2],
        seeds=range(seeds),
    )
    return [trial for trial in found if trial.arm.trained]


def embeddings(seed: int, arm: int, separation: float) -> tuple[Tensor, Tensor, Tensor, Split, Split]:
    """Features of one net: classes around means of a known length, noise, and a rotation.

    A seed draws classes, images and labels, the same for all arms; each arm has its own rotation and noise.

    Returns:
        Training features (N, D), held-out features (M, D), a projection (D, P), and the two splits, whose images are the
        features that all arms share.
    """
    shared = torch.Generator().manual_seed(seed)
    means = torch.nn.functional.normalize(torch.randn(NUM_CLASSES, DIM, generator=shared), dim=1)
    num_images = NUM_TRAIN + NUM_HELD_OUT
    # Equal numbers of each class: the labelled subsets need 10 of each.
    labels = (torch.arange(num_images) % NUM_CLASSES)[torch.randperm(num_images, generator=shared)]
    noise = torch.randn(num_images, DIM, generator=shared)
    own = torch.Generator().manual_seed(seed * 1000 + 1 + arm)
    rotation = torch.linalg.qr(torch.randn(DIM, DIM, generator=own)).Q
    net_noise = NET_NOISE * torch.randn(num_images, DIM, generator=own)
    projection = torch.randn(DIM, PROJECTED, generator=own) / DIM**0.5
    images = separation * means[labels] + noise
    features = (images + net_noise) @ rotation
    train, held_out = features[:NUM_TRAIN], features[NUM_TRAIN:]
    splits = Split(images[:NUM_TRAIN], labels[:NUM_TRAIN]), Split(images[NUM_TRAIN:], labels[NUM_TRAIN:])
    return train, held_out, projection, *splits


def record(seed: int, arm: int, separation: float) -> dict[str, Any]:
    """The record that `compare` would write of such a net: the same probes, kNN and similarities."""
    train, held_out, projection, train_split, held_out_split = embeddings(seed, arm, separation)
    own = torch.Generator().manual_seed(seed * 1000 + 500 + arm)
    views = [(held_out + VIEW_NOISE * torch.randn(held_out.shape, generator=own)) @ projection for _ in range(2)]
    measured = evaluate.embedding_metrics(
        train @ projection, held_out @ projection, (views[0], views[1]), train_split, held_out_split
    )
    measured |= evaluate.feature_metrics(train, held_out, train_split, held_out_split, seed)
    return {"status": "finished", "collapsed": False, "metrics": measured, "seconds": {"train": 0.0}}


def sweep(number: int, seeds: int, gain: float) -> summary.Summary:
    """One sweep. With VRN the distance of the classes is `gain` times as large; a gain of 1 is no effect."""
    torch.set_num_threads(1)
    configs = trials(seeds)
    arms = list(dict.fromkeys(config.arm for config in configs))
    records = {
        config.key(): record(
            number * seeds + config.seed, arms.index(config.arm), SEPARATION * (gain if config.weight else 1.0)
        )
        for config in configs
    }
    return summary.summarise(configs, records, summary.grid_pairs(configs, (0.2,)))


def sweeps(count: int, seeds: int, gain: float, workers: int) -> Iterator[summary.Summary]:
    """Independent sweeps, in processes of one thread each."""
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        with ignore_sigint():  # the first submissions start the processes
            found = pool.map(partial(sweep, seeds=seeds, gain=gain), range(count))
        yield from found
