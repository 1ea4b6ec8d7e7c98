"""What a data set is to the harness, whichever loader it comes from."""

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
    """The data asked for is not there or cannot be used; the message says what to do."""


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
        images: (N, C, H, W), float32 in [0, 1], or uint8 where floats would be four times too much (`as_float`).
        labels: (N,), int64 in [0, num_classes).
        sizes: Samples in the train, validation and test splits.
        rotation, scale: Strength of the augmentation of grey images: degrees, and range of the zoom. Images in colour
            are cropped instead, and `scale` is the range of the part of their area that is kept.
        flip: Whether a mirrored image is still of its class.
        official_test: The test split that was published with the data, for those who ask for it; the others are then
            drawn from `images`, and without it all three are.
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
        """12 hexadecimal digits of the SHA-256 of all images and labels, before any of them is drawn: the data's identity.

        Of pixels and not of files: those of equal name and size can differ. About a second per GB, once per data set.
        """
        sha = hashlib.sha256()
        for split in (Split(self.images, self.labels), self.official_test):
            for tensor in (split.images, split.labels) if split else ():
                sha.update(f"{tuple(tensor.shape)} {tensor.dtype} ".encode())
                sha.update(tensor.cpu().contiguous().numpy().data)
        return sha.hexdigest()[:12]


@dataclass(frozen=True)
class Splits:
    """Disjoint splits of one data set, drawn by a seed."""

    train: Split
    val: Split
    test: Split

    def named(self, name: str) -> Split:
        """The one that a trial is evaluated on: `"val"` or `"test"`."""
        return {"val": self.val, "test": self.test}[name]


@dataclass(frozen=True)
class Request:
    """What a loader is asked for.

    Attributes:
        folder: Where the files are, or None for where they usually are.
        path: What follows the colon of `imagefolder:PATH`.
        image_size: Side in pixels that images of any size are brought to, or None for the loader's own.
        official_test: Whether the published test split is wanted as well.
    """

    folder: Path | None = None
    path: Path | None = None
    image_size: int | None = None
    official_test: bool = False


def download_folder() -> Path:
    """Where downloads go that no `--data-dir` was given for."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "varloss-bench"


def as_float(images: Tensor) -> Tensor:
    """Images as float32 in [0, 1]; floats as they are."""
    return images.float() / 255.0 if images.dtype == torch.uint8 else images
