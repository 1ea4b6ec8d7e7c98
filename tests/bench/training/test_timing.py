"""The times of a dry run equal those of trials, exactly, on a fake clock that only stand-ins advance."""

import dataclasses

import pytest
import torch
from torch import nn

from varloss_bench.config import TrialConfig
from varloss_bench.data import loading
from varloss_bench.training import augment, estimates, evaluate, fit, modules, timing, trial

pytestmark = pytest.mark.usefixtures("trains")

# Seconds of the fake clock.
PER_AUGMENTED, PER_STEP, PER_LOSS, PER_VRN = 1e-3, 0.02, 0.005, 0.003
PER_ENCODED, PER_PROBED, PER_NEIGHBOUR, PER_RANKED = 2e-3, 1e-4, 1e-6, 5e-5


class Clock:
    """Stands in for the module `time`."""

    def __init__(self):
        self.now = 1000.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    """The fake clock replaces all clocks; no function takes time yet."""
    clock = Clock()
    for module in (trial, estimates, fit, timing, evaluate):
        monkeypatch.setattr(module, "time", clock)
    return clock


def priced(monkeypatch, clock, owner, name, price):
    """Let `owner.name` take `price(its arguments)` seconds on the fake clock."""
    original = getattr(owner, name)

    def taking(*args, **kwargs):
        clock.now += price(*args)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, taking)


@pytest.fixture
def prices(monkeypatch, clock):
    """Give each part of a training and an evaluation a time; the results of the slowest parts are made up."""

    class Augmentation(nn.Module):
        def forward(self, images):
            clock.now += PER_AUGMENTED * len(images)
            return images

    def knn(train_rows, train_labels, held_out, *_):
        clock.now += PER_NEIGHBOUR * len(train_rows) * len(held_out)
        return 50.0

    def probe(train_rows, *_, iterations=None):
        clock.now += PER_PROBED * len(train_rows)
        iterations.append(1)
        return 50.0

    monkeypatch.setattr(augment, "build_augmentation", lambda source: Augmentation())
    monkeypatch.setattr(evaluate, "knn_accuracy", knn)
    monkeypatch.setattr(evaluate, "probe_accuracy", probe)
    priced(monkeypatch, clock, evaluate, "_rank", lambda z: PER_RANKED * len(z))
    # Per image; running the head once more on features costs almost nothing.
    priced(monkeypatch, clock, evaluate, "encode", lambda net, rows: PER_ENCODED * len(rows) * (rows.ndim == 4))
    priced(monkeypatch, clock, modules.ContrastiveModule, "training_step", lambda *_: PER_STEP)
    priced(monkeypatch, clock, modules.TwoViewModule, "own_loss", lambda *_: PER_LOSS)
    priced(monkeypatch, clock, modules.ContrastiveModule, "vrn_term", lambda *_: PER_VRN)


@pytest.mark.usefixtures("prices")
@pytest.mark.parametrize(("batch_size", "weight"), [(16, 0.0), (128, 3.0)])
def test_a_trial_takes_what_is_estimated(batch_size, weight, monkeypatch):
    """At B = 16 a measurement is one epoch, which is augmented at once; at 128 it is five epochs."""
    config = TrialConfig(batch_size=batch_size, weight=weight, epochs=1)
    monkeypatch.setattr(estimates, "_TIMED_TRAIN", 150)
    monkeypatch.setattr(estimates, "_TIMED_HELD_OUT", 60)
    step, loss = estimates.measure_step(config)
    evaluation = estimates.measure_evaluation_seconds(config)
    of_loss = PER_LOSS + (PER_VRN if weight else 0.0)
    assert loss == pytest.approx(of_loss)
    assert step == pytest.approx(PER_STEP + of_loss + 2 * batch_size * PER_AUGMENTED)
    real = trial.run_trial(config)
    of_training = real["timing"]["seconds_per_step"] * real["steps"]
    augmented = real["num_train"] // batch_size * batch_size
    assert of_training == pytest.approx(real["steps"] * (PER_STEP + of_loss) + 2 * augmented * PER_AUGMENTED)
    assert step * real["steps"] == pytest.approx(of_training)
    assert real["timing"]["loss_seconds"] == pytest.approx(loss)
    assert real["seconds"]["evaluate"] == pytest.approx(evaluation)


@pytest.mark.slow
def test_a_trial_takes_about_what_is_estimated():
    """On the real clock of a possibly busy machine: the unit is right, and no large part is missing."""
    config = TrialConfig(batch_size=32, epochs=3, weight=3.0)
    step, _loss = estimates.measure_step(config)
    evaluation = estimates.measure_evaluation_seconds(config)
    real = trial.run_trial(config)
    assert real["seconds"]["train"] / 20 < step * real["steps"] < real["seconds"]["train"] * 20
    assert real["seconds"]["evaluate"] / 20 < evaluation < real["seconds"]["evaluate"] * 20


@pytest.mark.usefixtures("prices")
def test_the_evaluation_is_timed_on_a_few_images(monkeypatch):
    encoded = []
    encode = evaluate.encode
    monkeypatch.setattr(evaluate, "encode", lambda net, images: encoded.append(len(images)) or encode(net, images))
    config = TrialConfig(num_train=1200, num_val=0)
    whole = estimates.measure_evaluation_seconds(config)
    assert encoded == [2, 1000, 500]
    encoded.clear()
    monkeypatch.setattr(estimates, "_TIMED_TRAIN", 150)
    monkeypatch.setattr(estimates, "_TIMED_HELD_OUT", 60)
    few = estimates.measure_evaluation_seconds(config)
    assert encoded == [2, 150, 60]
    assert few == pytest.approx(whole)


def test_the_few_images_have_labels_enough_of_every_class(monkeypatch):
    split = loading.split(loading.load("digits"), 0).train
    monkeypatch.setattr(estimates, "_TIMED_TRAIN", 60)
    few = estimates._a_few(split, seed=0)
    assert few.labels.bincount().tolist() == [10] * 10
    monkeypatch.setattr(estimates, "_TIMED_TRAIN", 130)
    few = estimates._a_few(split, seed=0)
    assert len(few) == 130
    assert int(few.labels.bincount().min()) >= 10
    assert len(few.images.flatten(1).unique(dim=0)) == len(few)
    monkeypatch.setattr(estimates, "_TIMED_TRAIN", 997)
    assert estimates._a_few(split, seed=0) is split


def test_seconds_grow_with_the_samples_that_a_measure_reads(clock, monkeypatch):
    """Each metric takes a different time; the sum is for four times the training images and twice the held-out images."""

    def taking(seconds):
        def measure():
            clock.now += seconds

        return measure

    prices = {"few_label_probe": 0.01, "linear_probe": 0.02, "knn": 0.03, "feature_rank": 0.04}
    measures = {name: taking(seconds) for name, seconds in prices.items()}
    monkeypatch.setattr(evaluate, "_feature_measures", lambda *_, **__: measures)
    split = loading.Split(torch.zeros(10, 1), torch.zeros(10))
    seconds = evaluate.feature_metrics_seconds(split.images, split.images, split, split, 0, sizes=(40, 20))
    assert seconds == pytest.approx(0.01 + 4 * 0.02 + 2 * 4 * 2 * 0.03 + 2 * 2 * 0.04)


def test_the_augmentation_is_timed_on_no_more_than_a_block():
    source = loading.load("digits")
    loader = augment.TwoViewLoader(
        loading.split(source, 0).train, nn.Identity(), 16, 0, max_block_bytes=8 * 64 * 4 * 100
    )
    assert loader.block == 96
    seen = []

    class Spy(nn.Module):
        def forward(self, images):
            seen.append(len(images))
            return images

    for max_bytes in (loader.max_block_bytes, 2**30):
        timing.augmented_images_per_second(dataclasses.replace(loader, augmentation=Spy(), max_block_bytes=max_bytes))
    assert seen == [192, 192, 1024, 1024]
