"""Mixins that stand in front of a solo-learn method: VRN beside its loss, and the NT-Xent family in SimCLR's place.

They override methods rather than register hooks, since hooks on a submodule's forward do not survive DDP's wrapping, and they
add no parameter and no buffer, so that checkpoints stay those of the plain method.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

import varloss
from varloss import distributed, functional, metrics
from varloss_solo import methods, plan

if TYPE_CHECKING:
    from torch import nn

    class _Method(nn.Module):
        """The part of solo-learn's BaseMethod, a LightningModule, that the mixins stand on."""

        cfg: Any
        trainer: Any
        num_large_crops: int
        num_classes: int
        temperature: float
        queue: Tensor

        def __init__(self, cfg: Any) -> None: ...
        def on_train_start(self) -> None: ...
        def on_train_epoch_end(self) -> None: ...
        def training_step(self, batch: Any, batch_idx: int) -> Any: ...
        def momentum_forward(self, X: Tensor) -> dict[str, Any]: ...
        def log_dict(self, dictionary: dict[str, Tensor], **options: bool) -> None: ...

else:
    _Method = object

COLLAPSED_MEAN = 0.9


class VRNMixin(_Method):
    """Adds ``weight`` times VRN to the loss of the method behind it and logs what VRN is about.

    Logged, each under the names Lightning makes of ``on_step`` and ``on_epoch``: ``train_vrn`` (without its weight),
    ``train_sim_positive_mean``, ``train_sim_negative_mean``, ``train_sim_negative_var`` (negatives are cross-view pairs of
    different images in the batch of one rank) and, with a warm-up, ``train_vrn_weight``.

    Without settings in the configuration nothing is computed, logged or printed.
    """

    varloss_method: ClassVar[str]
    """solo-learn's name of the method behind the mixin."""
    _varloss_term: varloss.VRNRegularizer | None

    def __init__(self, cfg: Any) -> None:
        # dcl, dhel and nt_xent share simclr's class; their name is only in the configuration.
        asked = cfg.method if cfg.method in methods.OBJECTIVES else self.varloss_method
        decided = plan.make(cfg, asked)
        super().__init__(cfg)
        self._varloss_plan = decided
        # Past nn.Module's registration: a submodule, even an empty one, would appear in checkpoints and summaries.
        self.__dict__["_varloss_term"] = None
        self._varloss_warmup_steps = 0
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

    def on_train_start(self) -> None:
        """Finds n and the length of the warm-up, and says on rank 0 what the run will do."""
        super().on_train_start()
        decided = self._varloss_plan
        if decided.between is not None:
            n, source = self._varloss_num_samples()
            self.__dict__["_varloss_term"] = decided.vrn(n, gather_distributed=distributed.world_size() > 1)
            self._varloss_warmup_steps = self._varloss_length_of_warmup()
            line = f"varloss: {self._varloss_describe(n, source)}"
        elif decided.objective is not None:
            line = f"varloss: no VRN; {_describe_objective(decided)}"
        elif decided.settings is not None:
            line = "varloss: off"
        else:
            return
        if self.trainer.is_global_zero:
            print(line, flush=True)  # solo-learn's configurations switch Hydra's logging off

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """The method's step, plus weighted VRN of the projections it computed on the way."""
        self._varloss_online.clear()
        self._varloss_momentum.clear()
        decided, term = self._varloss_plan, self._varloss_term
        if decided.between is None:
            return super().training_step(batch, batch_idx)
        if term is None:
            raise RuntimeError("varloss: training_step ran before on_train_start, which finds the number of samples.")
        # The step enqueues its own keys, which are no negatives of its queries.
        queue = self.queue.clone() if decided.between == "queue" else None
        loss = super().training_step(batch, batch_idx)
        online, momentum = self._varloss_online, self._varloss_momentum
        if len(online) != 2:
            raise RuntimeError(
                f"varloss: expected forward passes of 2 large crops in a training step; saw {len(online)}."
            )
        with torch.set_grad_enabled(decided.weight > 0):
            pairs = self._varloss_pairs(decided.between, online, momentum)
            if queue is not None:
                value = self._varloss_against(queue, term, pairs[0][0], pairs[1][0])
            elif decided.spec.labels:
                value = _between_classes(*pairs[0], batch[-1], term)
            else:
                value = torch.stack([term(a, b) for a, b in pairs]).mean()
        weight = self._varloss_current_weight()
        with torch.no_grad():
            similarities = metrics.similarity_statistics(*(z.detach() for z in pairs[0]))
        logged = {
            "train_vrn": value.detach(),
            "train_sim_positive_mean": similarities.positive_mean,
            "train_sim_negative_mean": similarities.cross_mean,
            "train_sim_negative_var": similarities.cross_var,
        }
        if self._varloss_warmup_steps:
            logged["train_vrn_weight"] = torch.tensor(weight, device=value.device)
        self.log_dict(logged, on_epoch=True, sync_dist=True)
        self._varloss_online.clear()
        self._varloss_momentum.clear()
        # Adding 0 * VRN would leave the value alone and still spend the backward pass.
        return loss + weight * value if decided.weight > 0 else loss

    def on_train_epoch_end(self) -> None:
        """Warns, once, where an epoch's mean similarity of negatives says that the embeddings are all the same."""
        super().on_train_epoch_end()
        mean = self.trainer.callback_metrics.get("train_sim_negative_mean_epoch")
        if mean is None or self._varloss_warned or not float(mean) > COLLAPSED_MEAN:
            return
        self._varloss_warned = True
        if self.trainer.is_global_zero:
            both_sides = self._varloss_plan.between == "views"
            warnings.warn(
                f"varloss: the mean similarity of negative pairs was {float(mean):.3f} over this epoch: the embeddings are "
                "nearly the same, and the small variance of the similarities says nothing. In the first epoch that is how "
                "a network starts; if it stays, lower varloss.weight or set varloss.warmup_fraction=0.5"
                + ("." if both_sides else ", or take pairs with a gradient on both sides: varloss.between=views."),
                stacklevel=2,
            )

    def _varloss_pairs(
        self, between: str, online: list[dict[str, Any]], momentum: list[dict[str, Any]]
    ) -> list[tuple[Tensor, Tensor]]:
        """The pairs of views that VRN takes the mean over; the first also serves the statistics."""
        spec = self._varloss_plan.spec
        first, second = (out[spec.views] for out in online)
        if between == "views":
            return [(first, second)]
        name, source = (spec.targets, online) if between == "targets" else (spec.keys, momentum)
        other = [out[name].detach() for out in source]
        return [(first, other[1]), (second, other[0])]

    def _varloss_against(self, queue: Tensor, term: varloss.VRNRegularizer, first: Tensor, second: Tensor) -> Tensor:
        """VRN of each view's queries against the queue that the method's loss sets them against."""
        # A fresh queue holds random rows. The count of batches survives a checkpoint; the queue has no count of its own.
        rows = first.shape[0] * distributed.world_size()
        filled = self.trainer.fit_loop.epoch_loop.total_batch_idx * rows
        valid = torch.arange(queue.shape[2], device=queue.device) < filled
        return torch.stack(
            [
                functional.vrn_queue(
                    query,
                    keys.T,
                    num_samples=term.num_samples,
                    target=term.target,
                    exponent=term.exponent,
                    valid=valid,
                )
                for query, keys in ((first, queue[1]), (second, queue[0]))
            ]
        ).mean()

    def _varloss_num_samples(self) -> tuple[int | None, str]:
        """The n of the target and where it comes from; None where a target is given."""
        settings, spec = self._varloss_plan.settings, self._varloss_plan.spec
        assert settings is not None
        if settings.target is not None:
            return None, ""
        if settings.num_samples is not None:
            return settings.num_samples, "varloss.num_samples"
        if spec.labels:
            n, source = self.num_classes, "number of classes, which are the samples of a supervised loss"
        else:
            loader, source = self.trainer.train_dataloader, "size of the training set"
            # DALI's loaders have a length in batches and no data set, and solo-learn gives them this attribute.
            n = int(getattr(loader, "dataset_size", 0) or len(loader.dataset))
        if n < 2:
            raise ValueError(f"varloss: VRN needs n >= 2, and the {source} is {n}: set varloss.num_samples.")
        return n, source

    def _varloss_length_of_warmup(self) -> int:
        settings = self._varloss_plan.settings
        assert settings is not None
        total: float = self.trainer.estimated_stepping_batches
        if settings.warmup_steps is not None:
            if settings.warmup_steps > total:
                raise ValueError(
                    f"varloss.warmup_steps={settings.warmup_steps} is longer than the training of {total:g} steps, which "
                    "would never reach the weight: lower it or use varloss.warmup_fraction."
                )
            return settings.warmup_steps
        if settings.warmup_fraction is not None:
            if math.isinf(total):
                raise ValueError("varloss.warmup_fraction needs a training of known length; use varloss.warmup_steps.")
            return max(1, round(settings.warmup_fraction * total))
        return 0

    def _varloss_current_weight(self) -> float:
        weight, steps = self._varloss_plan.weight, self._varloss_warmup_steps
        return weight * min(1.0, self.trainer.global_step / steps) if steps else weight

    def _varloss_describe(self, n: int | None, source: str) -> str:
        """What is on, the weight, n and where it came from, the pairs."""
        decided, term = self._varloss_plan, self._varloss_term
        assert decided.settings is not None
        assert decided.between is not None
        assert term is not None
        aim = f"target={term.target:g} (given)" if n is None else f"n={n} ({source}), target={-1 / (n - 1):.4g}"
        parts = [
            f"VRN {'on' if decided.weight > 0 else 'measured, not added'}",
            f"method={decided.method}",
            f"weight={decided.weight:g}",
            aim,
            f"pairs={decided.settings.pairs} {decided.spec.pair(decided.between)}",
        ]
        if decided.settings.exponent != 2:
            parts.append(f"exponent={decided.settings.exponent:g}")
        if self._varloss_warmup_steps:
            parts.append(f"warm-up over {self._varloss_warmup_steps} steps")
        if distributed.world_size() > 1:
            parts.append(f"over {distributed.world_size()} ranks")
        if decided.objective is not None:
            parts.append(_describe_objective(decided))
        if decided.from_fork:
            parts.append("read from add_vrn_loss_term")
        return ", ".join(parts)


class ObjectiveMixin(_Method):
    """Runs ``nt_xent``, ``dcl`` or ``dhel`` in SimCLR's place where the plan names one; else SimCLR's own step."""

    varloss_original: ClassVar[type[Any]]
    """solo-learn's SimCLR."""
    _varloss_plan: plan.Plan

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """SimCLR's step with the loss exchanged; negatives over ranks as in SimCLR's own loss."""
        if self._varloss_plan.objective is None:
            return super().training_step(batch, batch_idx)
        _, objective, negatives = self._varloss_plan.objective
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
            negatives=negatives,  # type: ignore[arg-type]  # checked against the same three names when it was read
            decoupled=objective.decoupled,
            gathered=distributed.gather_rows(z, index, views),
        )
        self.log_dict({"train_nce_loss": nce_loss}, on_epoch=True, sync_dist=True)
        return nce_loss + out["loss"]


def _describe_objective(decided: plan.Plan) -> str:
    assert decided.objective is not None
    name, _, negatives = decided.objective
    return f"objective {name} with {negatives} negatives in simclr's place"


def _between_classes(first: Tensor, second: Tensor, labels: Tensor, term: varloss.VRNRegularizer) -> Tensor:
    """VRN where only images of different classes are negatives."""
    z, index = torch.cat([first, second]), labels.repeat(2)
    views = torch.arange(2, device=z.device).repeat_interleave(first.shape[0])
    return functional.vrn_indexed(
        z,
        index,
        views=views,
        num_samples=term.num_samples,
        target=term.target,
        pairs=term.pairs,
        exponent=term.exponent,
        gathered=distributed.gather_rows(z, index, views),
    )
