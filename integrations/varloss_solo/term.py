"""VRN during one run: its n, its weight at each step, its pairs and its value."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import DistributedSampler

import varloss
from varloss import distributed, functional, metrics
from varloss._core.grams import PairSums
from varloss._core.numerics import products, unit, widest
from varloss_solo.plan import VRN
from varloss_solo.settings import Settings

Outputs = list[dict[str, Any]]
PairsOfViews = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Term:
    """The term of a run that has started.

    Attributes:
        plan: the decisions made before the network was built.
        num_samples: n; None if the settings give a target.
        source: where n comes from, in words.
        warmup_steps: optimizer steps over which the weight rises; 0 without a warm-up.
        regularizer: VRN with weight 1.
        ranks_share: whether one step of all ranks may hold an image twice.
    """

    plan: VRN
    num_samples: int | None
    source: str
    warmup_steps: int
    regularizer: varloss.VRNRegularizer
    ranks_share: bool

    @classmethod
    def start(cls, plan: VRN, trainer: Any, num_classes: int) -> Term:
        """The term of a run of this Lightning trainer, which has set up its loader and knows the number of steps.

        Raises:
            ValueError: for a data set of one image, and for a warm-up longer than the training.
        """
        n, source = _num_samples(plan, trainer, num_classes)
        steps = _length_of_warmup(plan.settings, trainer.estimated_stepping_batches)
        several = distributed.world_size() > 1
        # All ranks must take the same collectives, so all take what one of them needs.
        share = several and not trainer.strategy.reduce_boolean_decision(_ranks_divide(trainer.train_dataloader))
        return cls(plan, n, source, steps, plan.regularizer(n, gather_distributed=several), share)

    def weight_at(self, step: int) -> float:
        """Factor on the term after ``step`` optimizer steps."""
        weight = self.plan.weight
        return weight * min(1.0, step / self.warmup_steps) if self.warmup_steps else weight

    def pairs(self, online: Outputs, momentum: Outputs) -> PairsOfViews:
        """The pairs of views that VRN averages over, from the outputs of the method's networks for two crops."""
        spec, between = self.plan.spec, self.plan.between
        first, second = (out[spec.views] for out in online)
        if between == "views":
            return [(first, second)]
        name, source = (spec.targets, online) if between == "targets" else (spec.keys, momentum)
        other = [out[name].detach() for out in source]
        return [(first, other[1]), (second, other[0])]

    def between_views(self, pairs: PairsOfViews, index: Tensor | None) -> Tensor:
        """VRN of the pairs of views; rows of one ``index`` are no negatives. None says that all differ."""
        if index is None:
            return torch.stack([self.regularizer(first, second) for first, second in pairs]).mean()
        views = torch.arange(2, device=index.device).repeat_interleave(index.shape[0])
        return torch.stack([self._indexed(torch.cat(pair), index.repeat(2), views) for pair in pairs]).mean()

    def _indexed(self, z: Tensor, index: Tensor, views: Tensor) -> Tensor:
        return functional.vrn_indexed(
            z,
            index,
            views=views,
            target=self.regularizer.delta,
            pairs=self.regularizer.pairs,
            exponent=self.regularizer.exponent,
            gathered=distributed.gather_rows(z, index, views),
        )

    def against_queue(self, pairs: PairsOfViews, queue: Tensor, steps: int, own: Tensor | None) -> Tensor:
        """VRN of each view's queries against the queue that the method's loss compares them with.

        Args:
            pairs: as :meth:`pairs` returns them.
            queue: (2, D, number of keys), as it was before this step's keys.
            steps: number of batches so far. It determines how much of the queue is filled; the other rows are random. This
                number is restored from a checkpoint; a counter of this class would not be.
            own: (P, 2) rows and keys of one image, which are no negatives; None where images are not known.
        """
        queries = [query for query, _ in pairs]
        keys = queue.shape[2]
        filled = min(keys, steps * queries[0].shape[0] * distributed.world_size())
        valid = torch.arange(keys, device=queue.device) < filled
        delta, p = self.regularizer.delta, self.regularizer.exponent
        values = []
        for query, memory in zip(queries, queue.flip(0).mT, strict=True):
            value = functional.vrn_queue(query, memory, target=delta, exponent=p, valid=valid)
            if own is not None and len(own):
                rows, slots = own.unbind(1)
                cost = ((normalize(query[rows].float(), dim=1) * memory[slots]).sum(1) - delta).abs().pow(p)
                others = query.shape[0] * filled - len(own)
                value = value + (len(own) * value - cost.sum()) / others if others else 0 * value
            values.append(value)
        return torch.stack(values).mean()

    @torch.no_grad()
    def logged(self, value: Tensor, pairs: PairsOfViews, index: Tensor | None, weight: float) -> dict[str, Tensor]:
        """The values that a step logs: VRN without its weight, statistics of the first pair of views, and the weight if it changes.

        Pairs of one ``index`` are no negatives; None says that all differ.
        """
        first, second = (z.detach() for z in pairs[0])
        if index is None:
            similarities = metrics.similarity_statistics(first, second)
            positive, mean, var = similarities.positive_mean, similarities.cross_mean, similarities.cross_var
        else:
            cosines = widest(products(unit(first), unit(second)))
            negative = index.unsqueeze(1) != index
            sums = PairSums(negative.sum(), (cosines * negative).sum(), (cosines.square() * negative).sum())
            positive, (mean, var) = cosines.diagonal().mean(), sums.mean_and_variance()
        logged = {
            "train_vrn": value.detach(),
            "train_sim_positive_mean": positive,
            "train_sim_negative_mean": mean,
            "train_sim_negative_var": var,
        }
        if self.warmup_steps:
            logged["train_vrn_weight"] = torch.tensor(weight, device=value.device)
        return logged

    def describe(self) -> str:
        """The weight, n with its source, and the pairs, for the start-up line."""
        plan, n = self.plan, self.num_samples
        target = f"target={self.regularizer.delta:.4g}"
        parts = [
            f"VRN {'on' if plan.weight > 0 else 'measured, not added'}",
            f"method={plan.method}",
            f"weight={plan.weight:g}",
            f"target={self.regularizer.delta:g} (given)" if n is None else f"n={n} ({self.source}), {target}",
            f"pairs={plan.settings.pairs} {plan.spec.pair(plan.between)}",
        ]
        if plan.settings.exponent != 2:
            parts.append(f"exponent={plan.settings.exponent:g}")
        if self.warmup_steps:
            parts.append(f"warm-up over {self.warmup_steps} steps")
        if distributed.world_size() > 1:
            parts.append(f"over {distributed.world_size()} ranks")
        return ", ".join(parts)


class QueueImages:
    """The image of each key in a method's queue, -1 where it is not known.

    It follows the queue from outside, because a buffer would change the checkpoint: after a resume the keys that were loaded
    count as other images until the queue has been refilled.
    """

    def __init__(self, keys: int, device: torch.device) -> None:
        self._images = torch.full((keys,), -1, device=device)

    def own(self, index: Tensor) -> Tensor:
        """(P, 2) rows of ``index`` and keys of the same image. Synchronises the device, as moving the queue's pointer does."""
        return (index.unsqueeze(1) == self._images).nonzero()

    def enqueue(self, index: Tensor, start: Tensor) -> None:
        """Notes the images of the keys that the method wrote from the 1-element ``start`` on, in the order of ranks."""
        slots = torch.arange(index.shape[0], device=index.device) + start
        self._images[slots % self._images.shape[0]] = index


def _ranks_divide(loader: Any) -> bool:
    """Whether the ranks' samplers divide the data set, so that no step of all ranks holds an image twice.

    The sampler repeats its first images at the end where the set does not divide evenly, which is another step unless there
    is only one. Of any other sampler nothing is known.
    """
    return type(getattr(loader, "sampler", None)) is DistributedSampler and len(loader) > 1


def _num_samples(plan: VRN, trainer: Any, num_classes: int) -> tuple[int | None, str]:
    """The n of the target and its source; None if a target is given."""
    if plan.settings.target is not None:
        return None, ""
    if plan.settings.num_samples is not None:
        return plan.settings.num_samples, "varloss.num_samples"
    if plan.spec.labels:
        n, source = num_classes, "number of classes, which are the samples of a supervised loss"
    else:
        loader, source = trainer.train_dataloader, "size of the training set"
        # DALI's loaders have a length in batches and no data set; solo-learn gives them this attribute.
        n = int(getattr(loader, "dataset_size", 0) or len(loader.dataset))
    if n < 2:
        raise ValueError(f"varloss: VRN needs n >= 2, and the {source} is {n}: set varloss.num_samples.")
    return n, source


def _length_of_warmup(settings: Settings, total: float) -> int:
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
