"""NT-Xent and its relatives: which negatives, and whether the positive pair stands in the denominator."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from varloss import distributed
from varloss._core import checks
from varloss._core.checks import Negatives
from varloss._core.hard import check_hard
from varloss._core.numerics import unit, wide
from varloss._kernels import autograd, dense
from varloss._kernels.autograd import Form
from varloss._kernels.problem import Problem
from varloss.losses.base import Tempered
from varloss.losses.vrn import VRNRegularizer, vrn


def nt_xent(
    z0: Tensor,
    z1: Tensor,
    *,
    temperature: float | Tensor = 0.5,
    negatives: Negatives = "both",
    decoupled: bool = False,
    positive_weight: float | Tensor | None = None,
    hard_fraction: float | None = None,
    hard_count: int | None = None,
    keys: tuple[Tensor, Tensor] | None = None,
    offset: int = 0,
    form: Form = "auto",
    check: bool = False,
) -> Tensor:
    r"""The normalised-temperature cross entropy of two views, with a choice of negatives.

    With unit rows :math:`u_i, v_i`, :math:`S_{ij} = u_i \cdot v_j`, :math:`A_{ij} = u_i \cdot u_j`, the anchors of view 0 give

    .. math:: -S_{ii}/t + \log\Big([e^{S_{ii}/t}] + \sum_{j \ne i} e^{S_{ij}/t} + \sum_{j \ne i} e^{A_{ij}/t}\Big)

    and the loss is the mean over these and the anchors of view 1. ``negatives`` picks the sums, ``decoupled`` drops the
    bracket. The six cells have names: InfoNCE or CLIP (cross), NT-Xent of SimCLR (both), DCL (both, decoupled), DHEL in the
    scale of Lee et al. (within, decoupled).

    The naive program it equals, for ``negatives="both", decoupled=False``::

        z = normalize(cat([z0, z1]))
        logits = (z @ z.T / temperature).fill_diagonal_(-inf)
        loss = cross_entropy(logits, cat([arange(N, 2 * N), arange(N)]))

    Args:
        z0: (N, D) projections of view 0, of any length: rows are normalised inside.
        z1: (N, D) projections of view 1; row i is the positive of row i of ``z0``.
        temperature: divides the cosine similarities; a 0-dim tensor where it is learned. One below 0 is taken as it is, and
            turns the loss around: it pulls negatives together.
        negatives: ``"cross"`` the other samples in the other view, ``"within"`` in the anchor's own view, ``"both"``.
        decoupled: leaves the positive pair out of the denominator.
        positive_weight: factor on the positive term alone: a number, (N,) for both views' anchors, or (2, N).
        hard_fraction: keep, for each anchor, only this upper share, in (0, 1], of its negatives (rounded up): the hard
            contrastive loss. The rest gets no gradient; negatives that tie with the last one kept stay.
        hard_count: or keep this many.
        keys: rows of all ranks for the two views, each (M, D), that contain this rank's. Anchors stay local.
        offset: row of ``keys`` where this rank's rows start.
        form: ``"dense"`` keeps the similarity matrix for the backward pass; ``"tiled"`` computes the gradient along with
            the value, tile by tile, in memory linear in N. ``"auto"`` is the fused computation too, the whole matrix at
            once where the batch is small, and dense where an option needs it: a temperature that is a tensor, or hard
            negatives.
        check: look at the values too (synchronises): raises for rows that are zero or not finite.

    Returns:
        A scalar in nats, float64 for float64 input and float32 otherwise, also under autocast. The mean over local
        anchors: averaged over ranks of equal size it is the single-process value, and over others where each is multiplied
        by ``distributed.share``, as the modules do.

    Raises:
        TypeError: for what is not a floating-point tensor or not a number.
        ValueError: for shapes, devices or options that do not fit, temperature 0, or one sample without gathered keys.

    At the edge: a zero row has similarity 0 to everything and gets a zero gradient; so does, without a word unless
    ``check``, a row whose length leaves the range of fp32 (below 1.2e-38 or above 3.4e38). The loss of a perfectly
    separated batch underflows to 0 gracefully, without cancellation. The backward pass with ``create_graph=True`` takes the
    dense formula whatever ``form`` says. The transforms of ``torch.func`` are not supported.

    Sources: Chen et al. 2020 (SimCLR, arXiv 2002.05709) eq. 1; Yeh et al. 2022 (DCL, arXiv 2110.06848) eq. 6; Lee et al.
    2025 (arXiv 2506.09781) Def. 3.1; Wang & Liu 2021 (arXiv 2012.09740) section 3 for hard negatives.
    """
    checks.two_views(z0, z1, keys, offset)
    checks.one_of(negatives, checks.KINDS, "negatives")
    checks.temperature(temperature)
    checks.one_of(form, autograd.FORMS, "form")
    if check:
        checks.rows_are_sound(z0=z0, z1=z1)
    needs_dense = {
        "a temperature that is a tensor": isinstance(temperature, Tensor),
        "hard negatives": hard_fraction is not None or hard_count is not None,
    }
    if form != "dense" and not isinstance(temperature, Tensor) and not any(needs_dense.values()):
        problem = Problem(float(temperature), negatives, decoupled)
        if positive_weight is None:
            return autograd.nt_xent(z0, z1, problem, form, keys=keys, offset=offset)
        # The loss is affine in the weight. Widened once: half-precision gradients are summed before they are rounded.
        z0, z1 = wide(z0), wide(z1)
        loss = autograd.nt_xent(z0, z1, problem, form, keys=keys, offset=offset)
        return loss + dense.lighter(positive_weight, (unit(z0) * unit(z1)).sum(dim=1) / temperature).mean()
    if form == "tiled":
        reasons = [name for name, needed in needs_dense.items() if needed]
        raise ValueError(f"form='tiled' does not go with {' and '.join(reasons)}; use form='dense' or 'auto'.")

    return dense.nt_xent(
        z0,
        z1,
        temperature=temperature,
        negatives=negatives,
        decoupled=decoupled,
        positive_weight=positive_weight,
        hard_fraction=hard_fraction,
        hard_count=hard_count,
        keys=keys,
        offset=offset,
    )


def nt_xent_with_vrn(
    z0: Tensor,
    z1: Tensor,
    *,
    weight: float,
    num_samples: int | None = None,
    target: float | None = None,
    pairs: Negatives = "cross",
    temperature: float | Tensor = 0.5,
    negatives: Negatives = "both",
    decoupled: bool = False,
    form: autograd.Form = "auto",
    check: bool = False,
) -> Tensor:
    r"""NT-Xent plus ``weight`` times VRN: their sum, from one computation of the similarities.

    .. math:: L_\text{NT-Xent} + \text{weight} \cdot \frac{1}{N(N-1)} \sum_{i \ne j} (S_{ij} - \delta)^2

    The program it equals::

        loss = nt_xent(z0, z1, temperature=t, negatives=negatives, decoupled=decoupled)
        loss = loss + weight * vrn(z0, z1, num_samples=n, pairs=pairs)

    VRN's derivative by a similarity the loss has computed is one addition, so that the sum costs little more than NT-Xent
    alone. Where the loss does not look at VRN's pairs (``negatives="cross"`` with ``pairs="within"``, say), where it takes the
    dense form, and under torch.compile, the two terms are computed one after the other.

    Args:
        z0: (N, D) projections of view 0, of any length: rows are normalised inside.
        z1: (N, D) projections of view 1.
        weight: factor on VRN, see ``VRNRegularizer``.
        num_samples: n, the number of training samples; or
        target: the target similarity.
        pairs: which negative pairs VRN takes.
        temperature: as :func:`nt_xent`.
        negatives: which negatives NT-Xent takes.
        decoupled: as :func:`nt_xent`.
        form: as :func:`nt_xent`.
        check: look at the values too (synchronises): raises for rows that are zero or not finite.

    Returns:
        A scalar, as :func:`nt_xent`.

    Raises:
        TypeError, ValueError: as :func:`nt_xent` and :func:`vrn`, and for a weight that is negative or not finite.

    At the edge: as the two functions. Rows of several ranks are not its business: add an all-reduced VRN there.

    Source: Lee et al. 2025 (arXiv 2506.09781) Def. 5.7.
    """
    # To torch.compile a weight that changes, as in a warm-up, is a symbol: its value cannot be looked at, and as a constant
    # of an operator it would cost a compilation each time.
    compiling = torch.compiler.is_compiling()
    if not compiling:
        weight = checks.weight(weight)
    delta = checks.delta(num_samples, target)
    checks.one_of(pairs, checks.KINDS, "pairs")
    checks.two_views(z0, z1, None, 0)
    options: dict[str, Any] = {"negatives": negatives, "decoupled": decoupled, "form": form, "check": check}
    if (
        compiling
        or weight == 0
        or form == "dense"
        or isinstance(temperature, Tensor)
        or not autograd.can_fuse(negatives, pairs)
    ):
        # Widened once: the two terms' gradients are summed before they are rounded to half precision.
        z0, z1 = wide(z0), wide(z1)
        loss = nt_xent(z0, z1, temperature=temperature, **options)
        return loss if weight == 0 else loss + weight * vrn(z0, z1, target=delta, pairs=pairs)
    checks.one_of(negatives, checks.KINDS, "negatives")
    checks.one_of(form, autograd.FORMS, "form")
    checks.temperature(temperature)
    if check:
        checks.rows_are_sound(z0=z0, z1=z1)
    problem = Problem(float(temperature), negatives, decoupled, weight, delta, pairs)
    return autograd.nt_xent(z0, z1, problem, form)


def dclw_weights(
    z0: Tensor,
    z1: Tensor,
    *,
    sigma: float = 0.5,
    keys: tuple[Tensor, Tensor] | None = None,
    offset: int = 0,
) -> Tensor:
    r"""Negative von Mises-Fisher weights of DCLW's positive term.

    .. math:: w_i = 2 - M \operatorname{softmax}_i(S_{ii}/\sigma)

    over the M samples of the whole batch, without gradient: pass them to :func:`nt_xent` as ``positive_weight``. The naive
    program::

        w = 2 - N * softmax((normalize(z0) * normalize(z1)).sum(1) / sigma, 0)

    Args:
        z0: (N, D) projections of view 0.
        z1: (N, D) projections of view 1.
        sigma: temperature of the weights.
        keys: rows of all ranks for the two views, each (M, D): the softmax runs over the global batch.
        offset: row of ``keys`` where this rank's rows start.

    Returns:
        (N,) weights that average to 1 over the global batch; no gradient.

    Raises:
        TypeError, ValueError: as :func:`nt_xent`.

    At the edge: with identical similarities every weight is 1, which is DCL.

    Source: Yeh et al. 2022 (arXiv 2110.06848) section 3.2.
    """
    checks.two_views(z0, z1, keys, offset)
    checks.positive("sigma", sigma)
    with torch.no_grad():
        k0, k1 = (z0, z1) if keys is None else keys
        positive = (unit(k0) * unit(k1)).sum(dim=1)
        weights = 2 - positive.shape[0] * torch.softmax(positive / sigma, dim=0)
        return weights[offset : offset + z0.shape[0]]


class NTXentLoss(Tempered):
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
        checks.one_of(negatives, checks.KINDS, "negatives")
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
            loss = nt_xent_with_vrn(
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
            checks.views(z0, z1)
            # Widened once: the two terms' gradients are summed before they are rounded to half precision.
            z0, z1 = wide(z0), wide(z1)
        loss = nt_xent(
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
