"""The contrastive methods as LightningModules. They combine encoders, schedule and losses and contain no mathematics."""

import copy
from collections.abc import Callable
from typing import Any, cast

import torch
from lightly.models.modules import MoCoProjectionHead, SimCLRProjectionHead
from lightly.models.utils import update_momentum
from lightly.utils.scheduler import CosineWarmupScheduler
from pytorch_lightning import LightningModule
from torch import Tensor, nn

import varloss
from varloss import functional
from varloss_bench.config import TrialConfig, queue_length
from varloss_bench.methods import METHODS, load
from varloss_bench.training.backbones import Backbone
from varloss_bench.training.errors import TrainingDivergedError


class ContrastiveModule(LightningModule):
    """The common part of all methods: backbone and head, VRN term, optimiser, schedules, and the check for NaN.

    Args:
        config: The trial.
        backbone: A fresh encoder.
        head: A fresh projection head.
        num_samples: Size n of the training split; VRN's target is -1/(n-1).
    """

    def __init__(self, config: TrialConfig, backbone: nn.Module, head: nn.Module, num_samples: int) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.head = head
        # At weight 0 the term is omitted, not multiplied by 0: the baseline is the plain method, also in its speed.
        self.regularizer = (
            varloss.VRNRegularizer(weight=config.weight, num_samples=num_samples, gather_distributed=config.ranks > 1)
            if config.weight
            else None
        )
        self.epoch_losses: list[float] = []
        self._loss_sum = torch.zeros(())
        self._loss_count = 0

    def forward(self, images: Tensor) -> Tensor:
        """Projections (N, D) of images."""
        return cast(Tensor, self.head(self.backbone(images)))

    def encode_views(self, encoder: Callable[[Tensor], Tensor], x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
        """Projections of both views, from one forward pass (BatchNorm sees both views) or from one pass each."""
        if self.config.fused:
            z0, z1 = encoder(torch.cat([x0, x1])).chunk(2)
            return z0, z1
        return encoder(x0), encoder(x1)

    def contrastive_loss(self, x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The method's own loss, and the trained encoder's projections of the two views, between which VRN is taken."""
        raise NotImplementedError

    def own_loss(self, z0: Tensor, z1: Tensor, k0: Tensor, k1: Tensor) -> Tensor:
        """The method's own loss of two views' projections, and of their keys if there is a momentum encoder."""
        raise NotImplementedError

    def vrn_term(self, z0: Tensor, z1: Tensor) -> Tensor:
        """The weighted VRN term of two views' projections by the trained encoder."""
        assert self.regularizer is not None
        return cast(Tensor, self.regularizer(z0, z1))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """One batch of two views."""
        loss, z0, z1 = self.contrastive_loss(*batch)
        if self.regularizer is not None:
            if self.config.weight_warmup:
                ramp = self.config.weight_warmup * int(self.trainer.estimated_stepping_batches)
                self.regularizer.weight = self.config.weight * min(1.0, self.global_step / ramp)
            loss = loss + self.vrn_term(z0, z1)
        # Summed on the device and read once per epoch, because the host would wait for the GPU at every read.
        self._loss_sum = self._loss_sum.to(loss.device) + loss.detach()
        self._loss_count += 1
        return loss

    def on_train_epoch_end(self) -> None:
        """Store the epoch's mean loss; stop the trial if it is not finite."""
        mean = float(self._loss_sum) / self._loss_count
        if (
            self.config.ranks > 1
        ):  # each rank has the loss of its own rows; all ranks must agree on whether it is finite
            mean = float(
                cast(Tensor, self.trainer.strategy.reduce(self._loss_sum / self._loss_count, reduce_op="mean"))
            )
        self._loss_sum, self._loss_count = torch.zeros(()), 0
        self.epoch_losses.append(mean)
        if not torch.isfinite(torch.tensor(mean)):
            raise TrainingDivergedError(f"mean training loss of epoch {self.current_epoch + 1} is {mean}")

    def configure_optimizers(self) -> Any:
        """SGD with linear warm-up and cosine decay to zero; biases and BatchNorm have no weight decay."""
        trained = [p for module in (self.backbone, self.head) for p in module.parameters()]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in trained if p.ndim > 1]},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.SGD(
            groups,
            lr=self.config.learning_rate,
            momentum=0.9,
            weight_decay=self.config.weight_decay,
        )
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = CosineWarmupScheduler(optimizer, warmup_epochs=int(self.config.warmup * steps), max_epochs=steps)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class TwoViewModule(ContrastiveModule):
    """SimCLR, DCL and DHEL: a loss of the two views' projections, which the row of `METHODS` names."""

    def __init__(self, config: TrialConfig, backbone: Backbone, num_samples: int) -> None:
        head = SimCLRProjectionHead(
            backbone.features, config.hidden_dim, config.output_dim, batch_norm=config.has_head_batch_norm
        )
        super().__init__(config, backbone.net, head, num_samples)
        method = METHODS[config.method]
        assert method.loss is not None, f"{config.method} names no loss of two views"
        negatives = {"negatives": config.negatives or method.negatives} if method.negatives else {}
        self.criterion: nn.Module = load(method.loss)(
            temperature=config.temperature, gather_distributed=config.ranks > 1, **negatives, **method.loss_options
        )

    def contrastive_loss(self, x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The loss of the projections, and the projections."""
        z0, z1 = self.encode_views(self, x0, x1)
        return self.own_loss(z0, z1, z0, z1), z0, z1

    def own_loss(self, z0: Tensor, z1: Tensor, k0: Tensor, k1: Tensor) -> Tensor:
        """The loss of the projections; there are no keys."""
        return cast(Tensor, self.criterion(z0, z1))


class MoCoModule(ContrastiveModule):
    """Symmetric MoCo v2: each view's queries are compared with the other view's momentum keys; negatives are from the queue.

    VRN is taken between the two views' queries, which both carry gradient. Against keys, which carry none, it collapsed in 2
    of 4 runs; `vrn_against="queue"` takes it against the queue nevertheless, for experiments. The keys enter the queue after
    both directions, because the second direction would otherwise find its own samples there. Batches are not shuffled for
    BatchNorm: in one process a shuffle changes nothing, and several processes share their statistics (`fit.make_trainer`).
    """

    def __init__(self, config: TrialConfig, backbone: Backbone, num_samples: int) -> None:
        head = MoCoProjectionHead(
            backbone.features, config.hidden_dim, config.output_dim, batch_norm=config.has_head_batch_norm
        )
        super().__init__(config, backbone.net, head, num_samples)
        self.key_encoder = copy.deepcopy(nn.Sequential(self.backbone, self.head)).requires_grad_(False)
        self.criterion = varloss.QueueInfoNCELoss(
            memory_bank_size=(queue_length(config.queue_size, num_samples), config.output_dim),
            temperature=config.temperature,
            gather_distributed=config.ranks > 1,
        )
        # The queue before this step's keys: (K, D) and (K,). Only for VRN against the queue.
        self._queue_before: tuple[Tensor, Tensor] | None = None

    def contrastive_loss(self, x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean of the two directions."""
        q0, q1 = self.encode_views(self, x0, x1)
        with torch.no_grad():
            update_momentum(self.backbone, self.key_encoder[0], self.config.key_momentum)
            update_momentum(self.head, self.key_encoder[1], self.config.key_momentum)
            k0, k1 = self.encode_views(self.key_encoder, x0, x1)
        loss = self.own_loss(q0, q1, k0, k1)
        if self.config.vrn_against == "queue":
            bank = self.criterion.memory_bank
            self._queue_before = bank.bank.clone(), bank.valid()
        if (
            self.config.ranks > 1
        ):  # one view after the other, so that the order in the queue is that of a single process
            self.criterion.enqueue(k0)
            self.criterion.enqueue(k1)
        else:
            self.criterion.enqueue(torch.cat([k0, k1]))
        return loss, q0, q1

    def own_loss(self, z0: Tensor, z1: Tensor, k0: Tensor, k1: Tensor) -> Tensor:
        """Mean of the two directions."""
        loss: Tensor = (self.criterion(z0, k1, update=False) + self.criterion(z1, k0, update=False)) / 2
        return loss

    def vrn_term(self, z0: Tensor, z1: Tensor) -> Tensor:
        """VRN between the two views' queries or, as an option, the mean over the views of VRN against the queue."""
        if self.config.vrn_against == "queries":
            return super().vrn_term(z0, z1)
        assert self.regularizer is not None
        assert self._queue_before is not None
        queue, valid = self._queue_before
        terms = [
            functional.vrn_queue(z, queue, num_samples=self.regularizer.num_samples, valid=valid) for z in (z0, z1)
        ]
        return self.regularizer.weight * (terms[0] + terms[1]) / 2


def build_module(config: TrialConfig, backbone: Backbone, num_samples: int) -> ContrastiveModule:
    """The module of a trial, with weights drawn from torch's current random state."""
    place = METHODS[config.method].module
    assert place is not None, f"{config.method} is not trained"
    return cast(ContrastiveModule, load(place)(config, backbone, num_samples))
