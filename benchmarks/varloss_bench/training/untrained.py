"""Rows without training: pixels, and features of a random net. They show what training adds."""

import torch
from torch import Tensor, nn

from varloss_bench.config import TrialConfig
from varloss_bench.data.types import Source, Split, as_float
from varloss_bench.methods import METHODS, load
from varloss_bench.training import backbones, evaluate
from varloss_bench.training.solo import net as solo_net


def features(config: TrialConfig, source: Source, train: Split, held_out: Split) -> tuple[Tensor, Tensor]:
    """Features of the training and held-out images on the CPU, by the function that the row of `METHODS` names."""
    place = METHODS[config.method].features
    assert place is not None, f"{config.method} is trained"
    train_features, held_out_features = load(place)(config, source, train, held_out)
    return train_features.cpu(), held_out_features.cpu()


def raw_pixels(config: TrialConfig, source: Source, train: Split, held_out: Split) -> tuple[Tensor, Tensor]:
    """Pixels of the training and held-out images, averaged to `config.raw_pixels_side` if it is set."""
    return _pixels(train.images, config.raw_pixels_side), _pixels(held_out.images, config.raw_pixels_side)


def random_init(config: TrialConfig, source: Source, train: Split, held_out: Split) -> tuple[Tensor, Tensor]:
    """Features of the untrained backbone, with BatchNorm statistics of the training images.

    Without these statistics BatchNorm does not scale its input, and the random net is a weaker baseline than it can be.
    """
    device = config.device_of(0)
    net = random_net(config, source).to(device)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # a cumulative average over the pass below
    with torch.no_grad():
        for part in torch.split(train.images, evaluate.ENCODE_BATCH):
            net(as_float(part.to(device)))
    return evaluate.encode(net, train.images.to(device)), evaluate.encode(net, held_out.images.to(device))


def random_net(config: TrialConfig, source: Source) -> nn.Module:
    """The trial's backbone with the initial weights of its seed."""
    torch.manual_seed(config.seed)
    channels, height, width = source.images.shape[1:]
    if config.framework == "solo":
        return solo_net.build_backbone(config.backbone, source)
    return backbones.build(config.backbone, (channels, height, width)).net


def _pixels(images: Tensor, side: int | None) -> Tensor:
    """Pixels as features. They are averaged in parts, because all images as floats may not fit into memory."""
    if side is None:
        return as_float(images).flatten(1)
    parts = torch.split(images, evaluate.ENCODE_BATCH)
    return torch.cat([nn.functional.adaptive_avg_pool2d(as_float(part), side).flatten(1) for part in parts])
