"""VRN from D x D Gram matrices: nothing of size N x N is ever computed."""

import torch
from torch import Tensor

from varloss._core.grams import PairSums, RowSums
from varloss._core.numerics import is_symbol
from varloss._core.pairs import Pairs, TwoViews
from varloss._kernels.problem import Problem, to_raw_rows, unit_rows


def value_and_gradient(z0: Tensor, z1: Tensor, problem: Problem, need_gradient: bool) -> tuple[Tensor, Tensor | None]:
    """VRN alone, ``problem.vrn_weight`` times."""
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
    sums = (RowSums(u.t() @ u, u.sum(0), n), RowSums(v.t() @ v, v.sum(0), n))
    terms = []
    # (rows of, against view, share of the value): cross pairs once, pairs within a view in both orders.
    cross, within = problem.pairs != "within", problem.pairs != "cross"
    blocks = [(0, 1, 0.5)] * cross + [(0, 0, 0.25), (1, 1, 0.25)] * within
    for a, b, share in blocks:
        own = (u * v).sum(1) if a != b else z[a * n : a * n + n].square().sum(1)
        pairs = sums[a].pairs_with(sums[b]).without(PairSums.of(own))
        terms.append(pairs.squared_gaps(delta) * (share * slope))
        if gradient is None:
            continue
        skipped = own.sub_(delta)
        for rows, others in {(a, b), (b, a)}:
            part, own_rows = gradient[rows * n : rows * n + n], z[rows * n : rows * n + n]
            part.addmm_(own_rows, sums[others].gram, alpha=factor * slope)
            part.sub_(sums[others].sum, alpha=factor * slope * delta)
            part.addcmul_(skipped.unsqueeze(1), z[others * n : others * n + n], value=-factor * slope)
    return sum(terms[1:], terms[0]).to(z.dtype)


def mean_squared_gap(views: TwoViews, delta: float, pairs: Pairs) -> Tensor:
    """Mean of ``(s - delta)^2`` by a formula that autograd differentiates; ``"both"`` is the mean of both kinds' means.

    The pair of an anchor with itself is taken off as it stands among the keys: keys without gradient give none.
    """
    if pairs == "both":
        return (mean_squared_gap(views, delta, "cross") + mean_squared_gap(views, delta, "within")) / 2
    means = []
    for anchors, view in [(views.u, 1)] if pairs == "cross" else [(views.u, 0), (views.v, 1)]:
        keys = views.keys[view]
        own = (anchors * keys[views.offset : views.offset + anchors.shape[0]]).sum(dim=1)
        found = RowSums.of(anchors).pairs_with(RowSums.of(keys)).without(PairSums.of(own))
        means.append(found.mean_squared_gap(delta).to(anchors.dtype))
    return torch.stack(means).mean()


def is_cheaper(rows: int, columns: int, dim: int) -> bool:
    """Two D x D Gram matrices against one N x M product: (N + M) D^2 < N M D.

    A compiled graph for any number of rows cannot compare them, and takes what stays small.
    """
    return is_symbol(rows) or is_symbol(columns) or (rows + columns) * dim < rows * columns
