"""What a dry run says of time, held against what real trials take; bounds are wide, for machines that do other work too."""

import dataclasses
import time

import pytest
import torch
from torch import nn

from varloss_bench import augment, data, evaluate, timing, train
from varloss_bench.config import TrialConfig

pytestmark = pytest.mark.usefixtures("trains")


class _Slow(nn.Module):
    """An augmentation of a known price: it sleeps."""

    def forward(self, images):
        time.sleep(5e-4 * len(images))
        return images


@pytest.mark.parametrize("batch_size", [16, 128])
def test_steps_are_estimated_with_their_augmentation(batch_size, monkeypatch):
    """At B = 16 the whole of a measurement is one epoch, and augmented at once; at 128 it is five."""
    monkeypatch.setattr(augment, "build_augmentation", lambda source: _Slow())
    monkeypatch.setattr(evaluate, "projection_metrics", lambda *_: ({}, {}))
    config = TrialConfig(batch_size=batch_size, epochs=1)
    step, _loss = train.measure_step(config)
    real = train.run_trial(config)
    # About 1 s of sleep, beside .1 to .4 s of training.
    assert real["seconds"]["train"] / 2 < step * real["steps"] < real["seconds"]["train"] * 2


def test_a_trial_takes_about_what_is_estimated():
    config = TrialConfig(batch_size=32, epochs=3, weight=3.0)
    step, loss = train.measure_step(config)
    evaluation = train.measure_evaluation_seconds(config)
    real = train.run_trial(config)
    assert real["seconds"]["train"] / 3 < step * real["steps"] < real["seconds"]["train"] * 3
    assert real["seconds"]["evaluate"] / 4 < evaluation < real["seconds"]["evaluate"] * 4
    assert 0 < loss < step


@pytest.fixture
def encoded(monkeypatch):
    """Numbers of images that `evaluate.encode` was given."""
    counts = []
    encode = evaluate.encode

    def spy(net, images):
        counts.append(len(images))
        return encode(net, images)

    monkeypatch.setattr(evaluate, "encode", spy)
    return counts


def test_the_evaluation_is_timed_on_a_few_images(encoded, monkeypatch):
    config = TrialConfig(num_train=1200, num_val=0)
    train.measure_evaluation_seconds(config)  # imports
    encoded.clear()
    whole = min(train.measure_evaluation_seconds(config) for _ in range(3))
    assert encoded.count(1000) == encoded.count(500) == 3
    encoded.clear()
    monkeypatch.setattr(train, "_TIMED_TRAIN", 150)
    monkeypatch.setattr(train, "_TIMED_HELD_OUT", 60)
    few = min(train.measure_evaluation_seconds(config) for _ in range(3))
    assert sum(encoded) == 3 * (150 + 60 + 2)
    assert whole / 4 < few < whole * 4


def test_the_few_images_have_labels_enough_of_every_class(monkeypatch):
    split = data.split(data.load("digits"), 0).train
    monkeypatch.setattr(train, "_TIMED_TRAIN", 60)
    few = train._a_few(split, seed=0)
    assert few.labels.bincount().tolist() == [10] * 10
    monkeypatch.setattr(train, "_TIMED_TRAIN", 130)
    few = train._a_few(split, seed=0)
    assert len(few) == 130
    assert int(few.labels.bincount().min()) >= 10
    assert len(few.images.flatten(1).unique(dim=0)) == len(few)
    monkeypatch.setattr(train, "_TIMED_TRAIN", 997)
    assert train._a_few(split, seed=0) is split


def test_seconds_grow_with_the_samples_that_a_measure_reads(monkeypatch):
    """Each measure sleeps a time of its own; the sum is that of four times the images."""
    prices = {"few_label_probe": 0.01, "linear_probe": 0.02, "knn": 0.03, "feature_rank": 0.04}
    measures = {name: lambda seconds=seconds: time.sleep(seconds) for name, seconds in prices.items()}
    monkeypatch.setattr(evaluate, "_feature_measures", lambda *_, **__: measures)
    split = data.Split(torch.zeros(10, 1), torch.zeros(10))
    seconds = evaluate.feature_metrics_seconds(split.images, split.images, split, split, 0, sizes=(40, 20))
    expected = 0.01 + 4 * 0.02 + 2 * 4 * 2 * 0.03 + 2 * 0.04
    assert expected <= seconds < 2 * expected


def test_the_augmentation_is_timed_on_no_more_than_a_block():
    source = data.load("digits")
    loader = augment.TwoViewLoader(data.split(source, 0).train, nn.Identity(), 16, 0, max_block_bytes=8 * 64 * 4 * 100)
    assert loader.block == 96
    seen = []

    class Spy(nn.Module):
        def forward(self, images):
            seen.append(len(images))
            return images

    for max_bytes in (loader.max_block_bytes, 2**30):
        timing.augmented_images_per_second(dataclasses.replace(loader, augmentation=Spy(), max_block_bytes=max_bytes))
    assert seen == [192, 192, 1024, 1024]
