"""NT-Xent and its relatives: which negatives, and whether the positive pair stands in the denominator."""

from typing import TypeGuard, cast

import torch
from torch import Tensor, nn

from varloss._core import checks
from varloss._core.checks import Form
from varloss._core.numerics import follows_operations, nothing, unit, wide
from varloss._core.pairs import PAIRS, Gathered, Pairs, TwoViews, check_hard, check_two_views, count_of_hard, scaled
from varloss._core.ranks import ProcessGroup
from varloss._kernels import autograd, dense
from varloss._kernels.problem import Problem
from varloss.losses.base import TemperedLoss, calls_only
from varloss.losses.vrn import VRN_FORWARD, VRNRegularizer


def nt_xent(
    z0: Tensor,
    z1: Tensor,
    *,
    temperature: float | Tensor = 0.5,
    negatives: Pairs = "both",
    decoupled: bool = False,
    positive_weight: float | Tensor | None = None,
    hard_fraction: float | None = None,
    hard_count: int | None = None,
    gathered: Gathered | None = None,
    form: Form = "auto",
    check: bool = False,
) -> Tensor:
    r"""The normalised-temperature cross entropy of two views, with a choice of negatives.

    With unit rows :math:`u_i, v_i`, :math:`S_{ij} = u_i \cdot v_j`, :math:`A_{ij} = u_i \cdot u_j`, the anchors of view 0 give

    .. math:: -S_{ii}/t + \log\Big([e^{S_{ii}/t}] + \sum_{j \ne i} e^{S_{ij}/t} + \sum_{j \ne i} e^{A_{ij}/t}\Big)

    and the loss is the mean over these and the anchors of view 1. ``negatives`` picks the sums, ``decoupled`` drops the
    bracket. Four of the six choices have names: InfoNCE or CLIP (cross), NT-Xent of SimCLR (both), DCL (both, decoupled), DHEL in the
    scale of Lee et al. (within, decoupled).

    Equivalent to, for ``negatives="both", decoupled=False``::

        z = normalize(cat([z0, z1]))
        logits = (z @ z.T / temperature).fill_diagonal_(-inf)
        loss = cross_entropy(logits, cat([arange(N, 2 * N), arange(N)]))

    Args:
        z0: (N, D) projections of view 0, of any length: rows are normalised inside.
        z1: (N, D) projections of view 1; row i is the positive of row i of ``z0``.
        temperature: divides the cosine similarities; a tensor of one element where it is learned. One below 0 is taken as it is, and
            turns the loss around: it pulls negatives together.
        negatives: ``"cross"`` the other samples in the other view, ``"within"`` in the anchor's own view, ``"both"``.
        decoupled: leaves the positive pair out of the denominator.
        positive_weight: factor on the positive term alone: a number, (N,) for both views' anchors, or (2, N).
        hard_fraction: keep, for each anchor, only this upper share, in (0, 1], of its negatives (rounded up): the hard
            contrastive loss. The rest gets no gradient; negatives that tie with the last one kept stay. Hard ones have the
            largest logits: where the temperature is below 0, the smallest similarities.
        hard_count: or keep this many; all where there are fewer.
        gathered: the rows of all ranks, from :func:`varloss.distributed.gather_views`. Anchors stay local.
        form: ``"dense"`` keeps the N x N similarity matrix for the backward pass. ``"linear"`` computes the gradient with the
            value, tile by tile, in memory linear in N. ``"auto"`` chooses by cost: the whole matrix at once where the batch
            is small, tiles where it is large, and dense where an option needs it (a temperature that is a tensor, or hard
            negatives).
        check: look at the values too (synchronises): raises for rows that are zero or not finite.

    Returns a scalar in nats, float64 for float64 input and float32 otherwise, also under autocast. It is the mean over local
    anchors, times ``gathered.share`` where rows are gathered: its mean over ranks is the value of one process.
    Raises TypeError for what is not a dense tensor of floating-point numbers (of at least 16 bits), or not a number; ValueError
    for shapes, devices or options that do not fit, or temperature 0.
    Edge cases: one sample has no negatives, and no sample is no batch; both give 0, attached to the graph. A zero row has
    similarity 0 to everything and gets a zero gradient. A row whose length leaves the range of fp32 (below 1.2e-38 or above
    3.4e38) counts as a zero row; ``check`` reports it. The loss of a perfectly separated batch underflows to 0 without
    cancellation. The backward pass with ``create_graph=True`` takes the dense formula for every ``form``, and so do
    forward-mode AD, the transforms of ``torch.func``, ``torch.jit.trace`` and the meta device.
    Sources: Chen et al. 2020 (SimCLR, arXiv 2002.05709) eq. 1; Yeh et al. 2022 (DCL, arXiv 2110.06848) eq. 6; Lee et al.
    2025 (arXiv 2506.09781) Def. 3.1; Wang & Liu 2021 (arXiv 2012.09740) section 3 for hard negatives.

    Example:
        >>> import torch, varloss
        >>> loss = varloss.functional.nt_xent(torch.randn(16, 128), torch.randn(16, 128), temperature=0.2, negatives="within")
    """
    pairs = check_two_views(z0, z1, gathered, check)
    checks.one_of(negatives, PAIRS, "negatives")
    temperature = checks.temperature(temperature)
    checks.one_of(form, checks.FORMS, "form")
    all_negatives = hard_fraction is None and hard_count is None
    fused = form != "dense" and not isinstance(temperature, Tensor) and all_negatives
    if form == "linear" and not fused:
        reason = "hard negatives" if not all_negatives else "a temperature that is a tensor"
        raise ValueError(f"form='linear' does not go with {reason}; use form='dense' or 'auto'.")
    if not pairs:
        keys = () if gathered is None else gathered.keys
        return nothing(z0, z1, *keys, temperature, positive_weight)
    if fused and not follows_operations(z0):
        problem = Problem(float(temperature), negatives, decoupled)
        if positive_weight is not None:
            # Widened once: half-precision gradients are summed before they are rounded.
            z0, z1 = wide(z0), wide(z1)
        loss = autograd.nt_xent(z0, z1, problem, force_tiles=form == "linear", others=gathered)
        if positive_weight is not None:  # The loss is affine in the weight.
            loss = loss + dense.lighter(positive_weight, (unit(z0) * (1 / temperature) * unit(z1)).sum(dim=1)).mean()
        return scaled(loss, gathered)
    views = TwoViews.of(z0, z1, gathered)
    kept = count_of_hard(views.number_of_negatives(negatives), hard_fraction, hard_count, z0.device)
    loss = dense.nt_xent(views, temperature, negatives, decoupled, positive_weight=positive_weight, kept=kept)
    return scaled(loss, gathered)


def dclw_weights(z0: Tensor, z1: Tensor, *, sigma: float = 0.5, gathered: Gathered | None = None) -> Tensor:
    r"""Negative von Mises-Fisher weights of DCLW's positive term.

    .. math:: w_i = 2 - M \operatorname{softmax}_i(S_{ii}/\sigma)

    over the M samples of the whole batch, without gradient: pass them to :func:`nt_xent` as ``positive_weight``.
    ``sigma`` is the temperature of the weights; arguments and errors otherwise as :func:`nt_xent`. Equivalent to::

        w = 2 - N * softmax((normalize(z0) * normalize(z1)).sum(1) / sigma, 0)

    Returns (N,) weights that average to 1 over the global batch; with ``gathered`` the softmax runs over all its rows.
    Edge cases: with identical similarities every weight is 1, which is DCL.
    Source: Yeh et al. 2022 (arXiv 2110.06848) section 3.2.

    Example:
        >>> import torch, varloss
        >>> z0, z1 = torch.randn(2, 16, 128)
        >>> weights = varloss.functional.dclw_weights(z0, z1)
        >>> loss = varloss.functional.nt_xent(z0, z1, decoupled=True, positive_weight=weights)
    """
    check_two_views(z0, z1, gathered)
    checks.positive("sigma", sigma)
    (k0, k1), offset = ((z0, z1), 0) if gathered is None else gathered[:2]
    # Detached rather than under no_grad, which neither forward-mode AD nor torch.jit.trace knows.
    positive = (unit(k0.detach()) * unit(k1.detach())).sum(dim=1)
    weights = 2 - positive.shape[0] * torch.softmax(positive / sigma, dim=0)
    return weights[offset : offset + z0.shape[0]]


class NTXentLoss(TemperedLoss):
    """:func:`varloss.functional.nt_xent` as a module.

    Arguments as there. ``gather_distributed`` takes negatives from all ranks, with gradient; ranks may differ in batch size.
    ``process_group`` are the ranks to gather from, by default the world.
    ``learnable_temperature`` makes ``temperature`` the start of a learned one: give the parameter ``log_temperature`` to
    the optimizer, without weight decay. Nothing here bounds it; a caller may clamp it. Beside DistributedDataParallel, not
    inside it, it drifts apart between ranks: wrap the loss, too.

    Example:
        >>> import torch, varloss
        >>> loss_fn = varloss.NTXentLoss(temperature=0.2)
        >>> loss = loss_fn(torch.randn(16, 128), torch.randn(16, 128))
    """

    _function = staticmethod(nt_xent)
    _options = ("temperature", "negatives", "decoupled", "hard_fraction", "hard_count")
    _shown = ("negatives", "decoupled")

    def __init__(
        self,
        *,
        temperature: float = 0.5,
        negatives: Pairs = "both",
        decoupled: bool = False,
        gather_distributed: bool = False,
        process_group: ProcessGroup | None = None,
        learnable_temperature: bool = False,
        hard_fraction: float | None = None,
        hard_count: int | None = None,
    ) -> None:
        super().__init__(temperature, learnable_temperature, gather_distributed, process_group)
        self.negatives: Pairs = negatives
        self.decoupled = decoupled
        self.hard_fraction, self.hard_count = hard_fraction, hard_count
        self._check_options()

    def _check_options(self) -> None:
        checks.one_of(self.negatives, PAIRS, "negatives")
        check_hard(self.hard_fraction, self.hard_count)

    def extra_repr(self) -> str:
        """Hyper-parameters, for ``print(module)``."""
        hard = [f"{name}={getattr(self, name)}" for name in ("hard_fraction", "hard_count") if getattr(self, name)]
        return ", ".join([super().extra_repr(), *hard])

    def positive_weight(self, z0: Tensor, z1: Tensor, gathered: Gathered | None) -> float | Tensor | None:
        """Factor on the positive term, None for 1: for subclasses such as DCLW. Arguments as the function's."""
        return None

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        """Loss of two views, each (N, D)."""
        return self._with_regularizer(None, z0, z1)

    def _with_regularizer(self, regularizer: nn.Module | None, z0: Tensor, z1: Tensor) -> Tensor:
        """The loss and the regularizer's term, from one computation of the similarities where that gives both.

        VRN's derivative by a similarity that the loss has computed is one addition: the sum costs little more than the loss
        alone. That is on one rank in eager mode, for exponent 2, a fixed temperature, all negatives, VRN's pairs among them,
        and no ``positive_weight``. Elsewhere the two terms are computed one after the other.
        """
        gathered = self._gathered(z0, z1)
        positive_weight = self.positive_weight(z0, z1, gathered)
        if regularizer is not None:
            checks.alike(z0=z0, z1=z1)
            plain = self.hard_fraction is None and self.hard_count is None and positive_weight is None
            # To torch.compile a weight that changes, as in a warm-up, is a symbol: its value cannot be looked at, and as a
            # constant of an operator it would cost a compilation each time.
            eager = not torch.compiler.is_compiling() and not follows_operations(z0)
            alone = gathered is None
            temperature = self._fixed_temperature  # None where it is learned
            fixed = temperature is not None and not isinstance(temperature, Tensor)
            if plain and eager and alone and fixed and self._shares_similarities(regularizer):
                if z0.shape[0] < 2:
                    return nothing(z0, z1)
                regularizer.warn_if_one_sided(z0, z1)
                own = (float(cast(float, temperature)), self.negatives, self.decoupled)
                return autograd.nt_xent(z0, z1, Problem(*own, regularizer.weight, regularizer.delta, regularizer.pairs))
            z0, z1 = wide(z0), wide(z1)  # as in nt_xent
        loss = self._value(z0, z1, positive_weight=positive_weight, gathered=gathered)
        off = regularizer is None or (
            _is_plain_vrn(regularizer) and regularizer.weight == 0 and not regularizer.is_distributed()
        )
        return loss if off else loss + cast(nn.Module, regularizer)(z0, z1)

    def _shares_similarities(self, regularizer: nn.Module) -> TypeGuard[VRNRegularizer]:
        """Whether the regularizer is VRN of this rank's pairs, and they are among the negatives."""
        return (
            _is_plain_vrn(regularizer)
            and regularizer.exponent == 2
            and self.negatives in ("both", regularizer.pairs)
            and regularizer.weight != 0
            and not regularizer.is_distributed()
        )


def _is_plain_vrn(regularizer: nn.Module) -> TypeGuard[VRNRegularizer]:
    return calls_only(regularizer, VRN_FORWARD)


NT_XENT_FORWARD = NTXentLoss.forward


class InfoNCELoss(NTXentLoss):
    """InfoNCE of two views, which is CLIP's loss: :class:`NTXentLoss` with cross-view negatives, in both directions.

    CLIP learns the temperature, from 0.07, clamped at 0.01. Arguments as :class:`NTXentLoss`.

    Example:
        >>> import torch, varloss
        >>> loss = varloss.InfoNCELoss(temperature=0.07, learnable_temperature=True)(torch.randn(16, 128), torch.randn(16, 128))
    """

    def __init__(
        self,
        *,
        temperature: float = 0.5,
        gather_distributed: bool = False,
        process_group: ProcessGroup | None = None,
        learnable_temperature: bool = False,
        hard_fraction: float | None = None,
        hard_count: int | None = None,
    ) -> None:
        super().__init__(
            temperature=temperature,
            negatives="cross",
            gather_distributed=gather_distributed,
            process_group=process_group,
            learnable_temperature=learnable_temperature,
            hard_fraction=hard_fraction,
            hard_count=hard_count,
        )


class DCLLoss(NTXentLoss):
    """Decoupled contrastive loss: :class:`NTXentLoss` without the positive pair in the denominator, at Yeh et al.'s 0.1.

    Example:
        >>> import torch, varloss
        >>> loss = varloss.DCLLoss(temperature=0.1)(torch.randn(16, 128), torch.randn(16, 128))
    """

    def __init__(
        self,
        *,
        temperature: float = 0.1,
        gather_distributed: bool = False,
        process_group: ProcessGroup | None = None,
        learnable_temperature: bool = False,
    ) -> None:
        super().__init__(
            temperature=temperature,
            negatives="both",
            decoupled=True,
            gather_distributed=gather_distributed,
            process_group=process_group,
            learnable_temperature=learnable_temperature,
        )
