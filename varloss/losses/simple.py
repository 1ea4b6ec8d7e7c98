"""The simple contrastive loss, which shows what hard negatives do."""

import math

from torch import Tensor

from varloss._core import checks
from varloss._core.numerics import mean
from varloss._core.pairs import PAIRS, Gathered, Pairs, TwoViews, check_hard, check_two_views, count_of_hard, scaled
from varloss._core.ranks import ProcessGroup
from varloss.losses.base import TwoViewLoss


def simple_loss(
    z0: Tensor,
    z1: Tensor,
    *,
    weight: float | None = None,
    negatives: Pairs = "cross",
    hard_fraction: float | None = None,
    hard_count: int | None = None,
    gathered: Gathered | None = None,
    check: bool = False,
) -> Tensor:
    r"""The simple contrastive loss, the limit of NT-Xent as t goes to infinity; on hard negatives only, HardSimple.

    With anchors from both views, :math:`S_{ii}` the positive and :math:`s_k` the K negatives of an anchor:

    .. math:: \text{mean over anchors of } -S_{ii} + \lambda \sum_k s_k, \qquad \lambda = \tfrac1K \text{ by default}

    Equivalent to, for ``negatives="cross"`` and all negatives::

        s = normalize(z0) @ normalize(z1).T
        loss = -s.diagonal().mean() + weight * s.fill_diagonal_(0).sum() / N

    It repels all negatives alike and is not hardness-aware. Wang & Liu find that choosing the hard ones restores most of
    what that costs.

    Args:
        z0, z1, negatives, hard_fraction, hard_count, gathered, check: as :func:`nt_xent`.
        weight: lambda >= 0; by default 1 over the number of negatives that are kept for each anchor.

    Returns a scalar, at least float32, also under autocast. Raises as :func:`nt_xent`.
    Edge cases: one sample leaves the positive term. Negatives that tie with the last one kept are kept too. A zero row gets
    a zero gradient.
    Source: Wang & Liu 2021 (arXiv 2012.09740), the simple and the hard contrastive loss of section 3.

    Example:
        >>> import torch, varloss
        >>> loss = varloss.functional.simple_loss(torch.randn(16, 128), torch.randn(16, 128), hard_fraction=0.1)
    """
    check_two_views(z0, z1, gathered, check)
    checks.one_of(negatives, PAIRS, "negatives")
    views = TwoViews.of(z0, z1, gathered)
    available = views.number_of_negatives(negatives)
    kept = count_of_hard(available, hard_fraction, hard_count, z0.device)
    factor: float | Tensor = 1 / (max(available, 1) if kept is None else kept)
    if weight is not None:
        factor = checks.not_negative("weight", weight)

    def repulsion(similarities: Tensor, dim: int) -> Tensor:
        return similarities.masked_fill(similarities == -math.inf, 0).sum(dim=dim)

    loss = factor * mean(views.over_negatives(repulsion, negatives, kept)) - mean(views.positive)
    return scaled(loss, gathered)


class SimpleLoss(TwoViewLoss):
    """:func:`varloss.functional.simple_loss` as a module; with hard negatives it is HardSimple. Arguments as there.

    Example:
        >>> import torch, varloss
        >>> loss = varloss.SimpleLoss(hard_fraction=0.1)(torch.randn(16, 128), torch.randn(16, 128))
    """

    _function = staticmethod(simple_loss)
    _options = ("weight", "negatives", "hard_fraction", "hard_count")

    def __init__(
        self,
        *,
        weight: float | None = None,
        negatives: Pairs = "cross",
        hard_fraction: float | None = None,
        hard_count: int | None = None,
        gather_distributed: bool = False,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(gather_distributed, process_group)
        self.weight = None if weight is None else checks.not_negative("weight", weight)
        self.negatives: Pairs = negatives
        self.hard_fraction, self.hard_count = hard_fraction, hard_count
        self._check_options()

    def _check_options(self) -> None:
        if self.weight is not None:
            checks.not_negative("weight", self.weight)
        checks.one_of(self.negatives, PAIRS, "negatives")
        check_hard(self.hard_fraction, self.hard_count)
