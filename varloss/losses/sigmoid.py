"""The pairwise sigmoid loss (SigLIP)."""

import math
from typing import cast

import torch.nn.functional as nnf
from torch import Tensor, nn

from varloss._core import checks
from varloss._core.numerics import mean
from varloss._core.pairs import PAIRS, Gathered, Pairs, TwoViews, check_two_views, scaled
from varloss._core.ranks import ProcessGroup
from varloss.losses.base import TwoViewLoss, shown


def sigmoid_loss(
    z0: Tensor,
    z1: Tensor,
    *,
    scale: float | Tensor = 10.0,
    bias: float | Tensor = -10.0,
    negatives: Pairs = "cross",
    gathered: Gathered | None = None,
    check: bool = False,
) -> Tensor:
    r"""The pairwise sigmoid loss (SigLIP), with a choice of negatives: every pair is a yes-or-no question of its own.

    With unit rows :math:`u_i, v_i`, :math:`S_{ij} = u_i \cdot v_j`, A and B the similarities inside view 0 and view 1:

    .. math::
        \frac1N \sum_i \mathrm{softplus}(-(tS_{ii}+b)) + \frac1N \sum_{i \ne j} \mathrm{softplus}(tS_{ij}+b)
        \Big[+ \frac{1}{2N} \sum_{i \ne j} \mathrm{softplus}(tA_{ij}+b) + \mathrm{softplus}(tB_{ij}+b)\Big]

    The middle term is ``negatives="cross"`` (SigLIP), the bracket ``"within"``, ``"both"`` adds them. Equivalent to (cross)::

        logits = scale * normalize(z0) @ normalize(z1).T + bias
        loss = -logsigmoid((2 * eye(N) - 1) * logits).sum() / N

    Cross-view negatives alone can tear positive pairs apart (see the page on theory); within-view negatives cannot.

    Args:
        z0, z1, gathered, check: as :func:`nt_xent`.
        scale: t, MULTIPLIES similarities (an inverse temperature). Where learned, a tensor of one element.
        bias: b, open_clip's sign: negative, since most pairs are negatives. Lee et al. write -b.

    Returns a scalar in nats, and raises, as :func:`nt_xent`.
    Edge cases: grows linearly, never overflows. One sample leaves the positive term. A zero row has similarity 0 to
    everything and gets a zero gradient.
    Sources: Zhai et al. 2023 (SigLIP, arXiv 2303.15343) section 3.2; Lee et al. 2025 (arXiv 2506.09781) Def. 3.2 with
    psi = softplus, c1 = c2 = N - 1.

    Example:
        >>> import torch, varloss
        >>> loss = varloss.functional.sigmoid_loss(torch.randn(16, 128), torch.randn(16, 128), scale=20.0)
    """
    check_two_views(z0, z1, gathered, check)
    checks.one_of(negatives, PAIRS, "negatives")
    t, b = checks.scalar("scale", scale), checks.scalar("bias", bias)
    views = TwoViews.of(z0, z1, gathered)

    cost = views.mean_over_pairs(lambda similarities: _softplus(t * similarities + b), negatives)
    loss = mean(_softplus(-(t * views.positive + b))) + views.number_of_negatives(negatives) * cost
    return scaled(loss, gathered)


def _softplus(x: Tensor) -> Tensor:
    # torch's softplus turns linear at 20, which costs float64 half its digits.
    return -nnf.logsigmoid(-x)


class SigmoidLoss(TwoViewLoss):
    """:func:`varloss.functional.sigmoid_loss` (SigLIP) as a module. Arguments as there.

    ``learnable`` learns ``log_scale``, from log ``scale``, and ``bias``, as SigLIP does. Give both to the optimizer. Beside
    DistributedDataParallel, not inside it, they drift apart between ranks: wrap the loss, too.

    Example:
        >>> import torch, varloss
        >>> loss = varloss.SigmoidLoss(learnable=True)(torch.randn(16, 128), torch.randn(16, 128))
    """

    _function = staticmethod(sigmoid_loss)
    _options = ("scale", "bias", "negatives")
    _shown = ("negatives", "learnable")

    def __init__(
        self,
        *,
        scale: float = 10.0,
        bias: float = -10.0,
        negatives: Pairs = "cross",
        learnable: bool = False,
        gather_distributed: bool = False,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(gather_distributed, process_group)
        scale, bias = checks.positive("scale", scale), checks.real("bias", bias)
        self.negatives: Pairs = negatives
        self.learnable = learnable
        self._fixed_scale = None if learnable else scale
        self.log_scale: nn.Parameter | None
        self.bias: float | nn.Parameter
        if learnable:
            self._learn("log_scale", math.log(scale))
            self._learn("bias", bias)
        else:
            self.log_scale, self.bias = None, bias
        self._check_options()

    def _check_options(self) -> None:
        checks.one_of(self.negatives, PAIRS, "negatives")
        checks.scalar("bias", self.bias)

    @property
    def scale(self) -> float | Tensor:
        """The number given, or, where it is learned, a 0-dim tensor with gradient."""
        return self.log_scale.exp().squeeze() if self.log_scale is not None else cast(float, self._fixed_scale)

    @scale.setter
    def scale(self, value: float) -> None:
        if self.log_scale is not None:
            raise AttributeError("the scale is learned: change the parameter log_scale instead.")
        self._fixed_scale = checks.positive("scale", value)

    def extra_repr(self) -> str:
        """Hyper-parameters, for ``print(module)``."""
        return f"scale={shown(self.scale)}, bias={shown(self.bias)}, {super().extra_repr()}"
