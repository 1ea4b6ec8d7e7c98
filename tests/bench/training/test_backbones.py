"""timm's models on images they were not made for."""

import pytest
import torch

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
    # Their plain sum is constant where the last layer is a LayerNorm.
    (features * torch.randn_like(features)).sum().backward()
    assert bool((images.grad != 0).any(0).any())


@pytest.mark.parametrize("name", ["convnext_atto", "eva02_tiny_patch14_224"])
def test_images_too_small_for_a_model(name):
    with pytest.raises(
        backbones.BackboneError, match=rf"{name}' cannot take images of shape \(1, 8, 8\).*any size.*small"
    ):
        backbones.build(name, (1, 8, 8))
