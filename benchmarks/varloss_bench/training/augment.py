"""Two augmented views of every training image, a whole epoch at once; each sample has its own random parameters."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from kornia import augmentation as K
from torch import Tensor, nn

from varloss_bench.data.loading import Source, Split, as_float
from varloss_bench.measures import MAX_BLOCK_BYTES
from varloss_bench.training.backbones import SMALL_IMAGE

# In pixels; covers two standard deviations of the strongest blur.
BLUR_KERNEL = 9


def build_augmentation(source: Source) -> nn.Module:
    """SimCLR's augmentation for colour images; for grey images transformations that preserve shapes.

    Strengths that depend on the data set are attributes of the source. One call augments many samples, each with its own
    parameters; only the order of brightness, contrast, saturation and hue is the same for all samples of a call.
    """
    return _for_colour(source) if source.images.shape[1] == 3 else _for_grey(source)


def _for_grey(source: Source) -> nn.Module:
    """Rotation, shift, zoom, brightness and contrast, noise, and a mirror image if the data set allows it."""
    steps: list[nn.Module] = [
        K.RandomAffine(
            degrees=source.rotation,
            translate=(0.125, 0.125),
            scale=source.scale,
            p=1.0,
            same_on_batch=False,
        ),
        K.ColorJiggle(brightness=0.3, contrast=0.3, p=0.8, same_on_batch=False),
        K.RandomGaussianNoise(std=0.1, p=0.5, same_on_batch=False),
    ]
    if source.flip:
        steps.insert(0, K.RandomHorizontalFlip(p=0.5, same_on_batch=False))
    return nn.Sequential(*steps)


def _for_colour(source: Source) -> nn.Module:
    """Random resized crop, mirror image, colour jitter, greyscale, blur (SimCLR, arXiv 2002.05709, appendix A).

    Jitter has strength 0.5 (0.4, 0.4, 0.4, 0.1) below 64 pixels, as is usual for CIFAR, and strength 1 from 64 pixels on. Half
    of the views are blurred with a standard deviation of 0.1 to 2 pixels at any size, as in Lee et al.'s configuration files.
    """
    height, width = source.images.shape[2:]
    strength = 0.5 if min(height, width) < SMALL_IMAGE else 1.0
    steps: list[nn.Module] = [
        K.RandomResizedCrop((height, width), scale=source.scale, ratio=(3 / 4, 4 / 3), p=1.0, same_on_batch=False),
        K.ColorJitter(0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength, p=0.8, same_on_batch=False),
        K.RandomGrayscale(p=0.2, same_on_batch=False),
        K.RandomGaussianBlur((BLUR_KERNEL, BLUR_KERNEL), sigma=(0.1, 2.0), p=0.5, same_on_batch=False),
    ]
    if source.flip:
        steps.insert(1, K.RandomHorizontalFlip(p=0.5, same_on_batch=False))
    return nn.Sequential(*steps)


def two_views(images: Tensor, augmentation: nn.Module, seed: int) -> tuple[Tensor, Tensor]:
    """Two independently augmented copies of `images`, which depend on `seed` only.

    The global random state neither affects the augmentations nor changes, so the arms of one seed see the same pixels.
    """
    devices = [images.device] if images.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        torch.manual_seed(seed)
        images = as_float(images)
        views: Tensor = augmentation(torch.cat([images, images]))
    first, second = views.chunk(2)
    return first, second


@dataclass
class TwoViewLoader:
    """Batches ((B, C, H, W), (B, C, H, W)) of two views. One iteration is one epoch in a new order; an incomplete last batch is dropped.

    The order and the augmentations of epoch e depend on (seed, e) only, never on the arm. Each of several ranks gets its part
    of every batch. Every rank augments the whole batch, so the pixels do not depend on the number of ranks.
    """

    split: Split
    augmentation: nn.Module
    batch_size: int
    seed: int
    epoch: int = 0
    max_block_bytes: int = MAX_BLOCK_BYTES
    rank: int = 0
    ranks: int = 1

    def __post_init__(self) -> None:
        """Raise `ValueError` for a batch size or rank out of range."""
        if not 2 <= self.batch_size <= len(self.split):
            raise ValueError(f"batch_size must be from 2 to the {len(self.split)} samples, got {self.batch_size}")
        if self.batch_size % self.ranks or not 0 <= self.rank < self.ranks:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of the {self.ranks} ranks, or there is no rank {self.rank}"
            )

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.split) // self.batch_size

    @property
    def block(self) -> int:
        """Number of images augmented at once: as many whole batches as fit into `max_block_bytes`, at least one."""
        # The factor is for affine warps, which hold a few copies of both views. The copies are floats for any type of images.
        per_sample = 8 * self.split.images[0].numel() * torch.float32.itemsize
        return max(1, self.max_block_bytes // per_sample // self.batch_size) * self.batch_size

    def order(self, epoch: int) -> Tensor:
        """Order of the samples in an epoch."""
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, epoch))
        return torch.randperm(len(self.split), generator=generator)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch."""
        epoch, self.epoch = self.epoch, self.epoch + 1
        images = self.split.images
        order = self.order(epoch).to(images.device)[: len(self) * self.batch_size]
        for number, part in enumerate(torch.split(order, self.block)):
            seed = epoch_seed(self.seed, epoch, number)
            first, second = two_views(images[part], self.augmentation, seed)
            share = self.batch_size // self.ranks
            mine = slice(self.rank * share, (self.rank + 1) * share)
            for view0, view1 in zip(
                torch.split(first, self.batch_size), torch.split(second, self.batch_size), strict=True
            ):
                yield view0[mine], view1[mine]


def epoch_seed(seed: int, epoch: int, block: int = 0) -> int:
    """A separate seed for each block of each epoch of each trial seed, unique below 10^4 epochs and blocks.

    Epochs of training are below `MAX_EPOCHS`, which is the epoch of the evaluation.
    """
    return (seed + 1) * 10**8 + epoch * 10**4 + block
