"""CIFAR-10, CIFAR-100 and STL-10 through torchvision, with its files, checksums and downloads."""

from collections.abc import Callable
from typing import Any
from urllib.error import URLError

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets

from varloss_bench.data.types import CROP_AREA, DataError, Request, Source, Split, download_folder


def cifar10(request: Request) -> Source:
    """50000 training images of 32 x 32, from which each seed draws 5000 / 2000 / 2000; 10000 test images."""
    return _cifar("CIFAR10", 10, request)


def cifar100(request: Request) -> Source:
    """Like CIFAR-10, with 100 classes (the fine labels)."""
    return _cifar("CIFAR100", 100, request)


def stl10(request: Request) -> Source:
    """The 5000 labelled training images of 96 x 96, from which each seed draws 3000 / 1000 / 1000; 8000 test images.

    The 100000 images without labels are not used, because the probes need labels of the training images.
    """

    def read(split: str) -> Split:
        found = _fetch("stl10", datasets.STL10, request, split=split)
        return _to_split(np.ascontiguousarray(found.data), found.labels)

    test = read("test") if request.official_test else None
    train = read("train")
    return _source(train, 10, (3000, 1000, 1000), test)


def _cifar(name: str, num_classes: int, request: Request) -> Source:
    def read(train: bool) -> Split:
        found = _fetch(name.lower(), getattr(datasets, name), request, train=train)
        return _to_split(np.ascontiguousarray(found.data.transpose(0, 3, 1, 2)), found.targets)

    return _source(read(True), num_classes, (5000, 2000, 2000), read(False) if request.official_test else None)


def _source(train: Split, num_classes: int, sizes: tuple[int, int, int], test: Split | None) -> Source:
    return Source(train.images, train.labels, num_classes, sizes, 0.0, CROP_AREA, flip=True, official_test=test)


def _to_split(images: "np.ndarray[Any, np.dtype[np.uint8]]", labels: Any) -> Split:
    targets: Tensor = torch.from_numpy(np.asarray(labels, dtype=np.int64))
    return Split(torch.from_numpy(images), targets)


def _fetch(name: str, dataset: Callable[..., Any], request: Request, **part: Any) -> Any:
    """The data set from torchvision's files if they are complete, otherwise from a download.

    Raises:
        DataError: The files are missing and cannot be downloaded.
    """
    folder = request.folder or download_folder()
    try:
        return dataset(folder, download=False, **part)
    except RuntimeError:  # torchvision raises this for missing or damaged files
        pass
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return dataset(folder, download=True, **part)
    except (URLError, OSError, RuntimeError) as error:
        raise DataError(
            f"{name} is not in {folder}, and it could not be downloaded: {error}. With a network, run the same command "
            f"again; without one, put {getattr(dataset, 'filename', name)} "
            f"({getattr(dataset, 'url', 'from its authors')}) into that folder, or set --data-dir to another one"
        ) from error
