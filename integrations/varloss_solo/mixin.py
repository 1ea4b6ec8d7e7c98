"""Mixins in front of a solo-learn method: one adds VRN to its loss, one replaces SimCLR's loss by the NT-Xent family.

They override methods and register no hooks, because hooks on a submodule's forward do not survive DDP's wrapping. They add
no parameter and no buffer, so checkpoints are those of the plain method.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from omegaconf import OmegaConf
from torch import Tensor

from varloss import distributed, functional
from varloss_solo import methods, plan
from varloss_solo.term import QueueImages, Term

if TYPE_CHECKING:
    from torch import nn

    class _Method(nn.Module):
        """The part of solo-learn's BaseMethod, a LightningModule, that the mixins use."""

        cfg: Any
        trainer: Any
        num_classes: int
        temperature: float
        queue: Tensor
        queue_ptr: Tensor

        def __init__(self, cfg: Any) -> None: ...
        def all_gather(self, data: Tensor) -> Tensor: ...
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any: ...
        def on_fit_start(self) -> None: ...
        def on_train_epoch_end(self) -> None: ...
        def training_step(self, batch: Any, batch_idx: int) -> Any: ...
        def momentum_forward(self, X: Tensor) -> dict[str, Any]: ...
        def log_dict(self, dictionary: dict[str, Tensor], **options: bool) -> None: ...

else:
    _Method = object

COLLAPSED_MEAN = 0.9


class VRNMixin(_Method):
    """Adds ``weight`` times VRN to the loss of the method behind it and logs the similarities that VRN acts on.

    It logs ``train_vrn`` (without its weight), ``train_sim_positive_mean``, ``train_sim_negative_mean``,
    ``train_sim_negative_var`` (negatives are cross-view pairs of different images in the batch of one rank) and, with a
    warm-up, ``train_vrn_weight``. Lightning adds its suffixes for ``on_step`` and ``on_epoch``.

    Without settings in the configuration nothing is computed, logged or printed.
    """

    varloss_method: ClassVar[str]
    """solo-learn's name of the method behind the mixin."""

    def __init__(self, cfg: Any) -> None:
        # dcl, dhel and nt_xent share simclr's class; only the configuration has their names.
        asked = cfg.method if cfg.method in methods.OBJECTIVES else self.varloss_method
        decided = plan.make(cfg, asked)
        super().__init__(cfg)
        self._varloss_plan = decided
        self._varloss_term: Term | None = None
        # Without indices in its labels DALI numbers the rows of every batch alike.
        made_up = OmegaConf.select(cfg, "data.format") == "dali" and not OmegaConf.select(
            cfg, "dali.encode_indexes_into_labels", default=False
        )
        self._varloss_index_is_real = not made_up
        self._varloss_distinct = False
        self._varloss_queue_images: QueueImages | None = None
        self._varloss_warned = False
        self._varloss_online: list[dict[str, Any]] = []
        self._varloss_momentum: list[dict[str, Any]] = []

    def forward(self, X: Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The method's forward, remembered while a training step runs."""
        out: dict[str, Any] = super().forward(X, *args, **kwargs)
        if self.training and self._varloss_term is not None:
            self._varloss_online.append(out)
        return out

    def momentum_forward(self, X: Tensor) -> dict[str, Any]:
        """The method's momentum forward, remembered while a training step runs."""
        out = super().momentum_forward(X)
        if self.training and self._varloss_term is not None:
            self._varloss_momentum.append(out)
        return out

    def on_fit_start(self) -> None:
        """Finds n and the length of the warm-up; rank 0 prints what the run will do, before a progress bar has the line."""
        super().on_fit_start()
        self._varloss_queue_images = None  # of another queue by now
        decided = self._varloss_plan
        if decided.vrn is not None:
            self.trainer.fit_loop.setup_data()
            if self.trainer.train_dataloader is None:  # no batch of it is wanted (limit_train_batches=0)
                return
            self._varloss_term = Term.start(decided.vrn, self.trainer, self.num_classes)
        line = decided.describe(None if self._varloss_term is None else self._varloss_term.describe())
        if line is not None and self.trainer.is_global_zero:
            # Printed, since solo-learn's configurations disable Hydra's logging.
            print(f"varloss: {line}", flush=True)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Looks for an image that is twice in the batch while its indices are on the host: on the device it would have to wait."""
        if self.training and self._varloss_term is not None:
            index = batch[0]
            self._varloss_distinct = index.device.type == "cpu" and len(index.unique()) == len(index)
        return super().on_before_batch_transfer(batch, dataloader_idx)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """The method's step, plus weighted VRN of the projections that it computed."""
        decided, term = self._varloss_plan.vrn, self._varloss_term
        if decided is None:
            return super().training_step(batch, batch_idx)
        if term is None:
            raise RuntimeError("varloss: training_step ran before on_fit_start, which finds the number of samples.")
        online, momentum = self._varloss_online, self._varloss_momentum
        online.clear()
        momentum.clear()
        images = batch[0] if self._varloss_index_is_real else None
        if decided.between == "queue":
            # The step enqueues its own keys, which are not negatives of its queries.
            queue, pointer = self.queue.clone(), self.queue_ptr.clone()
        loss = super().training_step(batch, batch_idx)
        if len(online) != 2:
            raise RuntimeError(
                f"varloss: expected forward passes of 2 large crops in a training step; saw {len(online)}."
            )
        repeated = None if self._varloss_distinct else images
        with torch.set_grad_enabled(decided.weight > 0):
            pairs = term.pairs(online, momentum)
            if decided.between == "queue":
                own = self._varloss_own_keys(images, pointer)
                value = term.against_queue(pairs, queue, self.trainer.fit_loop.epoch_loop.total_batch_idx, own)
            elif decided.spec.labels:
                value = term.between_views(pairs, batch[-1])
            elif distributed.world_size() > 1:
                value = term.between_views(pairs, images if term.ranks_share else None)
            else:
                value = term.between_views(pairs, repeated)
        online.clear()
        momentum.clear()
        weight = term.weight_at(self.trainer.global_step)
        self.log_dict(term.logged(value, pairs, repeated, weight), on_epoch=True, sync_dist=True)
        # Adding 0 * VRN would not change the value but would cost a backward pass.
        return loss + weight * value if decided.weight > 0 else loss

    def _varloss_own_keys(self, images: Tensor | None, pointer: Tensor) -> Tensor | None:
        """Rows and keys of one image in the queue of before this step, whose keys start at ``pointer``; None if not known."""
        if images is None:
            return None
        if self._varloss_queue_images is None:
            self._varloss_queue_images = QueueImages(self.queue.shape[2], images.device)
        own = self._varloss_queue_images.own(images)
        self._varloss_queue_images.enqueue(self.all_gather(images).flatten(), pointer)
        return own

    def on_train_epoch_end(self) -> None:
        """Warns once if an epoch's mean similarity of negatives shows that the embeddings are nearly equal."""
        super().on_train_epoch_end()
        mean = self.trainer.callback_metrics.get("train_sim_negative_mean_epoch")
        if mean is None or self._varloss_warned or not float(mean) > COLLAPSED_MEAN:
            return
        self._varloss_warned = True
        if self.trainer.is_global_zero:
            decided = self._varloss_plan.vrn
            both_sides = decided is not None and decided.between == "views"
            warnings.warn(
                f"varloss: the mean similarity of negative pairs was {float(mean):.3f} over this epoch: the embeddings are "
                "nearly the same, and the small variance of the similarities is not an improvement. A network starts like "
                "this in the first epoch. If it stays, lower varloss.weight or set varloss.warmup_fraction=0.5"
                + ("." if both_sides else ", or take pairs with a gradient on both sides: varloss.between=views."),
                stacklevel=2,
            )


class ObjectiveMixin(_Method):
    """Runs ``nt_xent``, ``dcl`` or ``dhel`` instead of SimCLR's own step if the plan names one."""

    varloss_original: ClassVar[type[Any]]
    """solo-learn's SimCLR."""
    _varloss_plan: plan.Plan

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """SimCLR's step with another loss; ranks share negatives as in SimCLR's own loss."""
        objective = self._varloss_plan.objective
        if objective is None:
            return super().training_step(batch, batch_idx)
        out = super(self.varloss_original, self).training_step(batch, batch_idx)
        z = torch.cat(out["z"])
        crops, rows = len(out["z"]), z.shape[0] // len(out["z"])
        index = batch[0].repeat(crops)
        views = torch.arange(crops, device=z.device).repeat_interleave(rows)
        nce_loss = functional.nt_xent_indexed(
            z,
            index,
            views=views,
            temperature=self.temperature,
            negatives=objective.negatives,
            decoupled=objective.decoupled,
            gathered=distributed.gather_rows(z, index, views),
        )
        self.log_dict({"train_nce_loss": nce_loss}, on_epoch=True, sync_dist=True)
        return nce_loss + out["loss"]
