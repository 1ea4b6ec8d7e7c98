"""Data sets as tensors: images (N, C, H, W) in [0, 1], labels (N,), split anew for every seed."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from varloss_bench.data_fashion import fashion_mnist, fashion_pairs
from varloss_bench.data_types import DataError, Source, Split, Splits

__all__ = ["LOADERS", "DataError", "Source", "Split", "Splits", "few_labels", "load", "split"]


def _digits(_: str | None) -> Source:
    from sklearn.datasets import load_digits  # noqa: PLC0415  (each loader imports its own needs)

    bunch = load_digits()
    images = torch.from_numpy(np.asarray(bunch.images, dtype=np.float32) / 16.0).unsqueeze(1)
    labels = torch.from_numpy(np.asarray(bunch.target, dtype=np.int64))
    return Source(images, labels, 10, (997, 300, 500), rotation=15.0, scale=(0.8, 1.2), flip=False)


LOADERS: dict[str, Callable[[str | None], Source]] = {
    "digits": _digits,
    "fashion-mnist": fashion_mnist,
    "fashion-pairs": fashion_pairs,
}


def load(name: str, data_dir: str | None = None) -> Source:
    """Load a data set by name.

    Raises:
        DataError: Unknown name, missing or broken files.
    """
    if name not in LOADERS:
        raise DataError(f"unknown data set {name!r}; known are {', '.join(LOADERS)}")
    return LOADERS[name](data_dir)


def split(source: Source, seed: int) -> Splits:
    """Draw train, validation and test splits without replacement; equal seeds give equal splits."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(source.labels), generator=generator)[: sum(source.sizes)]
    train, val, test = (
        Split(source.images[part], source.labels[part]) for part in torch.split(order, list(source.sizes))
    )
    return Splits(train, val, test)


def few_labels(labels: Tensor, per_class: int, seed: int, draws: int) -> list[Tensor]:
    """`draws` index sets, each with `per_class` samples of every class present, drawn by the seed.

    Raises:
        DataError: A class has fewer samples than `per_class`.
    """
    generator = torch.Generator().manual_seed(seed)
    classes, counts = torch.unique(labels, return_counts=True)
    if int(counts.min()) < per_class:
        raise DataError(
            f"a probe with {per_class} labels per class was asked for, but class {int(classes[counts.argmin()])} has "
            f"only {int(counts.min())} training samples"
        )
    subsets = []
    for _ in range(draws):
        order = torch.randperm(len(labels), generator=generator)
        subsets.append(torch.cat([order[labels[order] == label][:per_class] for label in classes]))
    return subsets
