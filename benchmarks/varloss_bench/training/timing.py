"""The speed of a trial's training and the share of the loss in it. It is recorded and does not affect the trial's numbers."""

import time
from statistics import median

import torch
from torch import Tensor, nn

from varloss_bench.config import TrialConfig
from varloss_bench.training.augment import TwoViewLoader, two_views
from varloss_bench.training.modules import ContrastiveModule

# The loss is timed this often, or for this many seconds: at N = 4096 on a CPU one pass takes seconds.
_REPEATS, _MAX_SECONDS = 9, 1.0
# Number of images that the augmentation is timed on, in one call as in training; fewer if training augments fewer at once.
_AUGMENTED = 512


def of_training(
    module: ContrastiveModule, loader: TwoViewLoader, config: TrialConfig, steps: int, train_seconds: float
) -> dict[str, float]:
    """The speed of a finished training as plain values for the record.

    Images per second count each training image once, although two views of it are encoded. A step includes augmentation, both
    views, loss, backward pass and optimiser. With several ranks the loss is not timed, because it waits for the other ranks.
    """
    found = {
        "seconds_per_step": train_seconds / steps,
        "images_per_second": steps * config.batch_size / train_seconds,
        "augmented_images_per_second": augmented_images_per_second(loader),
    }
    if config.ranks == 1:
        seconds = loss_seconds(module, config)
        found |= {"loss_seconds": seconds, "loss_share": seconds / found["seconds_per_step"]}
    return found


def augmented_images_per_second(loader: TwoViewLoader) -> float:
    """Images per second of the augmentation alone; both views of an image count once."""
    images = loader.split.images[: min(_AUGMENTED, loader.block)]
    return len(images) / augmentation_seconds(images, loader.augmentation)


def augmentation_seconds(images: Tensor, augmentation: nn.Module) -> float:
    """Seconds to augment both views of all these images in one call."""
    for _ in range(2):  # the first call pays for lazy imports and allocation
        _wait(images.device)
        started = time.perf_counter()
        two_views(images, augmentation, seed=0)
        _wait(images.device)
        seconds = time.perf_counter() - started
    return seconds


def loss_seconds(module: ContrastiveModule, config: TrialConfig) -> float:
    """Median seconds of loss and VRN, forward and backward to the projections, at the trial's batch size.

    The inputs are random unit vectors from a separate generator. The time does not depend on the values.
    """
    parameter = next(module.parameters())
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2 * config.batch_size, config.output_dim, generator=generator)
    views = nn.functional.normalize(rows, dim=1).to(parameter.device).chunk(2)
    seconds: list[float] = []
    started = time.perf_counter()
    while not seconds or (len(seconds) <= _REPEATS and time.perf_counter() - started < _MAX_SECONDS):
        seconds.append(_once(module, *views))
    # The first pass pays for lazy imports and allocation.
    return median(seconds[1:] or seconds)


def _once(module: ContrastiveModule, *views: Tensor) -> float:
    z0, z1 = (view.detach().clone().requires_grad_() for view in views)
    _wait(z0.device)
    started = time.perf_counter()
    loss = module.own_loss(z0, z1, z0.detach(), z1.detach())
    if module.regularizer is not None:
        loss = loss + module.vrn_term(z0, z1)
    torch.autograd.backward(loss)
    _wait(z0.device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
