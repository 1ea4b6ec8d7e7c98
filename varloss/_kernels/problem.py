"""What the routines share: the problem's constants, unit rows, and how normalisation passes a gradient back."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from varloss._core.numerics import lengths, wide
from varloss._core.pairs import Pairs


class Problem(NamedTuple):
    """NT-Xent with one choice of negatives, and ``vrn_weight`` times VRN where that is not 0."""

    temperature: float
    negatives: Pairs
    decoupled: bool
    vrn_weight: float = 0.0
    target: float = 0.0
    pairs: Pairs = "cross"

    @property
    def has_vrn(self) -> bool:
        return self.vrn_weight != 0

    def fits_without_shift(self, dtype: torch.dtype) -> bool:
        """Whether ``exp(P / t)``, its sums over 2^20 rows and their reciprocals are normal numbers of ``dtype``.

        Cosines are bounded, so for all but extreme temperatures no running maximum is needed: |1/t| below 70 in fp32.
        """
        return 1 / abs(self.temperature) < math.log(torch.finfo(dtype).max) - 20 * math.log(2) - 4

    def slope(self, rows: int) -> float:
        """VRN's derivative by the similarity P of a pair is ``slope * (P - target)``, both orders of the pair together.

        The weighted value is ``slope / 2`` times the sum of squared gaps, each pair taken once.
        """
        mean_of_kinds = 0.5 if self.pairs == "both" else 1.0
        return mean_of_kinds * self.vrn_weight * 2 / (rows * (rows - 1))


def unit_rows(*views: Tensor) -> tuple[Tensor, Tensor]:
    """The views' rows at length 1, stacked, and their lengths (n, 1); zero rows stay zero and have infinite length.

    A division by infinity gives a zero row its zero gradient too. Always a new tensor, at least fp32.
    """
    z = wide(torch.cat(views))
    length = lengths(z)
    return z.div_(length), length


def to_raw_rows(grad: Tensor, z: Tensor, length: Tensor) -> Tensor:
    """Turns the gradient by unit rows into that by raw rows, in place: ``(g - (g . z) z) / length``."""
    along = torch.linalg.vecdot(grad, z, dim=1).unsqueeze(1)
    return grad.addcmul_(z, along, value=-1).div_(length)


def anchor_losses(gap: Tensor, decoupled: bool) -> Tensor:
    """Loss of each anchor, (2, N), of its ``log sum - positive``. Nothing cancels in ``log(1 + e^gap)``."""
    # Beyond 40 the softplus is its argument to the last bit, in float64 too.
    return gap if decoupled else torch.nn.functional.softplus(gap, 1.0, 40.0)


def pull_positives(gradient: Tensor, z: Tensor, log_sums: Tensor, positive: Tensor, decoupled: bool) -> None:
    """Adds the part of the positive pairs to the (2N, D) gradient by unit rows ``z``, short of the factor 1 / (2 N t)."""
    n = positive.shape[0]
    pull = torch.full_like(positive, 2) if decoupled else torch.sigmoid(log_sums - positive).sum(0)
    gradient[:n].addcmul_(pull.unsqueeze(1), z[n:], value=-1)
    gradient[n:].addcmul_(pull.unsqueeze(1), z[:n], value=-1)
