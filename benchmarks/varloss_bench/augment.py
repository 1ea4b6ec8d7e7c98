"""Two augmented views of every training image, a whole epoch at once, every sample with its own random parameters."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from kornia import augmentation as K
from torch import Tensor, nn

from varloss_bench.data import Source, Split
from varloss_bench.measures import MAX_BLOCK_BYTES


def build_augmentation(source: Source) -> nn.Module:
    """Rotation, shift, zoom, brightness and contrast, noise, and a mirror image where the class survives it.

    Strengths that depend on the data set are attributes of the source. Nothing here is drawn once for a whole batch.
    """
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


def two_views(images: Tensor, augmentation: nn.Module, seed: int) -> tuple[Tensor, Tensor]:
    """Two independently augmented copies of `images`, decided by `seed` alone.

    The global random state is left as it was: what training draws elsewhere cannot shift the augmentations, so the arms
    of one seed see the same pixels.
    """
    devices = [images.device] if images.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        torch.manual_seed(seed)
        views: Tensor = augmentation(torch.cat([images, images]))
    first, second = views.chunk(2)
    return first, second


@dataclass
class TwoViewLoader:
    """Batches ((B, C, H, W), (B, C, H, W)) of two views; one iteration is one epoch in a new order, the last rest dropped.

    The order and the augmentations of epoch e depend on (seed, e) alone, never on the arm.
    """

    split: Split
    augmentation: nn.Module
    batch_size: int
    seed: int
    epoch: int = 0
    max_block_bytes: int = MAX_BLOCK_BYTES

    def __post_init__(self) -> None:
        """Refuse what would give no batch."""
        if not 2 <= self.batch_size <= len(self.split):
            raise ValueError(f"batch_size must be from 2 to the {len(self.split)} samples, got {self.batch_size}")

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.split) // self.batch_size

    def order(self, epoch: int) -> Tensor:
        """Order of the samples in an epoch."""
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, epoch))
        return torch.randperm(len(self.split), generator=generator)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch."""
        epoch, self.epoch = self.epoch, self.epoch + 1
        images = self.split.images[self.order(epoch).to(self.split.images.device)]
        # Affine warps hold a few copies of both views at a time, hence the factor.
        per_sample = 8 * images[0].numel() * images.element_size()
        block = max(1, self.max_block_bytes // per_sample // self.batch_size) * self.batch_size
        for number, part in enumerate(torch.split(images[: len(self) * self.batch_size], block)):
            seed = epoch_seed(self.seed, epoch, number)
            first, second = two_views(part, self.augmentation, seed)
            yield from zip(torch.split(first, self.batch_size), torch.split(second, self.batch_size), strict=True)


def epoch_seed(seed: int, epoch: int, block: int = 0) -> int:
    """A seed of its own for each block of each epoch of each trial seed; they cannot meet below 10^4 epochs and blocks."""
    return (seed + 1) * 10**8 + epoch * 10**4 + block
