"""The types of data sets, which all loaders share."""

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

# The part of an image's area that a crop keeps, as in SimCLR.
CROP_AREA = (0.08, 1.0)


class DataError(ValueError):
    """The data are missing or cannot be used; the message says what to do."""


@dataclass(frozen=True)
class Split:
    """Images and labels of one split."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.labels)

    def to(self, device: torch.device | str) -> "Split":
        """The same on another device."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Source:
    """A data set before it is split.

    Attributes:
        images: (N, C, H, W), float32 in [0, 1], or uint8 to save memory (`as_float` converts it).
        labels: (N,), int64 in [0, num_classes).
        sizes: Numbers of samples in the train, validation and test splits.
        rotation, scale: Strength of the augmentation of grey images: degrees, and range of the zoom. Colour images are
            cropped instead, and `scale` is the range of the kept fraction of their area.
        flip: Whether a mirrored image has the same class.
        official_test: The published test split, if requested. The other splits are then drawn from `images`; otherwise
            all three are.
    """

    images: Tensor
    labels: Tensor
    num_classes: int
    sizes: tuple[int, int, int]
    rotation: float
    scale: tuple[float, float]
    flip: bool
    official_test: Split | None = None

    @cached_property
    def digest(self) -> str:
        """12 hexadecimal digits of the SHA-256 of all images and labels before splitting; they identify the data.

        The digest is of pixels, because files with equal names and sizes can differ. It takes about a second per GB, once
        per data set.
        """
        sha = hashlib.sha256()
        for split in (Split(self.images, self.labels), self.official_test):
            for tensor in (split.images, split.labels) if split else ():
                sha.update(f"{tuple(tensor.shape)} {tensor.dtype} ".encode())
                sha.update(tensor.cpu().contiguous().numpy().data)
        return sha.hexdigest()[:12]


@dataclass(frozen=True)
class Splits:
    """Disjoint splits of one data set for a seed."""

    train: Split
    val: Split
    test: Split

    def named(self, name: str) -> Split:
        """The split that a trial is evaluated on: `"val"` or `"test"`."""
        return {"val": self.val, "test": self.test}[name]


@dataclass(frozen=True)
class Request:
    """The arguments of a loader.

    Attributes:
        folder: Folder of the files; None for the usual folder.
        path: The part of `imagefolder:PATH` after the colon.
        image_size: Side in pixels to which images are resized; None for the loader's default.
        official_test: Whether to load the published test split too.
    """

    folder: Path | None = None
    path: Path | None = None
    image_size: int | None = None
    official_test: bool = False


def download_folder() -> Path:
    """Where downloads go that no `--data-dir` was given for."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "varloss-bench"


def as_float(images: Tensor) -> Tensor:
    """Images as float32 in [0, 1]; float images are returned unchanged."""
    return images.float() / 255.0 if images.dtype == torch.uint8 else images
