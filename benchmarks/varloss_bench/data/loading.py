"""Load a data set by its name, and split it by a seed. The table of data sets is `varloss_bench.datasets`.

A data set is tensors: images (N, C, H, W) and labels (N,).
"""

import dataclasses
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor

from varloss_bench.config import TrialConfig
from varloss_bench.data.types import DataError, Request, Source, Split, Splits, as_float
from varloss_bench.datasets import DATASETS
from varloss_bench.methods import load as load_code

__all__ = [
    "DataError",
    "Source",
    "Split",
    "Splits",
    "as_float",
    "check_labels",
    "few_labels",
    "load",
    "split",
]


class Options(TypedDict):
    """Keyword arguments of `load`."""

    sizes: tuple[int | None, int | None, int | None]
    image_size: int | None
    official_test: bool


def load(
    name: str,
    data_dir: str | None = None,
    *,
    sizes: tuple[int | None, int | None, int | None] = (None, None, None),
    image_size: int | None = None,
    official_test: bool = False,
) -> Source:
    """Load a data set by name.

    Args:
        name: One of `DATASETS`; `imagefolder:PATH` for a folder of class folders.
        data_dir: Folder of the files, or of their download; None for the usual folder.
        sizes: Numbers of train, validation and test samples; None for the data set's own.
        image_size: Side in pixels, for `imagefolder`.
        official_test: Test on the split published with the data instead of on a part of its training images.

    Raises:
        DataError: The name is unknown, files are missing or damaged, or there are too few samples.
    """
    kind, _, path = name.partition(":")
    row = DATASETS.get(kind)
    if row is None or bool(path) != row.is_folder:
        known = (known.typed for known in DATASETS.values())
        raise DataError(f"unknown data set {name!r}; known data sets: {', '.join(known)}")
    if image_size is not None and not row.is_folder:
        raise DataError(f"--image-size is for imagefolder:PATH; the images of {name} have a fixed size")
    source: Source = load_code(row.loader)(
        Request(Path(data_dir) if data_dir else None, Path(path) if path else None, image_size, official_test)
    )
    return _resize(name, source, sizes)


def options_of(config: TrialConfig) -> Options:
    """The arguments of `load` from a trial's configuration, except name and folder."""
    return Options(
        sizes=(config.num_train, config.num_val, config.num_test),
        image_size=config.image_size,
        official_test=config.official_test,
    )


def _resize(name: str, source: Source, asked: tuple[int | None, int | None, int | None]) -> Source:
    """The source with the requested sizes, checked against the number of samples."""
    train, val, test = (own if size is None else size for own, size in zip(source.sizes, asked, strict=True))
    if source.official_test is not None and asked[2] is None:
        test = len(source.official_test)
    if min(train, val, test) < 0 or train < 2:
        raise DataError(
            f"--num-train must be at least 2, --num-val and --num-test at least 0, got {train}, {val}, {test}"
        )
    drawn = train + val + (test if source.official_test is None else 0)
    if drawn > len(source.labels):
        raise DataError(f"{name} has {len(source.labels)} samples, its splits need {drawn}")
    if source.official_test is not None and test > len(source.official_test):
        raise DataError(f"the official test split of {name} has {len(source.official_test)} samples, not {test}")
    return dataclasses.replace(source, sizes=(train, val, test))


def split_indices(source: Source, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of the train, validation and test split, drawn without replacement; equal seeds give equal splits.

    The indices of the test split refer to `source.official_test` if there is one.
    """
    generator = torch.Generator().manual_seed(seed)
    num_train, num_val, num_test = source.sizes
    order = torch.randperm(len(source.labels), generator=generator)
    if source.official_test is None:
        test = order[num_train + num_val : num_train + num_val + num_test]
    else:
        test = torch.randperm(len(source.official_test), generator=generator)[:num_test]
    return order[:num_train], order[num_train : num_train + num_val], test


def split(source: Source, seed: int) -> Splits:
    """Draw train, validation and test splits; equal seeds give equal splits."""
    train, val, test = split_indices(source, seed)
    tested = source.official_test or Split(source.images, source.labels)
    return Splits(
        Split(source.images[train], source.labels[train]),
        Split(source.images[val], source.labels[val]),
        Split(tested.images[test], tested.labels[test]),
    )


def check_labels(source: Source, seed: int, per_class: int) -> None:
    """Raise `DataError` for a seed whose training split has a class with fewer labels than a probe needs.

    `few_labels` would raise as well, but only after the training.
    """
    counts = torch.bincount(source.labels[split_indices(source, seed)[0]], minlength=source.num_classes)
    if int(counts.min()) < per_class:
        raise DataError(
            f"the probes need {per_class} training samples of every class, but of the {source.sizes[0]} that seed {seed} "
            f"draws only {int(counts.min())} are of class {int(counts.argmin())}; use more images or fewer classes"
        )


def few_labels(labels: Tensor, per_class: int, seed: int, draws: int) -> list[Tensor]:
    """`draws` index sets, each with `per_class` samples of every class present, drawn by the seed.

    Raises:
        DataError: A class has fewer samples than `per_class`.
    """
    generator = torch.Generator().manual_seed(seed)
    classes, counts = torch.unique(labels, return_counts=True)
    if int(counts.min()) < per_class:
        raise DataError(
            f"a probe needs {per_class} labels per class, but class {int(classes[counts.argmin()])} has "
            f"only {int(counts.min())} training samples"
        )
    subsets = []
    for _ in range(draws):
        order = torch.randperm(len(labels), generator=generator)
        subsets.append(torch.cat([order[labels[order] == label][:per_class] for label in classes]))
    return subsets
