"""Modules: they keep hyper-parameters, gather where told to, and call the function."""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from varloss import _checks, distributed, functional
from varloss._checks import Negatives
from varloss._hard import check_hard
from varloss._numerics import wide
from varloss._queue import MemoryBank


class _Tempered(nn.Module):
    """A module with a ``temperature``: a plain attribute, or exp of the parameter ``log_temperature`` where it is learned."""

    def _start_temperature(self, temperature: float, learnable: bool) -> None:
        _checks.temperature(temperature)
        if learnable and temperature <= 0:
            raise ValueError(
                f"a learnable temperature is exp(log_temperature) and must start above 0; got {temperature}."
            )
        self._fixed_temperature = None if learnable else temperature
        # None keeps the name out of parameters() and state_dict().
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature))) if learnable else None

    @property
    def temperature(self) -> float | Tensor:
        """The number given, or, where it is learned, a 0-dim tensor with gradient."""
        if self.log_temperature is not None:
            return self.log_temperature.exp()
        return cast(float, self._fixed_temperature)

    @temperature.setter
    def temperature(self, value: float) -> None:
        if self.log_temperature is not None:
            raise AttributeError("the temperature is learned: change the parameter log_temperature instead.")
        _checks.temperature(value)
        self._fixed_temperature = value

    def _temperature_repr(self) -> str:
        if self.log_temperature is None:
            return f"temperature={self._fixed_temperature}"
        return f"temperature={self.log_temperature.exp().item():.4g}, learnable_temperature=True"


class NTXentLoss(_Tempered):
    """:func:`varloss.functional.nt_xent` as a module.

    Args:
        temperature: divides the cosine similarities.
        negatives: ``"cross"``, ``"within"`` or ``"both"``.
        decoupled: leaves the positive pair out of the denominator.
        learnable_temperature: makes ``temperature`` the start of a learned one: the parameter ``log_temperature`` has to
            be given to the optimizer (without weight decay) and may be clamped by the caller; nothing here bounds it.
        hard_fraction: keeps only this upper share of each anchor's negatives (the hard contrastive loss); or
        hard_count: this many.
        gather_distributed: takes negatives from all ranks, with gradient. Ranks may differ in batch size.
    """

    def __init__(
        self,
        *,
        temperature: float = 0.5,
        negatives: Negatives = "both",
        decoupled: bool = False,
        gather_distributed: bool = False,
        learnable_temperature: bool = False,
        hard_fraction: float | None = None,
        hard_count: int | None = None,
    ) -> None:
        super().__init__()
        self._start_temperature(temperature, learnable_temperature)
        _checks.one_of(negatives, _checks.KINDS, "negatives")
        check_hard(hard_fraction, hard_count)
        if gather_distributed:
            distributed.require_available()
        self.negatives: Negatives = negatives
        self.decoupled = decoupled
        self.gather_distributed = gather_distributed
        self.hard_fraction = hard_fraction
        self.hard_count = hard_count

    def extra_repr(self) -> str:
        """Hyper-parameters, for ``print(module)``."""
        hard = [f"{name}={getattr(self, name)}" for name in ("hard_fraction", "hard_count") if getattr(self, name)]
        return ", ".join(
            [
                self._temperature_repr(),
                f"negatives={self.negatives!r}, decoupled={self.decoupled}",
                f"gather_distributed={self.gather_distributed}",
                *hard,
            ]
        )

    def positive_weight(
        self, z0: Tensor, z1: Tensor, keys: tuple[Tensor, Tensor] | None, offset: int
    ) -> float | Tensor | None:
        """Factor on the positive term, None for 1: for subclasses such as DCLW. Arguments as the function's."""
        del z0, z1, keys, offset
        return None

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        """Loss of two views, each (N, D)."""
        return self.plus(None, z0, z1)

    def plus(self, regularizer: VRNRegularizer | None, z0: Tensor, z1: Tensor) -> Tensor:
        """The loss and the regularizer's term: from one look at the similarities, where neither needs more than that.

        That is on one rank, for exponent 2, a fixed temperature, all negatives and no ``positive_weight``.
        """
        keys, offset, share = distributed.gather_two_views(z0, z1, self.gather_distributed)
        positive_weight = self.positive_weight(z0, z1, keys, offset)
        all_negatives = self.hard_fraction is None and self.hard_count is None
        plain = keys is None and positive_weight is None and all_negatives
        if plain and regularizer is not None and regularizer.exponent == 2 and not regularizer.looks_across_ranks():
            loss = functional.nt_xent_with_vrn(
                z0,
                z1,
                weight=regularizer.weight,
                num_samples=regularizer.num_samples,
                target=regularizer.target,
                pairs=regularizer.pairs,
                temperature=self.temperature,
                negatives=self.negatives,
                decoupled=self.decoupled,
            )
            regularizer.warn_if_one_sided(z0, z1)
            return loss
        if regularizer is not None:
            _checks.views(z0, z1)
            # Widened once: the two terms' gradients are summed before they are rounded to half precision.
            z0, z1 = wide(z0), wide(z1)
        loss = functional.nt_xent(
            z0,
            z1,
            temperature=self.temperature,
            negatives=self.negatives,
            decoupled=self.decoupled,
            positive_weight=positive_weight,
            hard_fraction=self.hard_fraction,
            hard_count=self.hard_count,
            keys=keys,
            offset=offset,
        )
        loss = distributed.weighed(loss, share)
        return loss if regularizer is None else loss + cast(Tensor, regularizer(z0, z1))


class DHELLoss(_Tempered):
    """:func:`varloss.functional.dhel` as a module.

    Args:
        temperature: divides the cosine similarities.
        scale: ``"paper"`` (Lee et al.) or ``"official"`` (the authors of DHEL): they weigh alignment differently.
        gather_distributed: takes negatives from all ranks, with gradient. Ranks may differ in batch size.
        learnable_temperature: as :class:`NTXentLoss`.
    """

    def __init__(
        self,
        *,
        temperature: float = 0.5,
        scale: Literal["paper", "official"] = "paper",
        gather_distributed: bool = False,
        learnable_temperature: bool = False,
    ) -> None:
        super().__init__()
        self._start_temperature(temperature, learnable_temperature)
        _checks.one_of(scale, ("paper", "official"), "scale")
        if gather_distributed:
            distributed.require_available()
        self.scale: Literal["paper", "official"] = scale
        self.gather_distributed = gather_distributed

    def extra_repr(self) -> str:
        """Hyper-parameters, for ``print(module)``."""
        return f"{self._temperature_repr()}, scale={self.scale!r}, gather_distributed={self.gather_distributed}"

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        """Loss of two views, each (N, D)."""
        keys, offset, share = distributed.gather_two_views(z0, z1, self.gather_distributed)
        loss = functional.dhel(z0, z1, temperature=self.temperature, scale=self.scale, keys=keys, offset=offset)
        return distributed.weighed(loss, share)


ONE_SIDED = (
    "VRN between views of which only one carries a gradient pulls queries away from keys that follow them; MoCo trained "
    "that way collapsed to a single point in 2 of 4 runs. Keep the loss against the keys without VRN, and add VRN between "
    "two views of the query encoder: "
    "loss = criterion(query0, key1) + VRNRegularizer(weight, num_samples=n)(query0, query1)."
)


class VRNLoss(nn.Module):
    """:func:`varloss.functional.vrn` as a module.

    Args:
        num_samples: n, the number of training samples; or
        target: the similarity negatives are pulled to.
        pairs: ``"cross"`` (the paper's), ``"within"`` or ``"both"``.
        exponent: p >= 1.
        gather_distributed: takes the pairs of the global batch. With exponent 2 only two D x D Gram matrices cross the
            wire; with another exponent the rows are gathered. Ranks may differ in batch size.
    """

    def __init__(
        self,
        *,
        num_samples: int | None = None,
        target: float | None = None,
        pairs: Negatives = "cross",
        exponent: float = 2,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        _checks.delta(num_samples, target)
        _checks.one_of(pairs, _checks.KINDS, "pairs")
        _checks.exponent(exponent)
        if gather_distributed:
            distributed.require_available()
        self.num_samples = num_samples
        self.target = target
        self.pairs: Negatives = pairs
        self.exponent = exponent
        self.gather_distributed = gather_distributed

    def extra_repr(self) -> str:
        """Hyper-parameters, for ``print(module)``."""
        aim = f"num_samples={self.num_samples}" if self.target is None else f"target={self.target}"
        return f"{aim}, pairs={self.pairs!r}, exponent={self.exponent}, gather_distributed={self.gather_distributed}"

    def looks_across_ranks(self) -> bool:
        """Whether other ranks' rows are there and wanted."""
        return self.gather_distributed and distributed.world_size() > 1

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        """VRN of two views, each (N, D)."""
        many = self.looks_across_ranks()
        if many and self.exponent == 2:
            moments = distributed.all_reduce_sum(functional.vrn_moments(z0, z1, pairs=self.pairs))
            return functional.vrn_from_moments(
                moments, z0.shape[1], num_samples=self.num_samples, target=self.target, pairs=self.pairs
            )
        keys, offset, share = distributed.gather_two_views(z0, z1, many)
        loss = functional.vrn(
            z0,
            z1,
            num_samples=self.num_samples,
            target=self.target,
            pairs=self.pairs,
            exponent=self.exponent,
            keys=keys,
            offset=offset,
        )
        return distributed.weighed(loss, share)


class VRNRegularizer(VRNLoss):
    """``weight`` times VRN, to be added to any two-view loss: ``loss_fn(z0, z1) + regularizer(z0, z1)``.

    Args:
        weight: factor on the term; there is no default, since the weight that helps depends on n, D and the schedule. On
            a thousand digits 1 to 10 were much alike; Lee et al. used 30 to 40 for n >= 50 000. A warm-up sets the attribute;
            it is not part of ``state_dict``.
        num_samples: n, the number of training samples; or
        target: the similarity negatives are pulled to.
        pairs: ``"cross"`` (the paper's), ``"within"`` or ``"both"``.
        exponent: p >= 1.
        gather_distributed: takes the pairs of the global batch.
    """

    def __init__(
        self,
        *,
        weight: float,
        num_samples: int | None = None,
        target: float | None = None,
        pairs: Negatives = "cross",
        exponent: float = 2,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__(
            num_samples=num_samples,
            target=target,
            pairs=pairs,
            exponent=exponent,
            gather_distributed=gather_distributed,
        )
        self.weight = weight
        self.warned_of_one_side = False

    @property
    def weight(self) -> float:
        """The factor on the term, at least 0."""
        return self._weight

    @weight.setter
    def weight(self, value: float) -> None:
        self._weight = _checks.weight(value)

    def warn_if_one_sided(self, z0: Tensor, z1: Tensor) -> None:
        """Warns, once, where only one of the views carries a gradient, as momentum keys do not."""
        if self.warned_of_one_side or self.weight == 0 or z0.requires_grad == z1.requires_grad:
            return
        self.warned_of_one_side = True
        warnings.warn(ONE_SIDED, UserWarning, stacklevel=3)

    def extra_repr(self) -> str:
        """Hyper-parameters, for ``print(module)``."""
        return f"weight={self.weight}, {super().extra_repr()}"

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        """Weighted VRN of two views, each (N, D)."""
        term = self.weight * super().forward(z0, z1)
        self.warn_if_one_sided(z0, z1)
        return term


class WithVRN(nn.Module):
    """Any two-view loss plus weighted VRN, under the loss's own call.

    Args:
        base: a module or function of two (N, D) views that returns a scalar.
        weight: factor on VRN, see :class:`VRNRegularizer`.
        num_samples: n, the number of training samples; or
        target: the similarity negatives are pulled to.
        pairs: ``"cross"`` (the paper's), ``"within"`` or ``"both"``.
        exponent: p >= 1.
        gather_distributed: takes VRN's pairs from the global batch. The base decides for itself.

    Example:
        >>> import torch, varloss
        >>> loss_fn = varloss.WithVRN(varloss.NTXentLoss(temperature=0.5), weight=3, num_samples=50_000)
        >>> loss = loss_fn(torch.randn(16, 128), torch.randn(16, 128))
    """

    def __init__(
        self,
        base: Any,
        *,
        weight: float,
        num_samples: int | None = None,
        target: float | None = None,
        pairs: Negatives = "cross",
        exponent: float = 2,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        if not callable(base):
            raise TypeError(f"base must be a loss module or function of two views; got {type(base).__name__}.")
        self.base = base
        self.regularizer = VRNRegularizer(
            weight=weight,
            num_samples=num_samples,
            target=target,
            pairs=pairs,
            exponent=exponent,
            gather_distributed=gather_distributed,
        )

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        """Loss of two views, each (N, D)."""
        # A subclass with a forward of its own, or a hook on either part, has to be called to be heard.
        if (
            isinstance(self.base, NTXentLoss)
            and type(self.base).forward is NTXentLoss.forward
            and not self._is_hooked()
        ):
            return self.base.plus(self.regularizer, z0, z1)
        total: Tensor = self.base(z0, z1) + self.regularizer(z0, z1)
        return total

    def _is_hooked(self) -> bool:
        parts = (self.base, self.regularizer)
        return any(
            hooks
            for part in parts
            for hooks in (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks)
        )


class QueueInfoNCELoss(nn.Module):
    """:func:`varloss.functional.queue_info_nce` with a memory bank of its own (MoCo).

    Args:
        memory_bank_size: (K, D), number of keys kept and their dimension. A ring larger than half the data set holds
            samples' own keys.
        temperature: divides the cosine similarities.
        gather_distributed: enqueues the keys of all ranks, so that the bank is the same on each. Ranks may differ in batch
            size.
    """

    def __init__(
        self, *, memory_bank_size: tuple[int, int], temperature: float = 0.2, gather_distributed: bool = False
    ) -> None:
        super().__init__()
        _checks.temperature(temperature)
        if gather_distributed:
            distributed.require_available()
        if not isinstance(memory_bank_size, (tuple, list)) or len(memory_bank_size) != 2:
            raise ValueError(f"memory_bank_size must be a pair (number of keys, dimension); got {memory_bank_size}.")
        self.temperature = temperature
        self.gather_distributed = gather_distributed
        self.memory_bank = MemoryBank(*memory_bank_size)

    def extra_repr(self) -> str:
        """Hyper-parameters, for ``print(module)``."""
        return f"temperature={self.temperature}, gather_distributed={self.gather_distributed}"

    def forward(self, query: Tensor, key: Tensor, *, update: bool | None = None) -> Tensor:
        """Loss of queries against their keys, each (N, D), and the bank as it was; then enqueues the keys.

        Args:
            query: (N, D) projections of the query encoder.
            key: (N, D) projections of the momentum encoder.
            update: whether to enqueue; by default where ``query`` requires a gradient. For a symmetric loss pass False
                and call :meth:`enqueue` once after both directions.
        """
        bank = self.memory_bank
        # A copy, since the backward pass needs the bank as it was and the ring is written in place.
        loss = functional.queue_info_nce(
            query, key.detach(), bank.bank.clone(), temperature=self.temperature, valid=bank.valid()
        )
        # Not where nothing is trained: a rank that evaluates by itself must not wait for the others.
        if self.gather_distributed and query.requires_grad:
            loss = distributed.weighed(loss, distributed.share(distributed.sizes(query)))
        if query.requires_grad if update is None else update:
            self.enqueue(key)
        return loss

    def enqueue(self, key: Tensor) -> None:
        """Puts keys (N, D), of all ranks where ``gather_distributed``, into the bank."""
        key = key.detach()
        self.memory_bank.enqueue(distributed.gather(key) if self.gather_distributed else key)
