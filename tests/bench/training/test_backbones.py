"""The small net, and timm's models on images they were not made for."""

import pytest
import torch
from torch import nn

from varloss_bench.training import backbones


@pytest.mark.parametrize(
    ("name", "shape", "changed"),
    [
        ("resnet18", (3, 32, 32), "stem: 3x3 convolution of stride 1"),
        ("resnet18", (3, 96, 96), "nothing"),
        ("vit_tiny_patch16_224", (1, 32, 18), "image size 32x18, patches of 2 pixels"),
        ("vit_tiny_patch16_224", (3, 96, 96), "image size 96x96"),
        ("swin_tiny_patch4_window7_224", (3, 32, 32), "image size 32x32"),
    ],
)
def test_models_made_for_another_size_get_that_of_the_images(name, shape, changed):
    backbone = backbones.build(name, shape)
    assert backbone.changed.startswith(changed)
    images = torch.rand(2, *shape, requires_grad=True)
    features = backbone.net(images)
    assert features.shape == (2, backbone.features)
    # Their plain sum is constant if the last layer is a LayerNorm.
    (features * torch.randn_like(features)).sum().backward()
    assert bool((images.grad != 0).any(0).any())


@pytest.mark.parametrize("name", ["convnext_atto", "eva02_tiny_patch14_224"])
def test_images_too_small_for_a_model(name):
    with pytest.raises(
        backbones.BackboneError, match=rf"{name}' cannot process images of shape \(1, 8, 8\).*small.*any size"
    ):
        backbones.build(name, (1, 8, 8))


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "vit_tiny_patch16_224"])
def test_timm_backbones_take_small_images(name):
    backbone = backbones.build(name, (1, 28, 28))
    assert backbone.net(torch.zeros(2, 1, 28, 28)).shape == (2, backbone.features)
    if name == "resnet18":
        assert backbone.net.conv1.stride == (1, 1)
        assert isinstance(backbone.net.maxpool, nn.Identity)
        assert "no max pool" in backbone.changed
    if name.startswith("vit"):
        assert "patches of 3 pixels" in backbone.changed


def test_small_backbone_is_the_one_described():
    backbone = backbones.build("small", (1, 8, 8))
    assert (sum(p.numel() for p in backbone.net.parameters()), backbone.features) == (92896, 512)
    assert backbone.changed == "nothing"


def test_unknown_backbone_names_its_neighbours():
    with pytest.raises(backbones.BackboneError, match=r"unknown backbone 'resnet19'.*resnet18"):
        backbones.build("resnet19", (1, 8, 8))
