"""The Gram-matrix identity: sums over rows from which sums over all pairs of rows follow, D x D numbers for any N.

For rows ``a_i`` and ``b_j``, ``sum_ij a_i . b_j = (sum_i a_i) . (sum_j b_j)`` and ``sum_ij (a_i . b_j)^2 = <A'A, B'B>``. The
closed form of VRN, VRN over ranks and the similarity statistics are all made of these two.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from varloss._core import checks
from varloss._core.numerics import products, unit, widest
from varloss._core.pairs import PAIRS, Pairs


class PairSums(NamedTuple):
    """Number, sum and sum of squares of the similarities of a set of pairs. They add up over disjoint sets of pairs."""

    number: Tensor | int
    total: Tensor
    squares: Tensor

    @classmethod
    def of(cls, similarities: Tensor) -> PairSums:
        s = widest(similarities)
        return cls(s.shape[0], s.sum(), s.square().sum())

    def without(self, part: PairSums) -> PairSums:
        return PairSums(self.number - part.number, self.total - part.total, self.squares - part.squares)

    def with_(self, more: PairSums) -> PairSums:
        return PairSums(self.number + more.number, self.total + more.total, self.squares + more.squares)

    def mean_and_variance(self) -> tuple[Tensor, Tensor]:
        """Mean and population variance; NaN where there are no pairs."""
        mean = self.total / self.number
        # Rounding may leave a variance of -1e-17.
        return mean, torch.addcmul(self.squares / self.number, mean, mean, value=-1).clamp_min(0)

    def mean_squared_gap(self, delta: float) -> Tensor:
        """Mean of ``(s - delta)^2``; 0 where there are no pairs."""
        least_one = self.number.clamp_min(1) if isinstance(self.number, Tensor) else max(self.number, 1)
        return self.squared_gaps(delta) / least_one

    def squared_gaps(self, delta: float) -> Tensor:
        return self.squares.sub(self.total, alpha=2 * delta) + delta**2 * self.number


class RowSums(NamedTuple):
    """Gram matrix (D, D), sum (D,) and number of a set of rows. They add up over disjoint sets of rows."""

    gram: Tensor
    sum: Tensor
    number: Tensor | int

    @classmethod
    def of(cls, rows: Tensor, number: Tensor | int | None = None) -> RowSums:
        """Of (N, D) rows; ``number`` of them where the others are 0."""
        return cls(products(rows.mT, rows.mT), rows.sum(dim=0), rows.shape[0] if number is None else number)

    def pairs_with(self, other: RowSums) -> PairSums:
        """Sums over all pairs of a row of this set and a row of the other, without any of the pairs.

        Products and sums in float64, where the device has it: what is left after the pairs of a row with itself are taken
        off may be 1e-8 of them.
        """
        squares = (widest(self.gram) * widest(other.gram)).sum()
        total = torch.dot(widest(self.sum), widest(other.sum))
        number = self.number * other.number
        # An integer tensor times a float would be fp32 even among float64.
        return PairSums(widest(number) if isinstance(number, Tensor) else number, total, squares)


class Grams(NamedTuple):
    """Sums over the samples of two views from which VRN and the statistics of ALL their pairs follow.

    All pairs are also those between batches and between ranks: results of disjoint sets of samples add up. They are packed
    into one vector for that, whose length does not depend on the number of samples.

    ``gram_u`` and ``gram_v`` (D, D) are the Gram matrices of the unit rows of both views, ``sum_u`` and ``sum_v`` (D,) their
    sums; ``own`` (2, 3) holds the sums, and the sums of squares, of u_i·v_i, u_i·u_i and v_i·v_i; ``number`` is that of
    samples, a 0-dim tensor where they were packed.

    Example:
        >>> import torch, varloss
        >>> z0, z1 = torch.randn(2, 50, 8)
        >>> parts = [varloss.metrics.Grams.of(z0[rows], z1[rows]).pack() for rows in (slice(0, 20), slice(20, 50))]
        >>> loss = varloss.metrics.Grams.unpack(sum(parts), dim=8).vrn(num_samples=50_000)
        >>> torch.testing.assert_close(loss, varloss.metrics.Grams.of(z0, z1).vrn(num_samples=50_000))
    """

    gram_u: Tensor
    gram_v: Tensor
    sum_u: Tensor
    sum_v: Tensor
    own: Tensor
    number: Tensor | int

    @classmethod
    def of(cls, z0: Tensor, z1: Tensor, *, dtype: torch.dtype | None = None) -> Grams:
        """Sums over the rows of two views. Differentiable, O(N D^2) work.

        ``z0`` and ``z1`` are as in :func:`varloss.functional.nt_xent`, but N may be 0 or 1. ``dtype`` is that of the sums,
        float32 or float64; by default that of the rows, at least float32. Raises TypeError for what are not floating-point
        tensors, or where only one of them is float64; ValueError for shapes that differ or are not (N, D), or two devices.
        """
        checks.alike(z0=z0, z1=z1)
        u, v = (unit(z if dtype is None else z.to(dtype)) for z in (z0, z1))
        own = torch.stack([(u * v).sum(dim=1), (u * u).sum(dim=1), (v * v).sum(dim=1)])
        (gram_u, sum_u, _), (gram_v, sum_v, _) = RowSums.of(u), RowSums.of(v)
        own_sums = torch.stack([own.sum(dim=1), own.square().sum(dim=1)])
        return cls(gram_u, gram_v, sum_u, sum_v, own_sums, u.shape[0])

    @staticmethod
    def length(dim: int) -> int:
        """Length of the packed vector for rows of dimension ``dim``: 2 D^2 + 2 D + 7."""
        return 2 * dim**2 + 2 * dim + 7

    def pack(self) -> Tensor:
        """One vector that adds up over disjoint sets of samples: for an all-reduce, or over batches."""
        *sums, number = self
        if not isinstance(number, Tensor):
            number = self.own.new_full((), number)
        return torch.cat([part.flatten() for part in (*sums, number)])

    @classmethod
    def unpack(cls, packed: Tensor, dim: int) -> Grams:
        """The sums in a packed vector, or in the sum of several; ValueError for a vector of another length."""
        if packed.shape != (cls.length(dim),):
            raise ValueError(f"grams of dimension {dim} have shape ({cls.length(dim)},); got {tuple(packed.shape)}.")
        shapes = [(dim, dim), (dim, dim), (dim,), (dim,), (2, 3), ()]
        sizes = [math.prod(shape) for shape in shapes]
        return cls(*(part.view(shape) for part, shape in zip(torch.split(packed, sizes), shapes, strict=True)))

    def pairs(self, kind: Literal["positive", "cross", "within"]) -> PairSums:
        """Sums over the positive pairs, the cross-view negatives or the within-view negatives, in float64 where there is one."""
        number = widest(self.number) if isinstance(self.number, Tensor) else self.number
        positive, own_u, own_v = (PairSums(number, *sums.unbind()) for sums in widest(self.own).unbind(dim=1))
        if kind == "positive":
            return positive
        u, v = RowSums(self.gram_u, self.sum_u, number), RowSums(self.gram_v, self.sum_v, number)
        if kind == "cross":
            return u.pairs_with(v).without(positive)
        return u.pairs_with(u).without(own_u).with_(v.pairs_with(v).without(own_v))

    def vrn(self, *, num_samples: int | None = None, target: float | None = None, pairs: Pairs = "cross") -> Tensor:
        """VRN (exponent 2) of all pairs: :func:`varloss.functional.vrn` of the samples that were summed, as one batch.

        Arguments and errors as there. Returns a scalar of the sums' dtype.
        Edge cases: one sample has no negatives; the result is 0, attached to the graph.
        """
        checks.one_of(pairs, PAIRS, "pairs")
        delta = checks.delta(num_samples, target)
        kinds: tuple[Literal["cross", "within"], ...] = ("cross", "within") if pairs == "both" else (pairs,)
        means = [self.pairs(kind).mean_squared_gap(delta) for kind in kinds]
        return torch.stack(means).mean().to(self.own.dtype)
