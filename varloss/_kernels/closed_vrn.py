"""VRN from D x D Gram matrices: nothing of size N x N is ever computed."""

from __future__ import annotations

import torch
from torch import Tensor

from varloss._kernels.common import Problem, to_raw_rows, unit_rows
from varloss._numerics import widest


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
