"""Data sets as tensors: images (N, C, H, W) in [0, 1], labels (N,), split anew for every seed."""

import gzip
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

# Where Debian's package dataset-fashion-mnist puts its files.
FASHION_MNIST_DIR = Path("/usr/share/datasets/fashion-mnist")


class DataError(ValueError):
    """The data asked for is not there or cannot be used; the message says what to do."""


@dataclass(frozen=True)
class Source:
    """A data set before it is split.

    Attributes:
        images: (N, C, H, W), float32 in [0, 1].
        labels: (N,), int64 in [0, num_classes).
        sizes: Samples in the train, validation and test splits.
        rotation, scale: Strength of the augmentation: degrees, and range of the zoom.
        flip: Whether a mirrored image is still of its class.
    """

    images: Tensor
    labels: Tensor
    num_classes: int
    sizes: tuple[int, int, int]
    rotation: float
    scale: tuple[float, float]
    flip: bool


@dataclass(frozen=True)
class Split:
    """Images and labels of one split."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.labels)

    def to(self, device: torch.device) -> "Split":
        """The same on another device."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Splits:
    """Disjoint splits of one data set, drawn by a seed."""

    train: Split
    val: Split
    test: Split


def _digits(_: str | None) -> Source:
    from sklearn.datasets import load_digits  # noqa: PLC0415  (each loader imports its own needs)

    bunch = load_digits()
    images = torch.from_numpy(np.asarray(bunch.images, dtype=np.float32) / 16.0).unsqueeze(1)
    labels = torch.from_numpy(np.asarray(bunch.target, dtype=np.int64))
    return Source(images, labels, 10, (997, 300, 500), rotation=15.0, scale=(0.8, 1.2), flip=False)


def _fashion_mnist(data_dir: str | None) -> Source:
    """The original training files; 5000 / 2000 / 2000 of their 60000 images are drawn for every seed."""
    folder = Path(data_dir) if data_dir else FASHION_MNIST_DIR
    images = torch.from_numpy(_read_idx(folder / "train-images-idx3-ubyte.gz").astype(np.float32) / 255.0)
    labels = torch.from_numpy(_read_idx(folder / "train-labels-idx1-ubyte.gz").astype(np.int64))
    if images.shape[1:] != (28, 28) or len(images) != len(labels):
        raise DataError(
            f"{folder}: expected N images of 28 x 28 and N labels, got {tuple(images.shape)} and {tuple(labels.shape)}"
        )
    return Source(images.unsqueeze(1), labels, 10, (5000, 2000, 2000), rotation=10.0, scale=(0.7, 1.1), flip=True)


def _read_idx(path: Path) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    """A gzipped IDX file of unsigned bytes (http://yann.lecun.com/exdb/mnist)."""
    try:
        with gzip.open(path) as file:
            content = file.read()
    except FileNotFoundError:
        raise DataError(
            f"{path} does not exist. Point --data-dir at a folder with Fashion-MNIST's original .gz files, or install "
            "Debian's package: apt-get install dataset-fashion-mnist"
        ) from None
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    zeros, kind, dimensions = struct.unpack(">HBB", content[:4]) if len(content) >= 4 else (1, 0, 0)
    header = 4 + 4 * dimensions
    shape = struct.unpack(f">{dimensions}I", content[4:header]) if len(content) >= header else ()
    if zeros != 0 or kind != 8 or len(content) - header != int(np.prod(shape)):
        raise DataError(f"{path} is not a complete IDX file of unsigned bytes")
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)


LOADERS: dict[str, Callable[[str | None], Source]] = {"digits": _digits, "fashion-mnist": _fashion_mnist}


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
