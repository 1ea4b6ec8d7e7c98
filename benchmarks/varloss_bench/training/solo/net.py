"""Convert between the harness's tensors and solo-learn: images to files, and checkpoints to trained nets."""

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from PIL import Image
from torch import Tensor, nn

from varloss_bench.config import TrialConfig
from varloss_bench.data.types import Source, Split, as_float
from varloss_bench.methods import load
from varloss_bench.training.solo.config import image_side


class ToSolo(nn.Module):
    """(N, 1 or 3, H, W) in [0, 1] -> (N, 3, side, side) in [0, 1]: bicubic, like solo-learn's own resizing."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, images: Tensor) -> Tensor:
        """The images as solo-learn's nets receive them."""
        if images.shape[1] not in (1, 3):
            raise ValueError(f"solo-learn takes images of 1 or 3 channels, got {images.shape[1]}")
        if images.shape[2:] != (self.side, self.side):
            images = nn.functional.interpolate(
                images, size=(self.side, self.side), mode="bicubic", align_corners=False, antialias=True
            ).clamp(0, 1)
        return images.expand(-1, 3, -1, -1)


class SoloEncoder(nn.Module):
    """A net trained by solo-learn: `backbone` (N, C, H, W) -> features, `head` features -> projections."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Projections (N, D) of images."""
        return cast(Tensor, self.head(self.backbone(images)))


def export_images(split: Split, source: Source, folder: Path) -> Path:
    """Write the images of a split as 8-bit PNG files in one subfolder; returns the folder.

    The names sort in the order of the samples. Labels are not written, because training must not use them.
    """
    place = folder / "all"
    place.mkdir(parents=True)
    resize = ToSolo(image_side(source))
    for number, image in enumerate(split.images.cpu()):
        pixels = (resize(as_float(image[None]))[0] * 255).round().to(torch.uint8)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(place / f"{number:06d}.png")
    return folder


def build_backbone(name: str, source: Source) -> nn.Sequential:
    """solo-learn's backbone of that name with fresh weights, on images of the data set."""
    net: nn.Module = load("torchvision.models:get_model")(name, weights=None)
    net.fc = nn.Identity()
    return nn.Sequential(ToSolo(image_side(source)), net)


def rebuild(config: TrialConfig, source: Source, state: Mapping[str, Tensor]) -> SoloEncoder:
    """Backbone and projection head from the `state_dict` of solo-learn's checkpoint.

    Raises:
        RuntimeError: A weight is missing, unexpected or of another shape, so the checkpoint is of another net.
    """
    backbone = build_backbone(config.backbone, source)
    features = int(state["projector.0.weight"].shape[1])
    head = nn.Sequential(
        nn.Linear(features, config.hidden_dim), nn.ReLU(), nn.Linear(config.hidden_dim, config.output_dim)
    )
    for module, prefix in ((backbone[1], "backbone."), (head, "projector.")):
        own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        module.load_state_dict(own)
    return SoloEncoder(backbone, head)
