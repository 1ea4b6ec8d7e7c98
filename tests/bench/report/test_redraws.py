"""Notes, captions and records say correctly what a seed redraws."""

import dataclasses

import pytest
import torch

from varloss_bench.config import TrialConfig
from varloss_bench.data import fashion as data_fashion
from varloss_bench.data import loading, torchvision
from varloss_bench.datasets import DATASETS
from varloss_bench.methods import load
from varloss_bench.records import provenance, redraws
from varloss_bench.report.figures.sweep import caption
from varloss_bench.report.labels import split_words
from varloss_bench.report.notes import notes
from varloss_bench.statistics.summary import Summary


def tiny_source(monkeypatch, train, test):
    """A data set whose published splits have these sizes, under CIFAR-10's name."""
    labels = torch.arange(train + test) % 10
    images = labels.view(-1, 1, 1, 1).float()
    whole = loading.Split(images[train:], labels[train:])

    def load(request):
        published = whole if request.official_test else None
        return loading.Source(images[:train], labels[:train], 10, (40, 20, 20), 0.0, (0.08, 1.0), True, published)

    monkeypatch.setattr(torchvision, "cifar10", load)
    monkeypatch.setitem(DATASETS, "cifar10", dataclasses.replace(DATASETS["cifar10"], published=(train, test)))


@pytest.mark.parametrize(
    ("sizes", "evaluate_on", "official"),
    [
        ((None, None, None), "test", False),
        ((None, None, None), "test", True),
        ((100, 0, None), "test", True),
        ((100, 0, 30), "test", True),
        ((100, 0, 20), "test", True),
        ((90, 0, None), "test", True),
        ((90, 10, None), "test", True),
        ((90, 10, None), "val", True),
        ((90, 0, 20), "test", True),
    ],
)
def test_what_a_seed_redraws_is_what_it_redraws(monkeypatch, sizes, evaluate_on, official):
    tiny_source(monkeypatch, 100, 30)
    num_train, num_val, num_test = sizes
    config = TrialConfig(data="cifar10", official_test=official, num_train=num_train, num_val=num_val, num_test=num_test,
                         evaluate_on=evaluate_on)  # fmt: skip
    source = loading.load(config.data, **loading.options_of(config))
    train, val, test = (
        sorted(first.tolist()) != sorted(second.tolist())
        for first, second in zip(loading.split_indices(source, 0), loading.split_indices(source, 1), strict=True)
    )
    (words,) = [line for line in notes(Summary((), (), (0, 1)), config) if "redraws" in line]
    assert (redraws.redraws_training(config), redraws.redraws_test(config)) == (train, test)
    read = {"val": val, "test": test}[evaluate_on]
    if train and read and (not official or evaluate_on == "val"):
        assert words.startswith("A seed redraws split, labelled subsets, weights, order and augmentations. All arms")
        assert "variation over splits;" in words
    else:
        assert "redraws split" not in words
        assert ("redraws training split" in words) is ("over training splits" in words) is train
        assert ("every seed trains on the same images" in words) is not train
        assert ("published one for every seed" in words) is not read
        assert ("part of the published test split" in words) is read
    title = {"val": "validation split", "test": "test split"}[evaluate_on]
    if official and evaluate_on == "test":
        title = "part of the published test split" if test else "published test split"
    assert split_words(config) == title
    shown = caption(Summary((), (), (0, 1)), config)
    parts = ", ".join(redraws.redraws(config)[:-1])
    assert f"A seed redraws {parts} and augmentations" in " ".join(shown.split())
    assert provenance.confounds(config)["seed_redraws"] == ", ".join(redraws.redraws(config))


def test_of_a_folder_is_said_what_is_certain_before_it_is_read():
    config = TrialConfig(data="imagefolder:x", official_test=True, num_train=100, num_val=0, num_test=50)
    assert (redraws.redraws_training(config), redraws.redraws_test(config)) == (None, None)
    assert redraws.redraws(config)[:2] == (
        "training images where there are more than 100",
        "test images where more than 50 were published",
    )
    assert "over training splits if there are more than 100 training images" in redraws.over(config)
    assert "the 50 test images are the published ones, or drawn from them if there are more" in redraws.over(config)
    assert split_words(config) == "50 published test images"
    whole = dataclasses.replace(config, num_test=None)
    assert redraws.redraws_test(whole) is False
    assert split_words(whole) == "published test split"


@pytest.mark.parametrize(
    ("name", "part", "said"),
    [
        ("fashion-mnist", 0, "of their {} images"),
        ("fashion-pairs", 0, "of the {} pairs"),
        ("cifar10", 0, "{} training images"),
        ("cifar10", 1, "{} test images"),
        ("stl10", 0, "The {} labelled training images"),
        ("stl10", 1, "{} test images"),
    ],
)
def test_published_sizes_are_those_that_the_loaders_name(name, part, said):
    row = DATASETS[name]
    assert said.format(row.published[part]) in load(row.loader).__doc__
    assert DATASETS["cifar100"].published == DATASETS["cifar10"].published
    assert {name for name, row in DATASETS.items() if not row.published} == {"digits", "imagefolder"}


@pytest.mark.skipif(
    not data_fashion.FASHION_MNIST_DIR.is_dir(), reason="Debian's dataset-fashion-mnist is not installed"
)
def test_published_sizes_are_those_of_the_files():
    for name in ("fashion-mnist", "fashion-pairs"):
        source = loading.load(name, official_test=True)
        assert (len(source.labels), len(source.official_test)) == DATASETS[name].published
