"""Backbones: the small default net, and any timm model, adapted to small images."""

import difflib
from dataclasses import dataclass
from importlib import import_module

import torch
from torch import Tensor, nn

# Below this side length an ImageNet stem (7x7 stride 2 and a max pool) throws away most of the image.
SMALL_IMAGE = 64
_ANY_SIZE = "'small', resnet18 and vit_tiny_patch16_224 accept images of any size"


class BackboneError(ValueError):
    """The backbone does not exist or cannot process these images."""


@dataclass(frozen=True)
class Backbone:
    """An encoder (N, C, H, W) -> (N, features).

    Attributes:
        features: Width of its output.
        changed: Description of the changes to the model of that name; recorded with every trial.
    """

    net: nn.Module
    features: int
    changed: str


def small_net(channels: int) -> nn.Module:
    """Three 3x3 convolutions (32, 64, 128) with BatchNorm, 93k parameters, pooled to 2 x 2: 512 features.

    It is pooled to 2 x 2, because with a global average the features of grey-scale shapes are worse than raw pixels.
    """

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]

    return nn.Sequential(
        *block(channels, 32),
        nn.MaxPool2d(2),
        *block(32, 64),
        nn.MaxPool2d(2),
        *block(64, 128),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
    )


def build(name: str, image_shape: tuple[int, int, int]) -> Backbone:
    """Build a backbone with fresh weights from torch's current random state.

    Args:
        name: `"small"` or a timm model name. timm models start untrained, without a classifier; on images below 64 pixels
            a ResNet-like stem becomes a 3x3 convolution of stride 1 without max pool, and a vision transformer gets the
            image's size and patches of an eighth of it. Other models with a fixed image size get the size of the images.
        image_shape: (C, H, W) of the images.

    Raises:
        BackboneError: The name is unknown, or the model cannot process such images.
    """
    if name == "small":
        return _checked(name, small_net(image_shape[0]), image_shape, "nothing")
    timm = import_module("timm")  # its import takes seconds and the default run does not need it

    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models())
        hint = f"; close to it: {', '.join(close)}" if close else ""
        raise BackboneError(f"unknown backbone {name!r}: neither 'small' nor a model of timm {timm.__version__}{hint}")
    channels, height, width = image_shape
    is_small = min(height, width) < SMALL_IMAGE
    options: dict[str, object] = {}
    changed = "nothing"
    if is_small and name.startswith(("vit_", "deit_")):
        options = {"img_size": (height, width), "patch_size": max(1, min(height, width) // 8)}
        changed = f"image size {height}x{width}, patches of {options['patch_size']} pixels"
    net = _create(name, image_shape, options)
    stem = getattr(net, "conv1", None)
    if is_small and isinstance(stem, nn.Conv2d) and isinstance(getattr(net, "maxpool", None), nn.Module):
        net.conv1 = nn.Conv2d(channels, stem.out_channels, 3, stride=1, padding=1, bias=stem.bias is not None)
        net.maxpool = nn.Identity()
        changed = "stem: 3x3 convolution of stride 1 in place of the strided one, no max pool"
    try:
        return _checked(name, net, image_shape, changed)
    except BackboneError as error:
        # Many transformers have a fixed image size, which can be set. They fail if it is wrong.
        if options or not isinstance(error.__cause__, AssertionError):
            raise
    return _checked(
        name, _create(name, image_shape, {"img_size": (height, width)}), image_shape, f"image size {height}x{width}"
    )


def _create(name: str, image_shape: tuple[int, int, int], options: dict[str, object]) -> nn.Module:
    timm = import_module("timm")

    try:
        net: nn.Module = timm.create_model(name, pretrained=False, num_classes=0, in_chans=image_shape[0], **options)
    except Exception as error:  # timm's models raise various exceptions; each means that the model does not fit
        shown = "x".join(map(str, image_shape))
        raise BackboneError(f"timm cannot build {name!r} for images of {shown}: {error}. {_ANY_SIZE}") from error
    return net


def _checked(name: str, net: nn.Module, image_shape: tuple[int, int, int], changed: str) -> Backbone:
    """Run the net on two images, so that a net that does not fit fails before the sweep starts."""
    try:
        with torch.no_grad():
            out: Tensor = net.eval()(torch.zeros(2, *image_shape))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise BackboneError(
            f"backbone {name!r} cannot process images of shape {image_shape}: {error}. {_ANY_SIZE}"
        ) from error
    if out.ndim != 2:
        raise BackboneError(f"backbone {name!r} returns features of shape {tuple(out.shape)} for 2 images, need (2, D)")
    return Backbone(net.train(), out.shape[1], changed)
