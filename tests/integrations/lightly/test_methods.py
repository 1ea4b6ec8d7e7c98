"""The methods of the benchmark table: lightly's constructor signatures, and a few real training steps of each method."""

import inspect

import pytest
import torch
from pytorch_lightning import Trainer
from torch import nn
from torch.utils.data import DataLoader, Dataset

from varloss_lightly import methods

# Warnings of lightly, Lightning and their dependencies during import and use are not about varloss.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`.*"),
    pytest.mark.filterwarnings("ignore:.*isinstance\\(treespec, LeafSpec\\).*"),
]

FEATURES, CLASSES, SAMPLES, BATCH = 8, 4, 24, 8
NAMES = ("simclr", "dcl", "dhel", "mocov2")


class RandomViews(Dataset):
    """Random images in the shape of lightly's batches: (views, target, file name)."""

    def __init__(self, views: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(SAMPLES, views, 3, 8, 8, generator=generator)

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index):
        views = list(self.images[index])
        return (views if len(views) > 1 else views[0]), index % CLASSES, f"{index}.png"


def tiny_backbone() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, FEATURES, 3), nn.BatchNorm2d(FEATURES), nn.ReLU(), nn.AdaptiveAvgPool2d(1))


def build(name: str, **more):
    arguments = {"batch_size_per_device": BATCH, "num_classes": CLASSES}
    model = methods.METHODS[name]["model"]
    # As in lightly's own main.py.
    if {"knn_k", "knn_t"} <= inspect.signature(model.__init__).parameters.keys():
        arguments |= {"knn_k": 3, "knn_t": 0.1}
    if name.startswith("moco"):
        more = {"queue_size": SAMPLES // 2, **more}
    torch.manual_seed(0)
    return model(**arguments, backbone=tiny_backbone(), feature_dim=FEATURES, **more)


def quiet_trainer() -> Trainer:
    return Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )


def fit(model, *, two_loaders: bool) -> Trainer:
    train = DataLoader(RandomViews(2), batch_size=BATCH)
    images = DataLoader(RandomViews(1), batch_size=BATCH)
    trainer = quiet_trainer()
    trainer.fit(model, train, [images, images] if two_loaders else images)
    return trainer


@pytest.mark.parametrize("name", [suffixed for name in NAMES for suffixed in (name, f"{name}_vrn")])
def test_trains_and_validates_in_a_trainer(name):
    model = build(name)
    before = [p.clone() for p in model.backbone.parameters()]
    trainer = fit(model, two_loaders=name.startswith("simclr"))
    assert trainer.global_step == 2 * SAMPLES // BATCH
    assert any(not torch.equal(a, b) for a, b in zip(before, model.backbone.parameters(), strict=True))
    assert torch.isfinite(trainer.callback_metrics["train_loss"])
    suffix = "/dataloader_idx_1" if name.startswith("simclr") else ""
    assert f"val_online_cls_top1{suffix}" in trainer.callback_metrics
    if name.startswith("simclr"):
        assert f"val_knn_top1{suffix}" in trainer.callback_metrics


@pytest.mark.parametrize("name", NAMES)
def test_signatures_start_as_lightlys(name):
    expected = ["self", "batch_size_per_device", "num_classes", *(["knn_k", "knn_t"] if name == "simclr" else [])]
    for entry in (name, f"{name}_vrn"):
        parameters = inspect.signature(methods.METHODS[entry]["model"].__init__).parameters
        assert list(parameters)[: len(expected)] == expected
        extra = list(parameters.values())[len(expected) :]
        assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in extra)


@pytest.mark.parametrize("name", NAMES)
def test_the_default_weight_is_zero_or_three_and_saved_as_a_number(name):
    for suffix, default in (("", 0.0), ("_vrn", 3.0)):
        for given, weight in (({}, default), ({"vrn_weight": 5.0}, 5.0)):
            model = build(f"{name}{suffix}", **given)
            assert model.vrn_weight == model.hparams["vrn_weight"] == model.hparams_initial["vrn_weight"] == weight
            assert model.hparams["num_classes"] == CLASSES
            assert model.hparams.get("queue_size") == (SAMPLES // 2 if name == "mocov2" else None)
            assert "backbone" not in model.hparams


def test_number_of_samples_is_that_of_the_training_set_unless_given():
    model = build("dcl_vrn")
    fit(model, two_loaders=False)
    assert model.regularizer.num_samples == SAMPLES
    model = build("dcl_vrn", num_samples=50_000)
    fit(model, two_loaders=False)
    assert model.regularizer.num_samples == 50_000
    model = build("dcl")
    fit(model, two_loaders=False)
    assert model.regularizer is None


def test_unknown_number_of_samples_is_an_error():
    class Batches:
        def __iter__(self):
            return iter(DataLoader(RandomViews(2), batch_size=BATCH))

        def __len__(self):
            return SAMPLES // BATCH

    with pytest.raises(ValueError, match="num_samples must be given"):
        quiet_trainer().fit(build("simclr_vrn"), Batches())


@pytest.mark.parametrize("name", NAMES)
def test_vrn_changes_the_loss_by_its_own_value_and_nothing_else(name, monkeypatch):
    """The first training loss with VRN is the one without plus the weighted term, on the projections of both views."""
    plain, regularised = build(name), build(f"{name}_vrn", num_samples=SAMPLES)
    seen = []
    forward = regularised.regularizer.forward
    monkeypatch.setattr(regularised.regularizer, "forward", lambda z0, z1: seen.append((z0, z1)) or forward(z0, z1))
    batch = next(iter(DataLoader(RandomViews(2), batch_size=BATCH)))
    losses = []
    for model in (plain, regularised):
        monkeypatch.setattr(model, "log", lambda *_, **__: None)
        monkeypatch.setattr(model, "log_dict", lambda *_, **__: None)
        model.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        torch.manual_seed(1)
        losses.append(model.training_step(batch, 0))
    ((z0, z1),) = seen
    u, v = nn.functional.normalize(z0, dim=1), nn.functional.normalize(z1, dim=1)
    off = ~torch.eye(BATCH, dtype=torch.bool)
    expected = 3.0 * ((u @ v.T)[off] + 1 / (SAMPLES - 1)).square().mean()
    torch.testing.assert_close(losses[1] - losses[0], expected, rtol=1e-4, atol=1e-5)
    # Both sides carry gradient: against momentum keys, which carry none, the term collapses.
    assert z0.requires_grad
    assert z1.requires_grad
    assert not torch.equal(z0, z1)


def test_the_key_encoder_follows_and_is_not_trained():
    model = build("mocov2_vrn", num_samples=SAMPLES)
    start = [p.clone() for p in model.key_backbone.parameters()]
    fit(model, two_loaders=False)
    assert all(not p.requires_grad for p in model.key_backbone.parameters())

    def furthest(net):
        return max(float((a - b).detach().abs().max()) for a, b in zip(start, net.parameters(), strict=True))

    assert 0 < furthest(model.key_backbone) < 0.1 * furthest(model.backbone)


def test_default_backbone_is_a_resnet50_of_2048_features():
    model = methods.DCL(BATCH, CLASSES)
    with torch.no_grad():
        assert model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 2048)
