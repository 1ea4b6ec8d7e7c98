"""SimCLR, DCL, DHEL and MoCo v2, each with and without VRN, in the shape of lightly's ImageNet benchmark table.

``METHODS`` has the entries ``{name: {"model": LightningModule class, "transform": transform}}`` that lightly's
``benchmarks/imagenet/resnet50/main.py`` iterates over, and the models take the arguments that it passes, so that
``METHODS.update(varloss_lightly.methods.METHODS)`` there adds them to the table. This module imports lightly, pytorch_lightning
and torchvision; the rest of the package does not.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from lightly.models.modules import MoCoProjectionHead, SimCLRProjectionHead
from lightly.models.utils import batch_shuffle, batch_unshuffle, get_weight_decay_parameters, update_momentum
from lightly.transforms import MoCoV2Transform, SimCLRTransform
from lightly.utils.benchmarking import KNNClassifier, OnlineLinearClassifier
from lightly.utils.lars import LARS
from lightly.utils.scheduler import CosineWarmupScheduler
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torchvision.models import resnet50

from varloss_lightly.losses import DCLLoss, DHELLoss, NTXentLoss, VRNRegularizer

Batch = tuple[Sequence[Tensor], Tensor, Sequence[str]]

QUEUE_SIZE = 65536
KEY_MOMENTUM = 0.999
PROJECTION_DIM = 128


class _OnlineKNN(KNNClassifier):  # type: ignore[misc]  # lightly's classes are untyped here
    """lightly's kNN classifier inside another LightningModule, which logs what this one returns.

    The classifier of lightly 1.6.0 also logs by itself. Lightning refuses this for a module that the Trainer does not drive.
    """

    def log_dict(self, *arguments: Any, **options: Any) -> None:
        """Log nothing."""


class _Method(LightningModule):
    """What the methods share: constructor, online linear classifier, and VRN if its weight is not 0."""

    default_vrn_weight: ClassVar[float] = 0.0
    head: ClassVar[type[nn.Module]] = SimCLRProjectionHead

    def __init__(
        self,
        batch_size_per_device: int,
        num_classes: int,
        *,
        backbone: nn.Module | None = None,
        feature_dim: int = 2048,
        vrn_weight: float | None = None,
        num_samples: int | None = None,
    ) -> None:
        super().__init__()
        self.vrn_weight = self.default_vrn_weight if vrn_weight is None else vrn_weight
        # Lightning collects the arguments of subclasses too. The weight is saved as a number, even if it is the default.
        self.save_hyperparameters(ignore=["backbone"])
        self.save_hyperparameters({"vrn_weight": self.vrn_weight})
        self.batch_size_per_device = batch_size_per_device
        self.backbone = _resnet50() if backbone is None else backbone
        # Top-5 accuracy needs at least five classes.
        self.topk = tuple(sorted({1, min(5, num_classes)}))
        self.online_classifier = OnlineLinearClassifier(feature_dim, num_classes, topk=self.topk)
        self.regularizer = None if not self.vrn_weight or num_samples is None else self._made_for(num_samples)
        self.projection_head = self.head(feature_dim, output_dim=PROJECTION_DIM)
        self.criterion = self.make_criterion()

    def make_criterion(self) -> nn.Module:
        """The contrastive loss, without VRN."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, feature_dim) of images."""
        features: Tensor = self.backbone(x)
        return features.flatten(start_dim=1)

    def on_train_start(self) -> None:
        """Take the number of samples from the training data if it was not given."""
        if not self.vrn_weight or self.regularizer is not None:
            return
        dataset: Any = getattr(self.trainer.train_dataloader, "dataset", None)
        if not hasattr(dataset, "__len__"):
            raise ValueError(
                "num_samples must be given: its default is the length of the training DataLoader's dataset, "
                f"and {type(dataset).__name__} has none."
            )
        self.regularizer = self._made_for(len(dataset))

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor | None:
        """Online linear classification of (images, targets, file names)."""
        images, targets = batch[0], batch[1]
        loss: Tensor
        loss, logged = self.online_classifier.validation_step((self(images), targets), batch_idx)
        self.log_dict(logged, prog_bar=True, sync_dist=True, batch_size=len(targets))
        return loss

    def _made_for(self, num_samples: int) -> VRNRegularizer:
        return VRNRegularizer(self.vrn_weight, gather_distributed=True, num_samples=num_samples)

    def _finish_step(self, loss: Tensor, features: Tensor, targets: Tensor, batch_idx: int) -> Tensor:
        """Log the loss and add the online classifier's loss, which sends no gradient to the features."""
        self.log("train_loss", loss, prog_bar=True, sync_dist=True, batch_size=self.batch_size_per_device)
        online_loss: Tensor
        online_loss, logged = self.online_classifier.training_step((features.detach(), targets), batch_idx)
        self.log_dict(logged, sync_dist=True, batch_size=self.batch_size_per_device)
        return loss + online_loss

    def _parameter_groups(self) -> list[dict[str, Any]]:
        decayed, other = get_weight_decay_parameters([self.backbone, self.projection_head])
        return [
            {"name": "method", "params": decayed},
            {"name": "method_no_weight_decay", "params": other, "weight_decay": 0.0},
            {"name": "online_classifier", "params": self.online_classifier.parameters(), "weight_decay": 0.0},
        ]

    def _with_schedule(self, optimizer: torch.optim.Optimizer, warmup_epochs: int) -> Any:
        steps = int(self.trainer.estimated_stepping_batches)
        # At most half of the run, because the scheduler refuses a warm-up longer than the run; a trial run can be shorter than 10 epochs.
        warmup = min(steps * warmup_epochs // max(1, self.trainer.max_epochs or 1), steps // 2)
        scheduler = CosineWarmupScheduler(optimizer, warmup_epochs=warmup, max_epochs=steps)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class _TwoView(_Method):
    """Methods whose loss sees two views' projections and takes its negatives from the batch (SimCLR's recipe)."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One batch of ((view, view), targets, file names), both views in one forward pass."""
        views, targets = batch[0], batch[1]
        features = self(torch.cat(list(views)))
        z0, z1 = self.projection_head(features).chunk(2)
        loss: Tensor = self.criterion(z0, z1)
        if self.regularizer is not None:
            loss = loss + self.regularizer(z0, z1)
        return self._finish_step(loss, features, targets.repeat(2), batch_idx)

    def configure_optimizers(self) -> Any:
        """LARS, learning rate proportional to the square root of the global batch size, 10 epochs of warm-up, cosine."""
        rate = 0.075 * math.sqrt(self.batch_size_per_device * self.trainer.world_size)
        optimizer = LARS(self._parameter_groups(), lr=rate, momentum=0.9, weight_decay=1e-6)
        return self._with_schedule(optimizer, warmup_epochs=10)


class SimCLR(_TwoView):
    """SimCLR with lightly's online kNN. Its validation takes two loaders, training images first.

    Args:
        batch_size_per_device: decides the learning rate, together with the number of devices.
        num_classes: number of classes of the online classifiers.
        knn_k: neighbours of the online kNN classifier.
        knn_t: temperature of the online kNN classifier.
        backbone: maps images to features that flatten to (N, ``feature_dim``); by default a fresh ResNet-50.
        feature_dim: width of the features.
        vrn_weight: factor on VRN; 0 switches it off. The default is 0 here and 3 in the classes whose names end in VRN.
        num_samples: size of the training set; by default the length of the training loader's dataset.
    """

    def __init__(
        self,
        batch_size_per_device: int,
        num_classes: int,
        knn_k: int,
        knn_t: float,
        *,
        backbone: nn.Module | None = None,
        feature_dim: int = 2048,
        vrn_weight: float | None = None,
        num_samples: int | None = None,
    ) -> None:
        super().__init__(
            batch_size_per_device,
            num_classes,
            backbone=backbone,
            feature_dim=feature_dim,
            vrn_weight=vrn_weight,
            num_samples=num_samples,
        )
        self.knn_classifier = _OnlineKNN(
            model=None,
            num_classes=num_classes,
            knn_k=knn_k,
            knn_t=knn_t,
            train_dataloader_idx=0,
            val_dataloader_idx=1,
            topk=self.topk,
        )

    def make_criterion(self) -> NTXentLoss:
        """NT-Xent."""
        return NTXentLoss(temperature=0.1, gather_distributed=True)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor | None:
        """Loader 0 fills the kNN's bank; the images of loader 1 are classified."""
        images, targets = batch[0], batch[1]
        features = self(images)
        logged = self.knn_classifier.validation_step((features.detach(), targets), batch_idx, dataloader_idx)
        if dataloader_idx == 0:
            return None
        loss: Tensor
        loss, online = self.online_classifier.validation_step((features, targets), batch_idx)
        self.log_dict({**logged, **online}, prog_bar=True, sync_dist=True, batch_size=len(targets))
        return loss

    def on_validation_epoch_end(self) -> None:
        """Empty the kNN's bank."""
        self.knn_classifier.reset_storage()


class SimCLRVRN(SimCLR):
    """:class:`SimCLR` plus VRN of the two views' projections, with weight 3 by default."""

    default_vrn_weight = 3.0


class DCL(_TwoView):
    """DCL: SimCLR's recipe without the positive pair in the denominator. Arguments as in :class:`SimCLR`."""

    def make_criterion(self) -> DCLLoss:
        """NT-Xent without the positive pair in the denominator."""
        return DCLLoss(temperature=0.1, gather_distributed=True)


class DCLVRN(DCL):
    """:class:`DCL` plus VRN of the two views' projections, with weight 3 by default."""

    default_vrn_weight = 3.0


class DHEL(_TwoView):
    """DHEL: SimCLR's recipe with within-view negatives only, decoupled. Arguments as in :class:`SimCLR`."""

    def make_criterion(self) -> DHELLoss:
        """Decoupled, with within-view negatives."""
        return DHELLoss(temperature=0.1, gather_distributed=True)


class DHELVRN(DHEL):
    """:class:`DHEL` plus VRN of the two views' projections, with weight 3 by default."""

    default_vrn_weight = 3.0


class MoCoV2(_Method):
    """MoCo v2 as lightly benchmarks it: one direction; view 1 is the query and view 0 the key.

    With VRN, view 0 goes through the query encoder too, and VRN is taken between the two views' query projections. It is never
    taken between queries and keys: keys carry no gradient, and VRN against them collapsed in 2 of our 4 small runs. The
    contrastive loss is the same with and without VRN. The second query adds about half to the cost of a step.

    Args:
        batch_size_per_device: decides the learning rate, together with the number of devices.
        num_classes: number of classes of the online classifier.
        backbone: as in :class:`SimCLR`.
        feature_dim: width of the features.
        queue_size: keys in the memory bank; at most half of the training set, so that no anchor meets its own key.
        vrn_weight: as in :class:`SimCLR`.
        num_samples: as in :class:`SimCLR`.
    """

    head = MoCoProjectionHead

    def __init__(
        self,
        batch_size_per_device: int,
        num_classes: int,
        *,
        backbone: nn.Module | None = None,
        feature_dim: int = 2048,
        queue_size: int = QUEUE_SIZE,
        vrn_weight: float | None = None,
        num_samples: int | None = None,
    ) -> None:
        super().__init__(
            batch_size_per_device,
            num_classes,
            backbone=backbone,
            feature_dim=feature_dim,
            vrn_weight=vrn_weight,
            num_samples=num_samples,
        )
        self.key_backbone = copy.deepcopy(self.backbone).requires_grad_(False)
        self.key_projection_head = copy.deepcopy(self.projection_head).requires_grad_(False)

    def make_criterion(self) -> NTXentLoss:
        """InfoNCE against a memory bank."""
        size = (self.hparams["queue_size"], PROJECTION_DIM)
        return NTXentLoss(temperature=0.2, memory_bank_size=size, gather_distributed=True)

    @torch.no_grad()
    def encode_keys(self, x: Tensor) -> Tensor:
        """Key projections (N, D); images are shuffled across devices so that BatchNorm does not reveal the pairing."""
        several = self.trainer.num_devices > 1
        shuffled, order = batch_shuffle(batch=x, distributed=several)
        keys = self.key_projection_head(self.key_backbone(shuffled).flatten(start_dim=1))
        unshuffled: Tensor = batch_unshuffle(batch=keys, shuffle=order, distributed=several)
        return unshuffled

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One batch of ((view, view), targets, file names)."""
        views, targets = batch[0], batch[1]
        features = self(views[1])
        query = self.projection_head(features)
        update_momentum(self.backbone, self.key_backbone, m=KEY_MOMENTUM)
        update_momentum(self.projection_head, self.key_projection_head, m=KEY_MOMENTUM)
        loss: Tensor = self.criterion(query, self.encode_keys(views[0]))
        if self.regularizer is not None:
            loss = loss + self.regularizer(self.projection_head(self(views[0])), query)
        return self._finish_step(loss, features, targets, batch_idx)

    def configure_optimizers(self) -> Any:
        """SGD, learning rate proportional to the global batch size, cosine without warm-up."""
        rate = 0.03 * self.batch_size_per_device * self.trainer.world_size / 256
        optimizer = torch.optim.SGD(self._parameter_groups(), lr=rate, momentum=0.9, weight_decay=1e-4)
        return self._with_schedule(optimizer, warmup_epochs=0)


class MoCoV2VRN(MoCoV2):
    """:class:`MoCoV2` plus VRN between two query-encoder views, with weight 3 by default."""

    default_vrn_weight = 3.0


def _resnet50() -> nn.Module:
    net: nn.Module = resnet50()
    net.fc = nn.Identity()
    return net


_SIMCLR_TRANSFORM, _MOCO_TRANSFORM = SimCLRTransform(), MoCoV2Transform()

METHODS: dict[str, dict[str, Any]] = {
    "simclr": {"model": SimCLR, "transform": _SIMCLR_TRANSFORM},
    "simclr_vrn": {"model": SimCLRVRN, "transform": _SIMCLR_TRANSFORM},
    "dcl": {"model": DCL, "transform": _SIMCLR_TRANSFORM},
    "dcl_vrn": {"model": DCLVRN, "transform": _SIMCLR_TRANSFORM},
    "dhel": {"model": DHEL, "transform": _SIMCLR_TRANSFORM},
    "dhel_vrn": {"model": DHELVRN, "transform": _SIMCLR_TRANSFORM},
    "mocov2": {"model": MoCoV2, "transform": _MOCO_TRANSFORM},
    "mocov2_vrn": {"model": MoCoV2VRN, "transform": _MOCO_TRANSFORM},
}
