"""The simple contrastive loss, which shows what hard negatives do."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from varloss._core import checks
from varloss._core.checks import Negatives
from varloss._core.hard import check_hard, count_of_hard, mask_easy
from varloss._core.numerics import own_columns, products, unit
from varloss.losses.base import Pairwise


def simple_loss(
    z0: Tensor,
    z1: Tensor,
    *,
    weight: float | None = None,
    negatives: Negatives = "cross",
    hard_fraction: float | None = None,
    hard_count: int | None = None,
    keys: tuple[Tensor, Tensor] | None = None,
    offset: int = 0,
    check: bool = False,
) -> Tensor:
    r"""The simple contrastive loss, the limit of NT-Xent as t goes to infinity; on hard negatives only, HardSimple.

    With anchors from both views, :math:`S_{ii}` the positive and :math:`s_k` the K negatives of an anchor:

    .. math:: \text{mean over anchors of } -S_{ii} + \lambda \sum_k s_k, \qquad \lambda = \tfrac1K \text{ by default}

    The naive program, for ``negatives="cross"`` and all negatives::

        s = normalize(z0) @ normalize(z1).T
        loss = -s.diagonal().mean() + weight * s.fill_diagonal_(0).sum() / N

    It repels all negatives alike and is not hardness-aware; Wang & Liu find that choosing the hard ones
    restores most of what that costs.

    Args:
        z0: (N, D) projections of view 0, of any length: rows are normalised inside.
        z1: (N, D) projections of view 1.
        weight: lambda >= 0; by default 1 over the number of negatives that are kept for each anchor.
        negatives: ``"cross"``, ``"within"`` or ``"both"``.
        hard_fraction: keep this upper share, in (0, 1], of each anchor's negatives (rounded up, at least one).
        hard_count: or keep this many.
        keys: rows of all ranks for the two views, each (M, D), that contain this rank's.
        offset: row of ``keys`` where this rank's rows start.
        check: look at the values too (synchronises): raises for rows that are zero or not finite.

    Returns:
        A scalar, at least float32, also under autocast.

    Raises:
        TypeError, ValueError: as :func:`nt_xent`.

    At the edge: negatives that tie with the last one kept are kept too. A zero row gets a zero gradient.

    Source: Wang & Liu 2021 (arXiv 2012.09740), the simple and the hard contrastive loss of section 3.
    """
    checks.two_views(z0, z1, keys, offset)
    checks.one_of(negatives, checks.KINDS, "negatives")
    if check:
        checks.rows_are_sound(z0=z0, z1=z1)
    u, v = unit(z0), unit(z1)
    key_u, key_v = (u, v) if keys is None else (unit(keys[0]), unit(keys[1]))
    rows, total = u.shape[0], key_u.shape[0]
    others = (total - 1) * (2 if negatives == "both" else 1)
    count = count_of_hard(others, hard_fraction, hard_count)
    factor = 1 / (others if count is None else count) if weight is None else checks.weight(weight)
    own = own_columns(rows, total, offset, u.device)

    def repulsion(anchors: Tensor, own_view: Tensor, other_view: Tensor) -> Tensor:
        chosen = {"cross": [other_view], "within": [own_view], "both": [other_view, own_view]}[negatives]
        s = products(anchors, torch.cat(chosen)).masked_fill(own.repeat(1, len(chosen)), -math.inf)
        s = mask_easy(s, count, 1)
        return s.masked_fill(s == -math.inf, 0).sum(dim=1).mean()

    pull = (u * v).sum(dim=1).mean()
    return factor * (repulsion(u, key_u, key_v) + repulsion(v, key_v, key_u)) / 2 - pull


class SimpleLoss(Pairwise):
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
        checks.one_of(negatives, checks.KINDS, "negatives")
        check_hard(hard_fraction, hard_count)
        self.weight = None if weight is None else checks.weight(weight)
        self.negatives: Negatives = negatives
        self.hard_fraction = hard_fraction
        self.hard_count = hard_count

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        """Loss of two views, each (N, D)."""
        return self._call(
            simple_loss,
            z0,
            z1,
            weight=self.weight,
            negatives=self.negatives,
            hard_fraction=self.hard_fraction,
            hard_count=self.hard_count,
        )
