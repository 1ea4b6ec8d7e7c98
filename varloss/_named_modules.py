"""Modules of the losses that have a name of their own: cells of the NT-Xent family, and the losses that add over pairs."""

from __future__ import annotations

import math
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from varloss import _checks, distributed, functional
from varloss._checks import Negatives
from varloss._hard import check_hard
from varloss.modules import NTXentLoss


class InfoNCELoss(NTXentLoss):
    """InfoNCE of two views, which is CLIP's loss: NT-Xent with cross-view negatives, in both directions.

    Args:
        temperature: divides the cosine similarities.
        gather_distributed: takes negatives from all ranks, with gradient. Ranks may differ in batch size.
        learnable_temperature: as :class:`NTXentLoss`. CLIP learns it, from 0.07, clamped at 0.01.
        hard_fraction: as :class:`NTXentLoss`; or
        hard_count: as :class:`NTXentLoss`.
    """

    def __init__(
        self,
        *,
        temperature: float = 0.5,
        gather_distributed: bool = False,
        learnable_temperature: bool = False,
        hard_fraction: float | None = None,
        hard_count: int | None = None,
    ) -> None:
        super().__init__(
            temperature=temperature,
            negatives="cross",
            gather_distributed=gather_distributed,
            learnable_temperature=learnable_temperature,
            hard_fraction=hard_fraction,
            hard_count=hard_count,
        )


class DCLLoss(NTXentLoss):
    """Decoupled contrastive loss: NT-Xent without the positive pair in the denominator.

    Args:
        temperature: divides the cosine similarities; Yeh et al. use 0.1.
        gather_distributed: takes negatives from all ranks, with gradient. Ranks may differ in batch size.
        learnable_temperature: as :class:`NTXentLoss`.
    """

    def __init__(
        self, *, temperature: float = 0.1, gather_distributed: bool = False, learnable_temperature: bool = False
    ) -> None:
        super().__init__(
            temperature=temperature,
            negatives="both",
            decoupled=True,
            gather_distributed=gather_distributed,
            learnable_temperature=learnable_temperature,
        )


class _Pairwise(nn.Module):
    """Gathering and printing, for modules whose hyper-parameters are attributes named in ``_shown``."""

    _shown: tuple[str, ...] = ()

    def __init__(self, gather_distributed: bool) -> None:
        super().__init__()
        if gather_distributed:
            distributed.require_available()
        self.gather_distributed = gather_distributed

    def extra_repr(self) -> str:
        """Hyper-parameters, for ``print(module)``."""
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in (*self._shown, "gather_distributed"))

    def _call(self, function: Any, z0: Tensor, z1: Tensor, **options: Any) -> Tensor:
        keys, offset, share = distributed.gather_two_views(z0, z1, self.gather_distributed)
        loss: Tensor = function(z0, z1, keys=keys, offset=offset, **options)
        return distributed.weighed(loss, share)


class SigmoidLoss(_Pairwise):
    """:func:`varloss.functional.sigmoid_loss` (SigLIP) as a module.

    Args:
        scale: multiplies the cosine similarities; the start of ``exp(log_scale)`` where it is learned.
        bias: added to the logits, open_clip's sign; the start of the parameter ``bias`` where it is learned.
        negatives: ``"cross"`` (SigLIP's), ``"within"`` or ``"both"``.
        learnable: learns ``log_scale`` and ``bias``, as SigLIP does. Give them to the optimizer.
        gather_distributed: takes negatives from all ranks, with gradient. Ranks may differ in batch size.
    """

    def __init__(
        self,
        *,
        scale: float = 10.0,
        bias: float = -10.0,
        negatives: Negatives = "cross",
        learnable: bool = False,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__(gather_distributed)
        _checks.positive("scale", scale)
        _checks.real("bias", bias)
        _checks.one_of(negatives, _checks.KINDS, "negatives")
        self.negatives: Negatives = negatives
        self.learnable = learnable
        self._fixed_scale = None if learnable else scale
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale))) if learnable else None
        self.bias: float | nn.Parameter = nn.Parameter(torch.tensor(float(bias))) if learnable else bias

    @property
    def scale(self) -> float | Tensor:
        """The number given, or, where it is learned, a 0-dim tensor with gradient."""
        return self.log_scale.exp() if self.log_scale is not None else cast(float, self._fixed_scale)

    @scale.setter
    def scale(self, value: float) -> None:
        if self.log_scale is not None:
            raise AttributeError("the scale is learned: change the parameter log_scale instead.")
        self._fixed_scale = _checks.positive("scale", value)

    def extra_repr(self) -> str:
        """Hyper-parameters, for ``print(module)``."""
        scale, bias = (x.item() if isinstance(x, Tensor) else x for x in (self.scale, self.bias))
        return (
            f"scale={scale:.4g}, bias={bias:.4g}, negatives={self.negatives!r}, "
            f"learnable={self.learnable}, gather_distributed={self.gather_distributed}"
        )

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        """Loss of two views, each (N, D)."""
        return self._call(functional.sigmoid_loss, z0, z1, scale=self.scale, bias=self.bias, negatives=self.negatives)


class SpectralLoss(_Pairwise):
    """:func:`varloss.functional.spectral_loss` as a module.

    Args:
        negatives: ``"cross"``, ``"within"`` or ``"both"``.
        gather_distributed: takes negatives from all ranks, with gradient. Ranks may differ in batch size.
    """

    _shown = ("negatives",)

    def __init__(self, *, negatives: Negatives = "cross", gather_distributed: bool = False) -> None:
        super().__init__(gather_distributed)
        _checks.one_of(negatives, _checks.KINDS, "negatives")
        self.negatives: Negatives = negatives

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        """Loss of two views, each (N, D)."""
        return self._call(functional.spectral_loss, z0, z1, negatives=self.negatives)


class SimpleLoss(_Pairwise):
    """:func:`varloss.functional.simple_loss` as a module; with hard negatives it is HardSimple.

    Args:
        weight: on the sum of an anchor's negative similarities; by default 1 over their number.
        negatives: ``"cross"``, ``"within"`` or ``"both"``.
        hard_fraction: keeps only this upper share of each anchor's negatives; or
        hard_count: this many.
        gather_distributed: takes negatives from all ranks, with gradient. Ranks may differ in batch size.
    """

    _shown = ("weight", "negatives", "hard_fraction", "hard_count")

    def __init__(
        self,
        *,
        weight: float | None = None,
        negatives: Negatives = "cross",
        hard_fraction: float | None = None,
        hard_count: int | None = None,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__(gather_distributed)
        _checks.one_of(negatives, _checks.KINDS, "negatives")
        check_hard(hard_fraction, hard_count)
        self.weight = None if weight is None else _checks.weight(weight)
        self.negatives: Negatives = negatives
        self.hard_fraction = hard_fraction
        self.hard_count = hard_count

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        """Loss of two views, each (N, D)."""
        return self._call(
            functional.simple_loss,
            z0,
            z1,
            weight=self.weight,
            negatives=self.negatives,
            hard_fraction=self.hard_fraction,
            hard_count=self.hard_count,
        )


class KCLLoss(_Pairwise):
    """:func:`varloss.functional.kcl` (kernel contrastive loss) as a module.

    Args:
        gamma: weight of the within-view energy.
        kernel: ``"gaussian"``.
        t: the kernel's scale.
        gather_distributed: takes negatives from all ranks, with gradient. Ranks may differ in batch size.
    """

    _shown = ("gamma", "kernel", "t")

    def __init__(
        self,
        *,
        gamma: float = 16.0,
        kernel: Literal["gaussian"] = "gaussian",
        t: float = 2.0,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__(gather_distributed)
        _checks.one_of(kernel, ("gaussian",), "kernel")
        _checks.positive("t", t)
        self.gamma = _checks.weight(gamma)
        self.kernel: Literal["gaussian"] = kernel
        self.t = t

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        """Loss of two views, each (N, D)."""
        return self._call(functional.kcl, z0, z1, gamma=self.gamma, kernel=self.kernel, t=self.t)
