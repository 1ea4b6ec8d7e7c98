"""What a data set is to the harness, whichever loader it comes from."""

from dataclasses import dataclass

import torch
from torch import Tensor


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
