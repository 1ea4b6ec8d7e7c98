"""VRN from D x D Gram matrices: nothing of size N x N is ever computed."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from varloss._core.numerics import products, widest
from varloss._kernels.problem import Problem, to_raw_rows, unit_rows


def value_and_gradient(z0: Tensor, z1: Tensor, problem: Problem, need_gradient: bool) -> tuple[Tensor, Tensor | None]:
    """VRN, ``problem.vrn_weight`` times, and its (2, N, D) gradient by the raw rows of both views."""
    z, length = unit_rows(z0, z1)
    gradient = torch.zeros_like(z) if need_gradient else None
    value = add_to(gradient, z, problem)
    return value, None if gradient is None else to_raw_rows(gradient, z, length).view(2, z0.shape[0], -1)


def costs_less_than_tiles(rows: int, dim: int) -> bool:
    """Whether four products with D x D matrices take less time than three passes over N x N similarities at hand.

    Measured on a CPU: in-cache passes take 1.1 ns for each similarity, the products 0.055 ns for each of N D^2.
    """
    return 16 * rows > dim**2


def add_to(gradient: Tensor | None, z: Tensor, problem: Problem, factor: float = 1.0) -> Tensor:
    """The weighted value for unit rows (2N, D); adds ``factor`` times the gradient by them to ``gradient``.

    With Gram matrix ``G = B'B`` and sum ``b`` of the rows of B, ``sum_j (a_i . b_j - delta) b_j = a_i G - delta b``; the
    pair of a sample with itself is taken off again.
    """
    n, delta = z.shape[0] // 2, problem.target
    slope = problem.slope(n)
    u, v = z[:n], z[n:]
    grams = (u.t() @ u, v.t() @ v)
    sums = (u.sum(0), v.sum(0))
    # Both terms of the difference are near N / D at best and the rest may be 1e-8: it is taken in float64.
    total = widest(z.new_zeros(()))
    # (rows of, against view, share of the value): cross pairs once, pairs within a view in both orders.
    cross, within = problem.pairs != "within", problem.pairs != "cross"
    blocks = [(0, 1, 0.5)] * cross + [(0, 0, 0.25), (1, 1, 0.25)] * within
    for a, b, share in blocks:
        own = (u * v).sum(1) if a != b else z[a * n : a * n + n].square().sum(1)
        skipped = own.sub_(delta)
        everything = (widest(grams[a]) * widest(grams[b])).sum()
        everything -= 2 * delta * (widest(sums[a]) * widest(sums[b])).sum()
        total += share * slope * (everything + n * n * delta**2 - widest(skipped).square().sum())
        for rows, others in {(a, b), (b, a)} if gradient is not None else ():
            assert gradient is not None
            part, own_rows = gradient[rows * n : rows * n + n], z[rows * n : rows * n + n]
            part.addmm_(own_rows, grams[others], alpha=factor * slope)
            part.sub_(sums[others], alpha=factor * slope * delta)
            part.addcmul_(skipped.unsqueeze(1), z[others * n : others * n + n], value=-factor * slope)
    return total.to(z.dtype)


def closed_mean(a: Tensor, own: Tensor, b: Tensor, delta: float) -> Tensor:
    """Mean of ``(a_i . b_j - delta)^2`` over i and j but for the pairs ``(a_i, own_i)``, without the products."""
    left, right = Moments.of(a), Moments.of(b)
    skipped = widest((a * own).sum(dim=1) - delta).square().sum()
    total = left.squared_gaps(right, delta) - skipped
    mean: Tensor = total / (a.shape[0] * (b.shape[0] - 1))
    return mean.to(a.dtype)


class Moments(NamedTuple):
    """What the closed form needs of a set of rows: Gram matrix (D, D), sum (D,), count."""

    gram: Tensor
    sum: Tensor
    rows: Tensor | int

    @classmethod
    def of(cls, z: Tensor, rows: Tensor | int | None = None) -> Moments:
        return cls(products(z.mT, z.mT), z.sum(dim=0), z.shape[0] if rows is None else rows)

    def squared_gaps(self, other: Moments, delta: float) -> Tensor:
        """Sum of ``(a_i . b_j - delta)^2`` over all pairs of the two sets, in float64 where the device has it."""
        fourth = (widest(self.gram) * widest(other.gram)).sum()
        second = (widest(self.sum) * widest(other.sum)).sum()
        pairs = self.rows * other.rows
        if isinstance(pairs, Tensor):
            pairs = widest(pairs)
        return fourth - 2 * delta * second + delta**2 * pairs


def is_cheaper(rows: int, columns: int, dim: int) -> bool:
    """Two D x D Gram matrices against one N x M product: (N + M) D^2 < N M D."""
    return (rows + columns) * dim < rows * columns
