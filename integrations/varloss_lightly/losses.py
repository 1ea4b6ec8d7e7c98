"""lightly's contrastive losses under lightly's names and signatures, computed by varloss.

The positional arguments, their defaults and the values are those of lightly 1.6. The arguments that varloss adds are
keyword-only. :class:`NTXentLoss` explains them; the other losses explain only their own arguments.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

import varloss
from varloss import functional
from varloss._core import checks
from varloss._core.pairs import PAIRS
from varloss._core.ranks import ProcessGroup
from varloss.distributed import Gathered
from varloss.functional import Pairs
from varloss.losses.queue import contrast
from varloss.losses.vrn import ONE_SIDED, one_agreement_with

WeightFunction = Callable[[Tensor, Tensor], Tensor]


def _regularizer(
    weight: float,
    num_samples: int | None,
    target: float | None,
    pairs: Pairs,
    gather_distributed: bool,
    *,
    process_group: ProcessGroup | None,
) -> varloss.VRNRegularizer | None:
    """VRN if it is switched on or can be switched on later (a warm-up from weight 0); None otherwise."""
    # Under the names of these classes; VRNRegularizer has others.
    checks.not_negative("vrn_weight", weight)
    checks.one_of(pairs, PAIRS, "vrn_pairs")
    if weight == 0 and num_samples is None and target is None:
        return None
    return varloss.VRNRegularizer(
        weight=weight,
        num_samples=num_samples,
        target=target,
        pairs=pairs,
        gather_distributed=gather_distributed,
        process_group=process_group,
    )


def _active(regularizer: nn.Module | None) -> nn.Module | None:
    """The regularizer, which a caller may have replaced; None where it is VRN that is switched off."""
    off = isinstance(regularizer, varloss.VRNRegularizer) and regularizer.weight == 0
    return None if off else regularizer


def _add(loss: Tensor, regularizer: nn.Module | None, out0: Tensor, out1: Tensor) -> Tensor:
    return loss if regularizer is None else loss + cast(Tensor, regularizer(out0, out1))


class NTXentLoss(varloss.NTXentLoss):
    """Drop-in for ``lightly.loss.NTXentLoss``: NT-Xent (SimCLR), or InfoNCE against a memory bank (MoCo).

    It differs from lightly's in four points: the bank is part of ``state_dict``, a batch wraps around the end of the bank and
    is not cut, the host never waits for the device, and half precision is computed in fp32.

    Args:
        temperature: divides the cosine similarities.
        memory_bank_size: 0, or (number of keys, dimension). With a bank ``out0`` are the queries, ``out1`` their keys, and
            the bank's entries are the only negatives. They are random at first, as in lightly. The bank is updated if
            ``out0.requires_grad`` is true.
        gather_distributed: takes negatives from all ranks; with a bank, enqueues the keys of all ranks.
        negatives: ``"cross"``, ``"within"`` or ``"both"``; only without a bank.
        decoupled: leaves the positive pair out of the denominator; only without a bank.
        vrn_weight: factor on VRN, the variance-reduction term, of ``out0`` and ``out1``; 0 switches it off. The term is
            the attribute ``regularizer``, whose ``weight`` a warm-up may set.
        num_samples: size of the training set. If ``vrn_weight`` is not 0, ``num_samples`` or ``target`` is needed.
        target: the similarity that negatives are pulled to, instead of -1/(num_samples-1).
        vrn_pairs: ``"cross"`` (the paper's), ``"within"`` or ``"both"``.
        process_group: the ranks that ``gather_distributed`` means, by default the world.

    Raises:
        ValueError: for a temperature of 0, a bank without dimension, or options that exclude each other.

    Example:
        >>> import torch
        >>> from varloss_lightly import NTXentLoss  # was: from lightly.loss import NTXentLoss
        >>> loss_fn = NTXentLoss(temperature=0.5, vrn_weight=3, num_samples=50_000)
        >>> loss = loss_fn(torch.randn(16, 128), torch.randn(16, 128))
    """

    memory_bank: varloss.MemoryBank | None

    def __init__(
        self,
        temperature: float = 0.5,
        memory_bank_size: int | Sequence[int] = 0,
        gather_distributed: bool = False,
        *,
        negatives: Pairs = "both",
        decoupled: bool = False,
        vrn_weight: float = 0.0,
        num_samples: int | None = None,
        target: float | None = None,
        vrn_pairs: Pairs = "cross",
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(
            temperature=temperature,
            negatives=negatives,
            decoupled=decoupled,
            gather_distributed=gather_distributed,
            process_group=process_group,
        )
        self.regularizer = _regularizer(
            vrn_weight, num_samples, target, vrn_pairs, gather_distributed, process_group=process_group
        )
        self.memory_bank = _random_bank(memory_bank_size)
        if self.memory_bank is None:
            return
        if negatives != "both" or decoupled:
            raise ValueError(
                "with a memory bank its entries are the only negatives: negatives and decoupled must keep their "
                f"defaults; got negatives={negatives!r}, decoupled={decoupled}."
            )
        if self.regularizer is not None and self.regularizer.weight > 0:
            warnings.warn(f"vrn_weight > 0 with a memory bank: {ONE_SIDED}", UserWarning, stacklevel=2)
            self.regularizer.warned_of_one_side = True

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """Loss of two views, each (batch_size, embedding_size)."""
        regularizer = _active(self.regularizer)
        with one_agreement_with(regularizer):
            if self.memory_bank is None:
                return self._with_regularizer(regularizer, out0, out1)
            return _add(contrast(self, self.memory_bank, out0, out1), regularizer, out0, out1)


def _random_bank(size: int | Sequence[int]) -> varloss.MemoryBank | None:
    """The bank for lightly's ``memory_bank_size``, filled with random unit vectors as in lightly; None for size 0."""
    if isinstance(size, int):
        if size == 0:
            return None
        raise ValueError(
            f"memory_bank_size={size} lacks the dimension of the keys: pass ({size}, dim), or 0 for no bank."
        )
    if len(size) != 2 or any(entry < 0 for entry in size):
        raise ValueError(f"memory_bank_size must be 0 or a pair (number of keys, dimension); got {tuple(size)}.")
    if size[0] == 0:
        return None
    return _RandomBank(*size)


class _RandomBank(varloss.MemoryBank):
    """A bank that starts full of random unit vectors."""

    def __init__(self, num: int, dim: int) -> None:
        super().__init__(num, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fills the ring with random unit vectors."""
        super().reset_parameters()
        self.enqueue(torch.randn(self.num, self.dim, device=self.bank.device))
        self._forget()


class DCLLoss(varloss.NTXentLoss):
    """Drop-in for ``lightly.loss.DCLLoss``: NT-Xent without the positive pair in the denominator.

    Args:
        temperature: divides the cosine similarities.
        weight_fn: maps the two views' unit rows (N, D) to (N,) factors on the positive terms.
        gather_distributed: takes negatives from all ranks.
        negatives: ``"both"`` is DCL, ``"within"`` DHEL in the scale of Lee et al., ``"cross"`` decoupled InfoNCE.
        vrn_weight, num_samples, target, vrn_pairs, process_group: as :class:`NTXentLoss`.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        weight_fn: WeightFunction | None = None,
        gather_distributed: bool = False,
        *,
        negatives: Pairs = "both",
        vrn_weight: float = 0.0,
        num_samples: int | None = None,
        target: float | None = None,
        vrn_pairs: Pairs = "cross",
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(
            temperature=temperature,
            negatives=negatives,
            decoupled=True,
            gather_distributed=gather_distributed,
            process_group=process_group,
        )
        self.weight_fn = weight_fn
        self.regularizer = _regularizer(
            vrn_weight, num_samples, target, vrn_pairs, gather_distributed, process_group=process_group
        )

    def positive_weight(self, z0: Tensor, z1: Tensor, gathered: Gathered | None) -> float | Tensor | None:
        """``weight_fn`` of each view's anchors and the other view's rows."""
        if self.weight_fn is None:
            return super().positive_weight(z0, z1, gathered)
        u, v = nn.functional.normalize(z0, dim=1), nn.functional.normalize(z1, dim=1)
        return torch.stack([self.weight_fn(u, v), self.weight_fn(v, u)])

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """Loss of two views, each (batch_size, embedding_size)."""
        regularizer = _active(self.regularizer)
        with one_agreement_with(regularizer):
            return self._with_regularizer(regularizer, out0, out1)


class DCLWLoss(DCLLoss):
    """Drop-in for ``lightly.loss.DCLWLoss``: DCL with negative von Mises-Fisher weights on the positive term.

    Under several ranks the weights' softmax runs over the global batch, as it would in one process (lightly's runs over each
    rank's own rows, so that its loss depends on the number of ranks).

    Args:
        temperature: divides the cosine similarities.
        sigma: temperature of the weights.
        gather_distributed: takes negatives, and the weights' softmax, from all ranks.
        negatives: ``"both"`` is lightly's choice.
        vrn_weight, num_samples, target, vrn_pairs, process_group: as :class:`NTXentLoss`.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        sigma: float = 0.5,
        gather_distributed: bool = False,
        *,
        negatives: Pairs = "both",
        vrn_weight: float = 0.0,
        num_samples: int | None = None,
        target: float | None = None,
        vrn_pairs: Pairs = "cross",
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(
            temperature,
            None,
            gather_distributed,
            negatives=negatives,
            vrn_weight=vrn_weight,
            num_samples=num_samples,
            target=target,
            vrn_pairs=vrn_pairs,
            process_group=process_group,
        )
        self.sigma = sigma

    @property
    def sigma(self) -> float:
        """The temperature of the weights, above 0."""
        return self._sigma

    @sigma.setter
    def sigma(self, value: float) -> None:
        self._sigma = checks.positive("sigma", value)

    def positive_weight(self, z0: Tensor, z1: Tensor, gathered: Gathered | None) -> Tensor:
        """:func:`varloss.functional.dclw_weights`."""
        return functional.dclw_weights(z0, z1, sigma=self.sigma, gathered=gathered)


class DHELLoss(varloss.DHELLoss):
    """Decoupled hyperspherical energy loss with lightly's signature; lightly itself has no such loss.

    Args:
        temperature: divides the cosine similarities.
        gather_distributed: takes negatives from all ranks.
        scale: ``"paper"`` (Lee et al.) or ``"official"`` (the authors of DHEL); the two weight alignment differently.
        vrn_weight, num_samples, target, vrn_pairs, process_group: as :class:`NTXentLoss`.
    """

    def __init__(
        self,
        temperature: float = 0.5,
        gather_distributed: bool = False,
        *,
        scale: Literal["paper", "official"] = "paper",
        vrn_weight: float = 0.0,
        num_samples: int | None = None,
        target: float | None = None,
        vrn_pairs: Pairs = "cross",
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(
            temperature=temperature, scale=scale, gather_distributed=gather_distributed, process_group=process_group
        )
        self.regularizer = _regularizer(
            vrn_weight, num_samples, target, vrn_pairs, gather_distributed, process_group=process_group
        )

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """Loss of two views, each (batch_size, embedding_size)."""
        regularizer = _active(self.regularizer)
        with one_agreement_with(regularizer):
            return _add(super().forward(out0, out1), regularizer, out0, out1)


class VRNRegularizer(varloss.VRNRegularizer):
    """Weighted variance reduction, added like lightly's regularizers: ``loss_fn(out0, out1) + reg(out0, out1)``.

    Args:
        weight: factor on the term, see :class:`varloss.VRNRegularizer`.
        gather_distributed: takes the pairs of the global batch.
        num_samples: size of the training set; give it or ``target``.
        target: the similarity that negatives are pulled to.
        pairs: ``"cross"`` (the paper's), ``"within"`` or ``"both"``.
        exponent: p >= 1.
        process_group: as :class:`NTXentLoss`.
    """

    def __init__(
        self,
        weight: float,
        gather_distributed: bool = False,
        *,
        num_samples: int | None = None,
        target: float | None = None,
        pairs: Pairs = "cross",
        exponent: float = 2,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(
            weight=weight,
            num_samples=num_samples,
            target=target,
            pairs=pairs,
            exponent=exponent,
            gather_distributed=gather_distributed,
            process_group=process_group,
        )
